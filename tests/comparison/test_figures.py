"""Figures: what they show against numbers worked out by hand, what is left out, names as they are, the same bytes."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import synthetic_runs
from matplotlib.markers import CARETLEFT, CARETRIGHT

from mtlcli.comparison.figures import curves, data, drawings, style, training, write_figures
from mtlcli.comparison.finished import read_runs
from mtlcli.comparison.report import report as compare_runs
from mtlcli.errors import MtlError

FROM_REPORT = ["quality_cost", "improvement", "ranks"]
FROM_EVENTS = ["losses", "weights", "gradient_conflict"]
HOSTILE = ["$\\frac{a}_", "_hidden", "x^2 $", "<b>&</b>", "\u6f22", "m [optimizer.lr=0.1, train.epochs=3]", "n" * 200]


def names(files: list[Path]) -> list[str]:
    return list(dict.fromkeys(file.stem for file in files))


def drawn(report: dict[str, Any], runs: list[Path], folder: Path) -> list[str]:
    """Names of the figures that can be drawn; nothing is written, which takes longest."""
    with style.applied():
        found = drawings(report, curves.histories(report, runs, folder))
        return [name for name, draw in found.items() if draw() is not None]


# -- files -------------------------------------------------------------------------------------------------------------


def test_every_figure_is_written_as_png_and_svg(tmp_path: Path) -> None:
    report, runs = synthetic_runs.build(tmp_path, failed=["broken"])
    settings = dict(matplotlib.rcParams)
    written = write_figures(report, runs, tmp_path / "figures")
    assert names(written) == FROM_REPORT + FROM_EVENTS
    assert sorted(written) == sorted((tmp_path / "figures").iterdir())
    for file in written:
        if file.suffix == ".png":
            assert file.read_bytes().startswith(b"\x89PNG")
        else:
            assert ElementTree.parse(file).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert dict(matplotlib.rcParams) == settings


def test_the_same_report_gives_the_same_bytes(tmp_path: Path) -> None:
    report, runs = synthetic_runs.build(tmp_path, methods=["plain"], seeds=(0, 1), epochs=2)
    first, second = (write_figures(report, runs, tmp_path / name) for name in ("one", "two"))
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name


def test_what_cannot_be_drawn_is_left_out_and_an_old_file_of_it_removed(tmp_path: Path) -> None:
    report, runs = synthetic_runs.build(tmp_path, baseline=False, diagnostics=False, epochs=2)
    folder = tmp_path / "figures"
    folder.mkdir()
    (folder / "improvement.png").write_bytes(b"of another report")
    (folder / "mine.png").write_bytes(b"a person's own")
    assert names(write_figures(report, runs, folder)) == ["quality_cost", "ranks", "losses", "weights"]
    assert not (folder / "improvement.png").exists()
    assert (folder / "mine.png").exists()
    assert drawn(report, [], tmp_path) == ["quality_cost", "ranks"]


def test_a_report_with_nothing_to_draw(tmp_path: Path) -> None:
    report, runs = synthetic_runs.build(tmp_path, methods=["plain"], baseline=False, epochs=1, failed=["broken"])
    assert drawn(report, runs, tmp_path) == ["weights", "gradient_conflict"]
    report["rows"] = report["rows"][1:]
    assert write_figures(report, [], tmp_path / "figures") == []


def test_older_reports_have_fewer_keys(tmp_path: Path) -> None:
    """No interval, values, p, versus, counts, runs or reference: the runs' own results say where they belong."""
    report, runs = synthetic_runs.build(tmp_path, epochs=2)
    del report["reference"]
    for row in report["rows"]:
        del row["runs"], row["cost"]["counts"]
        summaries = [*(s for found in row["tasks"].values() for s in found.values()), row["delta_m"], row["delta_p"]]
        for found in summaries:
            for key in ("interval", "values", "p", "test", "versus"):
                del found[key]
    assert drawn(report, runs, tmp_path) == FROM_REPORT + FROM_EVENTS


def test_the_report_of_real_runs(tmp_path: Path) -> None:
    _, runs = synthetic_runs.build(tmp_path, epochs=2)
    report = compare_runs(read_runs(runs), None)
    assert drawn(report, runs, tmp_path) == FROM_REPORT + FROM_EVENTS


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    tasks: synthetic_runs.Metrics = {"_t$1": {"m_{1}": ("", True)}, "<t>": {"$": ("$", False)}}
    report, runs = synthetic_runs.build(tmp_path, methods=HOSTILE, tasks=tasks, epochs=2)
    for file in write_figures(report, runs, tmp_path / "figures"):
        if file.suffix == ".svg":
            ElementTree.parse(file)
    with style.applied():
        figure = training.weights(report, curves.histories(report, runs, tmp_path))
    assert figure
    titles = {axes.get_title(loc="left") for axes in figure.axes}
    assert {"$\\frac{a}_", "_hidden", "x^2 $", "<b>&</b>"} <= titles
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["_t$1", "<t>"]
    assert not any(text.get_parse_math() for text in figure.legends[0].get_texts())


def test_variants_of_a_method_are_told_apart() -> None:
    one, other = (f"method [weighting.loss.temperature={value}, optimizer.lr=0.1]" for value in (1, 2))
    assert style.fold(one) != style.fold(other)
    assert style.clip("n" * 99) == "n" * 16 + "\u2026" + "n" * 16


def test_forty_methods_of_which_the_best_are_in_colour(tmp_path: Path) -> None:
    methods = [f"m{number:02}" for number in range(40)]
    report, runs = synthetic_runs.build(tmp_path, methods=methods, seeds=(0,), epochs=3)
    with style.applied():
        figure = training.losses(report, curves.histories(report, runs, tmp_path))
    assert figure
    best = [method for method in data.order(report) if method != "single_task"][: training.HIGHLIGHTED]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [*best, "single_task", "35 other methods"]
    grey = [line for line in figure.axes[0].lines if line.get_color() == style.FAINT]
    assert (len(figure.axes[0].lines), len(grey)) == (41, 35)


def test_what_goes_on_beyond_a_panel_is_marked(tmp_path: Path) -> None:
    """Two seeds have intervals of thirteen standard errors."""
    for seeds, marked in (((0, 1), True), ((0,), False)):
        made, runs = synthetic_runs.build(tmp_path / str(len(seeds)), seeds=seeds, epochs=1)
        with style.applied():
            figure: Any = drawings(made, curves.histories(made, runs, tmp_path))["improvement"]()
        beyond, triangles = 0, 0
        for axes, by_method in zip(figure.axes, data.gains(made).values(), strict=True):
            left, right = axes.get_xlim()
            for method in set(by_method) - {"single_task"}:
                low, high = by_method[method].interval or (0, 0)
                beyond += (low < left) + (high > right)
            triangles += sum(line.get_marker() in (CARETLEFT, CARETRIGHT) for line in axes.lines)
        assert triangles == beyond
        assert bool(beyond) == marked
        assert any("goes on beyond" in " ".join(text.get_text().split()) for text in figure.texts) == marked


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    report, runs = synthetic_runs.build(tmp_path, epochs=2)
    (tmp_path / "figures").write_text("a file")
    with pytest.raises(MtlError, match="figures: cannot be written"):
        write_figures(report, runs, tmp_path / "figures")


def test_matplotlib_is_imported_only_to_draw() -> None:
    script = """import sys, mtlcli.comparison.figures, mtlcli.comparison.page
assert not {'matplotlib', 'numpy', 'torch'} & set(sys.modules)"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# -- numbers of the report ---------------------------------------------------------------------------------------------


def made(rows: dict[str, tuple[float, float]], baseline: str | None = "base") -> dict[str, Any]:
    """One task with `up` (higher is better) and `down`; values of seeds 0 and 1 lie 1 % around the mean."""

    def cell(mean: float) -> dict[str, Any]:
        return synthetic_runs.summary({"0": mean * 0.99, "1": mean * 1.01})

    return {
        "dataset": "d",
        "baseline": baseline,
        "metrics": {"t": {n: {"unit": "", "higher_is_better": n == "up"} for n in ("up", "down")}},
        "rows": [
            {"method": name, "seeds": [0, 1], "tasks": {"t": {"up": cell(up), "down": cell(down)}}, "cost": {}}
            for name, (up, down) in rows.items()
        ],
    }


def test_gains_are_means_over_metrics_with_the_interval_of_the_seeds() -> None:
    gains = data.gains(made({"base": (2.0, 4.0), "a": (3.0, 4.0)}))
    gain = gains["t"]["a"]
    assert gain.mean == pytest.approx(25)  # up is 50 % better, down is as it was
    # By seed: up 48.5 and 51.5, down 1 and -1: means 24.75 and 25.25; t of one degree of freedom is 12.706.
    assert gain.interval == pytest.approx((25 - 12.706 * 0.25, 25 + 12.706 * 0.25), abs=1e-3)
    assert gains["t"]["base"].mean == 0
    assert data.gains(made({"a": (1, 1)}, baseline=None)) == {}


def test_gains_leave_out_what_has_no_value() -> None:
    report = made({"base": (0.0, 4.0), "a": (3.0, 5.0), "b": (1.0, 1.0)})
    report["rows"][2]["tasks"]["t"]["down"] = {"mean": None, "std": None, "n": 0}
    gains = data.gains(report)
    assert gains["t"]["a"].mean == pytest.approx(-25)  # of down alone: nothing is a percentage of zero
    assert "b" not in gains["t"]


def test_ranks_average_ties_and_leave_the_single_tasks_out() -> None:
    ranks = data.ranks(made({"single_task": (9, 0), "a": (3, 1), "b": (3, 2), "c": (1, 3)}))
    assert ranks == {
        "a": {("t", "up"): 1.5, ("t", "down"): 1},
        "b": {("t", "up"): 1.5, ("t", "down"): 2},
        "c": {("t", "up"): 3, ("t", "down"): 3},
    }


@pytest.mark.parametrize("baseline", ["base", None])
def test_the_front_is_what_nothing_beats_in_both(baseline: str | None) -> None:
    report = made(dict.fromkeys("abcde", (1, 1)), baseline)
    for row, (cost, quality) in zip(report["rows"], [(1, 5), (2, 3), (2, 4), (3, 3), (4, 1)], strict=True):
        row["cost"] = {"step_ms_median": cost}
        row |= {"delta_m": {"mean": quality}, "mean_rank": quality}
    report["rows"].append({"method": "unknown", "seeds": [0], "tasks": {}, "cost": {}, "delta_m": None})
    found = data.trade_off(report)
    assert [point.method for point in found] == ["a", "b", "c", "d", "e"]
    assert [point.method for point in found if point.front] == ["a", "b", "e"]


def test_order_is_best_first_and_what_is_not_known_last() -> None:
    report = made({"a": (1, 1), "b": (1, 1), "c": (1, 1)})
    for row, (delta, rank) in zip(report["rows"], [(None, None), (1.0, 2), (-1.0, 3)], strict=True):
        row |= {"delta_m": {"mean": delta}, "mean_rank": rank}
    assert data.order(report) == ["c", "b", "a"]


def test_limits_leave_out_what_is_far_away() -> None:
    assert data.limits([1, 2, 3, 4, 5, 6, 7, 1000]) == (1, 7)
    assert data.limits([1, 2, 3, 4]) == (1, 4)
    assert data.limits([5]) == (5, 5)


# -- curves of the runs ------------------------------------------------------------------------------------------------


def test_a_curve_is_the_mean_with_the_lowest_and_highest_seed() -> None:
    assert curves.merge([{0: 1.0, 10: 2.0}, {0: 3.0, 10: 2.0}]) == curves.Curve([0, 10], [2, 2], [1, 2], [3, 2])


def test_a_place_that_one_seed_lacks_is_left_out() -> None:
    found = curves.merge([{0: 1.0, 1: 1.0, 2: 1.0}, {0: 1.0, 1: 2.0, 2: math.nan, 3: 4.0}])
    assert found
    assert found.x == [0, 1]
    assert curves.merge([{0: 1.0}]) is None
    assert curves.merge([]) is None


def test_long_curves_are_thinned_without_losing_their_mean() -> None:
    found = curves.merge([{step: float(step) for step in range(10_000)}])
    assert found
    assert len(found.x) == curves.POINTS
    assert sum(found.mean) / len(found.mean) == pytest.approx(4999.5)
    assert found.x == sorted(found.x)


def test_what_spans_orders_of_magnitude_has_geometric_means() -> None:
    found = curves.merge([{0: 1.0, 1: 10.0}, {0: 100.0, 1: 1000.0}], logarithmic=True)
    assert found
    assert found.mean == pytest.approx([10, 100])
    assert (found.low, found.high) == (pytest.approx([1, 10]), pytest.approx([100, 1000]))


def one_run(tmp_path: Path, events: list[dict[str, Any]]) -> curves.History:
    """The history of a report of one run with these events."""
    report, (run,) = synthetic_runs.build(tmp_path, methods=["plain"], seeds=(0,), baseline=False)
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events) + '{"event": "Step')
    return curves.histories(report, [run], tmp_path)["plain"]


def epoch(number: int, loss: float | None) -> dict[str, Any]:
    score = {"value": 0.5, "unit": "", "higher_is_better": True}
    val = {"a": {"loss": loss, "metrics": {"auroc": score}}}
    return {"event": "EpochDone", "epoch": number, "step": number + 1, "losses": {"a": 1.0}, "weights": {}, "val": val}


def step(number: int, weight: float) -> dict[str, Any]:
    return {"event": "StepDone", "step": number, "losses": {}, "weights": {"a": weight}}


def test_of_a_step_that_a_resumed_run_did_twice_the_last_counts(tmp_path: Path) -> None:
    events = [step(0, 1), step(20, 9), epoch(0, 3.0), epoch(1, 9.0), step(20, 2), epoch(1, 2.0)]
    history = one_run(tmp_path, events)
    assert history.weights["a"].mean == [1, 2]
    assert history.epochs["a"][curves.VALIDATION_LOSS] == curves.Curve([1, 2], [3, 2], [3, 2], [3, 2])
    assert list(history.epochs["a"]) == [curves.TRAINING_LOSS, curves.VALIDATION_LOSS, "auroc"]


def test_a_damaged_line_costs_its_point_alone(tmp_path: Path) -> None:
    damaged: list[dict[str, Any]] = [{"event": kind} for kind in ("StepDone", "EpochDone", "Diagnostics")]
    damaged += [step(1, 1) | {"weights": [1]}, epoch(1, 1.0) | {"epoch": None}, {"event": "Diagnostics", "step": 3}]
    history = one_run(tmp_path, [epoch(0, 3.0), *damaged, epoch(1, 2.0)])
    assert history.epochs["a"][curves.VALIDATION_LOSS].mean == [3, 2]
    assert history.conflict is None


def test_a_loss_that_was_not_finite_is_a_gap(tmp_path: Path) -> None:
    history = one_run(tmp_path, [epoch(0, 3.0), epoch(1, None), epoch(2, 1.0)])
    assert history.epochs["a"][curves.VALIDATION_LOSS].x == [1, 3]


def test_conflict_is_averaged_over_pairs_and_time(tmp_path: Path) -> None:
    def event(number: int, cosine: float | None) -> dict[str, Any]:
        matrix = [[1.0, cosine, 0.0], [cosine, 1.0, 1.0], [0.0, 1.0, 1.0]]
        about = {"event": "Diagnostics", "step": number, "cosines": matrix, "magnitude_similarity": matrix}
        return about | {"condition": 10.0 ** (number + 1), "tasks": ["a", "b", "c"]}

    found = one_run(tmp_path, [event(0, -1.0), event(1, 0.5), event(2, None)]).conflict
    assert found
    assert found.tasks == ["a", "b", "c"]
    assert found.cosines[0] == [1, -0.25, 0]  # where undefined, the steps that have one count
    assert found.cosine
    assert found.cosine.mean == pytest.approx([0, 0.5, 0.5])
    assert found.condition
    assert found.condition.mean == pytest.approx([10, 100, 1000])


def test_single_task_runs_make_one_history_without_weights(tmp_path: Path) -> None:
    report, runs = synthetic_runs.build(tmp_path, epochs=3)
    history = curves.histories(report, runs, tmp_path)["single_task"]
    assert list(history.epochs) == list(synthetic_runs.TASKS)
    assert (history.weights, history.conflict) == ({}, None)
    joint = curves.histories(report, runs, tmp_path)["plain"]
    assert list(joint.weights) == list(synthetic_runs.TASKS)
    assert all(len(curve.x) == 15 for curve in joint.weights.values())


def test_runs_belong_to_the_row_that_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report, runs = synthetic_runs.build(tmp_path, epochs=1)
    stranger = tmp_path / "no-run"
    found = curves.by_method(report, [*runs, stranger], tmp_path)
    assert {method: len(paths) for method, paths in found.items()} == {
        "single_task": 9,
        "plain": 3,
        "+turned": 3,
        "plain+turned": 3,
    }
    for row in report["rows"]:  # as absolute paths, in another folder, and given relative to it
        row["runs"] = [str(tmp_path / path) for path in row["runs"]]
    monkeypatch.chdir(tmp_path)
    relative = [run.relative_to(tmp_path) for run in runs]
    again = curves.by_method(report, relative, tmp_path / "elsewhere")
    assert {method: len(paths) for method, paths in again.items()} == {m: len(p) for m, p in found.items()}
