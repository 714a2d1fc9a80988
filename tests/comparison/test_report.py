"""The report, against tables worked out by hand. Runs are folders with a made-up result.json; nothing is trained."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_runs import COST, fake

from mtlcli.comparison import tabular
from mtlcli.comparison.figures import data
from mtlcli.comparison.finished import read_runs
from mtlcli.comparison.report import report
from mtlcli.errors import MtlError


def table(tmp_path: Path, methods: dict[str, list[dict[str, dict[str, float | None]]]], **about: Any) -> dict[str, Any]:
    """The report on `methods`, a list of one table of values per seed; single_task becomes one run per task."""
    paths = []
    for method, seeds in methods.items():
        for seed, values in enumerate(seeds):
            if method == "single_task":
                for task in values:
                    paths.append(fake(tmp_path / method / task / str(seed), "ew", seed, {task: values[task]}))
            else:
                paths.append(fake(tmp_path / method / str(seed), method, seed, values))
    made = report(read_runs(paths), about.get("baseline"), about.get("failures", ()), about.get("reference"))
    json.dumps(made, allow_nan=False)
    return made


def some(summary: dict[str, Any], *keys: str) -> list[Any]:
    """These entries of a summary."""
    return [summary[key] for key in keys]


def row(made: dict[str, Any], method: str) -> dict[str, Any]:
    (found,) = [row for row in made["rows"] if row["method"] == method]
    return dict(found)


NOTHING = dict.fromkeys(("mean", "std", "interval", "p", "test", "versus")) | {"n": 0, "values": {}}
SINGLE = {"a": {"auroc": 0.8}, "b": {"mae": 4.0, "r2": 0.5}}


def test_delta_m_and_delta_p_by_hand(tmp_path: Path) -> None:
    """Gains in percent: a.auroc +10, b.mae -25 (higher error), b.r2 +20."""
    made = table(tmp_path, {"single_task": [SINGLE], "uw": [{"a": {"auroc": 0.88}, "b": {"mae": 5.0, "r2": 0.6}}]})
    assert made["baseline"] == "single_task"
    uw = row(made, "uw")
    assert uw["delta_m"]["mean"] == pytest.approx(-(10 - 25 + 20) / 3)
    assert uw["delta_p"]["mean"] == pytest.approx((10 + (-25 + 20) / 2) / 2)
    single = row(made, "single_task")
    assert single["delta_m"]["mean"] == pytest.approx(0)
    assert single["mean_rank"] is None
    assert [r["method"] for r in made["rows"]] == ["single_task", "uw"]
    assert made["metrics"]["b"] == {
        "mae": {"unit": "", "higher_is_better": False},
        "r2": {"unit": "", "higher_is_better": True},
    }


def test_spread_over_seeds_by_hand(tmp_path: Path) -> None:
    """The baseline is its mean over seeds (4 and 6: 5); the deltas are per seed: mae 5.5 is +10 %, 4.5 is -10 %."""
    made = table(
        tmp_path,
        {"single_task": [{"a": {"mae": 4.0}, "b": {"mae": 1.0}}, {"a": {"mae": 6.0}, "b": {"mae": 1.0}}]}
        | {"uw": [{"a": {"mae": 5.5}, "b": {"mae": 1.0}}, {"a": {"mae": 4.5}, "b": {"mae": 1.0}}]},
    )
    uw = row(made, "uw")
    mae = uw["tasks"]["a"]["mae"]
    assert some(mae, "mean", "std", "n", "values") == [5.0, pytest.approx(math.sqrt(0.5)), 2, {"0": 5.5, "1": 4.5}]
    # t(0.975, 1) = 12.7062, and the standard error is sqrt(0.5 / 2) = 0.5.
    assert mae["interval"] == pytest.approx([5 - 12.7062 * 0.5, 5 + 12.7062 * 0.5], abs=1e-3)
    # Means over both tasks: +5 % and -5 % for uw, as b does not change.
    assert some(uw["delta_m"], "mean", "std", "n") == [pytest.approx(0), pytest.approx(math.sqrt(2) * 5), 2]
    assert uw["delta_m"]["values"] == {"0": pytest.approx(5), "1": pytest.approx(-5)}
    assert uw["delta_p"]["values"] == {"0": pytest.approx(-5), "1": pytest.approx(5)}
    assert row(made, "single_task")["delta_m"]["std"] == pytest.approx(math.sqrt(2) * 10)
    assert made["notes"] == ["no metric differs from uw by more than the spread over seeds: single_task"]


def test_one_seed_has_no_spread(tmp_path: Path) -> None:
    made = table(tmp_path, {"single_task": [SINGLE], "uw": [SINGLE]})
    for summary in (row(made, "uw")["tasks"]["a"]["auroc"], row(made, "single_task")["delta_m"]):
        assert some(summary, "std", "n", "interval", "p", "test", "versus") == [None, 1, None, None, None, None]
    assert row(made, "uw")["delta_m"]["mean"] == pytest.approx(0)
    assert "a method with one seed has no known spread (std is null)" in made["notes"]


def test_mean_rank_with_ties_by_hand(tmp_path: Path) -> None:
    """auroc: uw and dwa tie for 1 and 2 (1.5 each), si 3. mae: si 1, dwa 2, uw 3."""
    made = table(
        tmp_path,
        {
            "uw": [{"a": {"auroc": 0.9}, "b": {"mae": 3.0}}],
            "dwa": [{"a": {"auroc": 0.9}, "b": {"mae": 2.0}}],
            "si": [{"a": {"auroc": 0.7}, "b": {"mae": 1.0}}],
        },
    )
    assert {r["method"]: r["mean_rank"] for r in made["rows"]} == {"uw": 2.25, "dwa": 1.75, "si": 2.0}
    assert made["baseline"] is None
    assert all(r["delta_m"] is None and r["delta_p"] is None for r in made["rows"])
    assert "no single-task runs are among these, so delta_m and delta_p are not known" in made["notes"]


def test_ranks_are_of_means_over_seeds(tmp_path: Path) -> None:
    made = table(
        tmp_path, {"uw": [{"a": {"mae": 1.0}}, {"a": {"mae": 9.0}}], "dwa": [{"a": {"mae": 4.0}}, {"a": {"mae": 4.0}}]}
    )
    assert {r["method"]: r["mean_rank"] for r in made["rows"]} == {"uw": 2.0, "dwa": 1.0}


def test_means_that_differ_by_the_arithmetic_alone_tie(tmp_path: Path) -> None:
    """By hand both are 0.8; as sums of binary fractions one is 0.7999999999999999."""
    scores = {"uw": [0.7, 0.8, 0.9], "dwa": [0.8, 0.8, 0.8], "si": [0.6, 0.6, 0.6]}
    made = table(tmp_path, {method: [{"a": {"auroc": v}} for v in values] for method, values in scores.items()})
    assert len({row(made, method)["tasks"]["a"]["auroc"]["mean"] for method in scores}) == 3
    assert {r["method"]: r["mean_rank"] for r in made["rows"]} == {"uw": 1.5, "dwa": 1.5, "si": 3.0}
    assert data.ranks(made) == {m: {("a", "auroc"): rank} for m, rank in (("uw", 1.5), ("dwa", 1.5), ("si", 3.0))}
    column = next(column for column in tabular.columns(made) if column.name == "auroc")
    assert [cell.place for cell in column.cells] == [1, 1, 0]  # the last of two is not called second best


def test_a_negative_baseline_counts_by_its_size(tmp_path: Path) -> None:
    """R2 of -0.5 to -0.25 is a gain of half the size of -0.5."""
    made = table(tmp_path, {"ew": [{"a": {"r2": -0.5}}], "uw": [{"a": {"r2": -0.25}}]}, baseline="ew")
    assert row(made, "uw")["delta_m"]["mean"] == pytest.approx(-50)
    assert row(made, "uw")["delta_p"]["mean"] == pytest.approx(50)


def test_a_zero_baseline_is_left_out_and_said(tmp_path: Path) -> None:
    made = table(
        tmp_path,
        {"ew": [{"a": {"r2": 0.0, "mae": 2.0}}], "uw": [{"a": {"r2": 0.7, "mae": 1.0}}]},
        baseline="ew",
    )
    assert row(made, "uw")["delta_m"]["mean"] == pytest.approx(-50)
    assert "a.r2 is zero for the baseline, so it is left out of delta_m and delta_p" in made["notes"]
    nothing = table(tmp_path / "2", {"ew": [{"a": {"r2": 0.0}}], "uw": [{"a": {"r2": 0.7}}]}, baseline="ew")
    assert row(nothing, "uw")["delta_m"] == NOTHING


def test_a_metric_that_nobody_has_is_left_out(tmp_path: Path) -> None:
    made = table(
        tmp_path,
        {"ew": [{"a": {"auroc": None, "mae": 2.0}}], "uw": [{"a": {"auroc": None, "mae": 1.0}}]},
        baseline="ew",
    )
    assert row(made, "uw")["delta_m"]["mean"] == pytest.approx(-50)
    assert row(made, "uw")["mean_rank"] == 1.0
    assert row(made, "uw")["tasks"]["a"]["auroc"] == NOTHING
    assert "a.auroc is undefined for the baseline, so it is left out of delta_m and delta_p" in made["notes"]


def test_a_metric_that_one_method_lacks_costs_it_the_comparison(tmp_path: Path) -> None:
    """A mean over the metrics that happen to be there would flatter it."""
    good = {"a": {"auroc": 0.8, "mae": 2.0}}
    made = table(tmp_path, {"ew": [good], "uw": [{"a": {"auroc": None, "mae": 1.0}}], "si": [good]}, baseline="ew")
    assert row(made, "uw")["delta_m"] == NOTHING
    assert row(made, "uw")["delta_p"] == NOTHING
    assert row(made, "uw")["mean_rank"] is None
    assert row(made, "si")["mean_rank"] == (1.5 + 2.5) / 2
    assert "a.auroc is undefined in runs of uw: these have no delta_m, delta_p" in made["notes"]
    made = table(tmp_path / "none", {"ew": [good], "uw": [{"a": {"auroc": None, "mae": 1.0}}]}, baseline="none")
    assert "a.auroc is undefined in runs of uw" in made["notes"]


def test_a_seed_that_lacks_a_metric_is_left_out_of_the_deltas(tmp_path: Path) -> None:
    made = table(
        tmp_path,
        {
            "ew": [{"a": {"auroc": 0.8}}, {"a": {"auroc": 0.8}}],
            "uw": [{"a": {"auroc": 0.88}}, {"a": {"auroc": None}}],
        },
        baseline="ew",
    )
    assert some(row(made, "uw")["delta_p"], "mean", "std", "n") == [pytest.approx(10), None, 1]
    assert row(made, "uw")["tasks"]["a"]["auroc"]["n"] == 1
    assert row(made, "uw")["mean_rank"] == 1.0
    assert "a.auroc is undefined in runs of uw (seed 1): these have no delta_m, delta_p" in made["notes"]


def test_a_seed_without_a_value_for_any_method_is_named(tmp_path: Path) -> None:
    """As where a small test split has no positive label."""
    scores = [{"a": {"auroc": 0.8}}, {"a": {"auroc": None}}]
    made = table(tmp_path, {"ew": scores, "uw": scores}, baseline="ew")
    assert row(made, "uw")["delta_m"]["n"] == 1
    assert "a.auroc is undefined in every run with seed 1: these have no delta_m, delta_p" in made["notes"]


def test_the_cost_of_single_tasks_adds_up(tmp_path: Path) -> None:
    made = table(tmp_path, {"single_task": [SINGLE, SINGLE], "uw": [SINGLE, SINGLE]})
    assert row(made, "single_task")["cost"] == {
        "seconds": 20.0,
        "step_ms_median": 4.0,
        "peak_mib": 100.0,
        "backward_passes_per_step": 2,
    }
    assert row(made, "uw")["cost"] == COST


def test_an_incomplete_baseline_is_left_out_and_said(tmp_path: Path) -> None:
    paths = [
        fake(tmp_path / "a0", "ew", 0, {"a": SINGLE["a"]}),
        fake(tmp_path / "b0", "ew", 0, {"b": SINGLE["b"]}),
        fake(tmp_path / "a1", "ew", 1, {"a": SINGLE["a"]}),
        fake(tmp_path / "uw0", "uw", 0, SINGLE),
        fake(tmp_path / "uw1", "uw", 1, SINGLE),
    ]
    made = report(read_runs(paths), None)
    assert row(made, "single_task")["seeds"] == [0]
    assert "the single-task baseline of seed 1 lacks b and is left out" in made["notes"]
    assert "not every method has the same seeds" in made["notes"]


def test_failures_are_rows(tmp_path: Path) -> None:
    failures = [{"method": "uw", "seed": 1, "error": "boom"}, {"method": "si", "seed": 0, "error": "bang"}]
    made = table(tmp_path, {"single_task": [SINGLE], "uw": [SINGLE]}, failures=failures)
    assert row(made, "uw")["failed"] == [{"seed": 1, "error": "boom"}]
    assert row(made, "uw")["seeds"] == [0]
    assert row(made, "si") == {"method": "si", "seeds": [], "tasks": {}, "delta_m": None, "delta_p": None} | {
        "mean_rank": None,
        "cost": {},
        "cost_by_seed": {},
        "counts": {},
        "runs": [],
        "failed": [{"seed": 0, "error": "bang"}],
    }


@pytest.mark.parametrize(("baseline", "chosen"), [(None, "single_task"), ("none", None), ("uw", "uw")])
def test_baselines(tmp_path: Path, baseline: str | None, chosen: str | None) -> None:
    made = table(tmp_path, {"single_task": [SINGLE], "uw": [SINGLE]}, baseline=baseline)
    assert made["baseline"] == chosen
    assert (row(made, "uw")["delta_m"] is None) == (chosen is None)


def test_an_unknown_baseline(tmp_path: Path) -> None:
    with pytest.raises(
        MtlError, match=r"--baseline dwaa: no finished run of it; did you mean 'dwa'\?; there are: .*dwa"
    ):
        table(tmp_path, {"single_task": [SINGLE], "dwa": [SINGLE]}, baseline="dwaa")


def test_counts_and_costs_by_seed(tmp_path: Path) -> None:
    paths = [
        fake(tmp_path / "0", "uw", 0, SINGLE, counts={"stopped early": 2}),
        fake(tmp_path / "1", "uw", 1, SINGLE, counts={"stopped early": 1, "cancelled": 3}),
        *(fake(tmp_path / t, "ew", 0, {t: v}, counts={"lost": 1}) for t, v in SINGLE.items()),  # type: ignore[arg-type]
    ]
    made = report(read_runs(paths), None)
    assert row(made, "uw")["counts"] == {"stopped early": 3, "cancelled": 3}
    assert row(made, "single_task")["counts"] == {"lost": 2}
    assert row(made, "uw")["cost"]["backward_passes_per_step"] == 1
    assert row(made, "uw")["cost_by_seed"] == {"0": {**COST, "fallbacks": 2}, "1": {**COST, "fallbacks": 4}}


def test_runs_that_nothing_chose_an_epoch_of_are_named(tmp_path: Path) -> None:
    last = {"by": "last", "epoch": 3}
    paths = [fake(tmp_path / "a", "ew", 0, {"a": SINGLE["a"]}, selected=last)]
    paths += [fake(tmp_path / "b", "ew", 0, {"b": SINGLE["b"]}, selected={"by": "val", "epoch": 1})]
    paths += [fake(tmp_path / "ew", "ew", 0, SINGLE, selected=last, train__select_by="last")]
    noted = [note for note in report(read_runs(paths), None)["notes"] if "last epoch" in note]
    assert len(noted) == 1
    assert noted[0].startswith("1 of 3 runs stand with their last epoch")
    assert noted[0].endswith(str(tmp_path / "a"))


def test_a_cost_that_one_single_task_lacks_is_not_known(tmp_path: Path) -> None:
    paths = [fake(tmp_path / "a", "ew", 0, {"a": SINGLE["a"]}, cost={**COST, "step_ms_median": None})]
    paths += [fake(tmp_path / "b", "ew", 0, {"b": SINGLE["b"]}), fake(tmp_path / "uw", "uw", 0, SINGLE)]
    cost = row(report(read_runs(paths), None), "single_task")["cost"]
    assert (cost["step_ms_median"], cost["seconds"]) == (None, 20.0)


def test_rows_name_their_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative to the report's folder where they lie inside of it, else absolute."""
    monkeypatch.chdir(tmp_path)
    paths = [
        fake(Path("sweep/uw/seed-1"), "uw", 1, SINGLE),
        fake(Path("sweep/uw/seed-0"), "uw", 0, SINGLE),
        fake(Path("elsewhere"), "dwa", 0, SINGLE),
    ]
    made = report(read_runs(paths), "none", folder=Path("sweep"))
    assert row(made, "uw")["runs"] == ["uw/seed-0", "uw/seed-1"]
    assert row(made, "dwa")["runs"] == [str(tmp_path / "elsewhere")]
    assert row(report(read_runs(paths), "none"), "uw")["runs"][0] == str(tmp_path / "sweep/uw/seed-0")


# -- runs that differ --------------------------------------------------------------------------------------------------


def test_variants_of_one_method_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    paths = [
        fake(tmp_path / f"{lr}" / f"seed-{s}", "ew", s, SINGLE, optimizer__lr=lr) for lr in (0.1, 0.2) for s in (0, 1)
    ]
    paths.append(fake(tmp_path / "uw" / "seed-0", "uw", 0, SINGLE, train__log_every_steps=5))
    made = report(read_runs(paths), "uw")
    assert [(r["method"], r["seeds"]) for r in made["rows"]] == [
        ("ew [optimizer.lr=0.1]", [0, 1]),
        ("ew [optimizer.lr=0.2]", [0, 1]),
        ("uw", [0]),
    ]
    assert "these runs differ in more than the method and the seed: optimizer.lr" in made["notes"]


def test_what_most_variants_share_is_not_named(tmp_path: Path) -> None:
    """A variant is named by the keys whose value less than half of them have; keys of `weighting` without that word."""

    def variant(name: str, **settings: Any) -> Path:
        return fake(
            tmp_path / name / "seed-0", "uw", 0, SINGLE, **{"weighting__lr": 0.1, "train__epochs": 3} | settings
        )

    paths = [variant("a"), variant("b", weighting__lr=0.2), variant("c", weighting__lr=0.3, train__epochs=4)]
    assert [r["method"] for r in report(read_runs(paths[:2]), "none")["rows"]] == ["uw [lr=0.1]", "uw [lr=0.2]"]
    assert [r["method"] for r in report(read_runs(paths), "none")["rows"]] == [
        "uw [lr=0.1]",
        "uw [lr=0.2]",
        "uw [lr=0.3, train.epochs=4]",
    ]
    paths.append(variant("d", train__epochs=5))
    paths.append(variant("e", train__epochs=6))
    assert [r["method"] for r in report(read_runs([paths[0], *paths[3:]]), "none")["rows"]] == [
        "uw [train.epochs=3]",
        "uw [train.epochs=5]",
        "uw [train.epochs=6]",
    ]
    paths.append(variant("f", weighting__lr=0.4))
    labels = [r["method"] for r in report(read_runs([paths[0], paths[3], paths[5]]), "none")["rows"]]
    assert labels == ["uw", "uw [train.epochs=5]", "uw [lr=0.4]"]


def test_runs_of_an_older_version_are_seeds_of_the_same_method(tmp_path: Path) -> None:
    """A key that a run does not have counts as null, zero or empty, which is what new keys begin with."""
    older = fake(tmp_path / "0", "ew", 0, SINGLE)
    newer = fake(tmp_path / "1", "ew", 1, SINGLE, train__diagnostics_every=None, data__extra_batches=0)
    other = fake(tmp_path / "2", "ew", 2, SINGLE, train__diagnostics_every=5)
    made = report(read_runs([older, newer, other]), "none")
    assert [(row["method"], row["seeds"]) for row in made["rows"]] == [
        ("ew [train.diagnostics_every=null]", [0, 1]),
        ("ew [train.diagnostics_every=5]", [2]),
    ]


def test_comparing_forty_runs_needs_no_torch(tmp_path: Path) -> None:
    paths = [str(fake(tmp_path / f"{n}", "ew", n, SINGLE)) for n in range(40)]
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from mtlcli.comparison.report import report\nfrom mtlcli.comparison.finished import read_run\n"
        "assert report([read_run(Path(p)) for p in sys.argv[1:]], 'ew')['rows'][0]['tasks']['a']['auroc']['n'] == 40\n"
        "assert not {'torch', 'polars', 'rich', 'matplotlib', 'scipy.stats'} & set(sys.modules), 'slow'"
    )
    done = subprocess.run([sys.executable, "-c", script, *paths], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
