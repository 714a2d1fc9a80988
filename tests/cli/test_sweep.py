"""`mtl compare RECIPE`: methods x seeds and single tasks, each trained once, whatever happens in between."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import Background, Mtl

from mtlcli import recipe as recipes
from mtlcli.runs import Run
from mtlcli.sweep import execute, plan

SLOW = ["compare", "toy.yaml", "--methods", "slow,slow+pcgrad", "--seeds", "0,1", "--set", "train.epochs=4"]
FAST = ["--set", "train.epochs=1", "--set", "data.rows=48"]


def runs_in(folder: str) -> dict[str, Run]:
    # Runs are made under a hidden name and moved; `rglob` would stumble over one that is being moved.
    found = [Path(above) for above, _, files in os.walk(folder) if "run.json" in files and "/." not in above]
    return {str(path.relative_to(folder)): Run(path) for path in found}


def trained(folder: str) -> dict[Path, int]:
    """When every file was written last; the report's are written each time."""
    reports = [Path(folder, "figures"), *Path(folder, "figures").rglob("*"), *Path(folder).glob("report.*")]
    return {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*") if path not in reports}


def means(report: dict[str, Any]) -> dict[str, float]:
    return {
        f"{row['method']}.{task}.{name}": about["mean"]
        for row in report["rows"]
        for task, metrics in row["tasks"].items()
        for name, about in metrics.items()
    }


def test_a_recipe_becomes_a_table(mtl: Mtl) -> None:
    arguments = ["compare", "toy.yaml", "--methods", "ew,+pcgrad,uw", "--seeds", "0,1", "--out", "sweep", *FAST]
    done = mtl(*arguments, "--jobs", "2")
    assert done.code == 0, done.err
    assert "\x1b" not in done.out
    assert "12 runs in sweep" in done.out
    assert "[12/12] " in done.out
    assert {f"single_task/{task}/seed-{seed}" for task in ("yes", "which", "amount") for seed in (0, 1)} | {
        f"{method}/seed-{seed}" for method in ("ew", "ew+pcgrad", "uw") for seed in (0, 1)
    } == set(runs_in("sweep"))
    report = json.loads(Path("sweep/report.json").read_text())
    assert {"schema_version", "dataset", "fingerprint", "baseline", "reference", "metrics", "rows", "notes"} <= set(
        report
    )
    assert report["baseline"] == "single_task"
    assert [(row["method"], row["seeds"]) for row in report["rows"]] == [
        (method, [0, 1]) for method in ("single_task", "ew", "ew+pcgrad", "uw")
    ]
    for row in report["rows"]:
        assert {"method", "seeds", "tasks", "delta_m", "delta_p", "mean_rank", "cost"} <= set(row)
        assert all(Path("sweep", run, "result.json").exists() for run in row["runs"])
        assert {"seconds", "step_ms_median", "peak_mib"} <= set(row["cost"])
        assert row["tasks"]["yes"]["auroc"]["n"] == 2

    # The same again trains nothing; more methods and seeds are added; other baselines are only another reading.
    before = trained("sweep")
    again = mtl(*arguments, "--json")
    assert json.loads(again.out) == report
    assert trained("sweep") == before
    more = mtl("compare", "toy.yaml", "--methods", "ew,dwa", "--seeds", "0,2", "--out", "sweep", *FAST, "--json")
    assert more.code == 0, more.err
    assert "4 runs were finished already: single_task yes seed 0; " in more.err
    assert re.findall(r"\[(\d+)/10\]", more.err) == [str(number) for number in range(5, 11)]
    assert [(row["method"], row["seeds"]) for row in json.loads(more.out)["rows"]] == [
        (method, [0, 2]) for method in ("single_task", "ew", "dwa")
    ]
    assert before.items() <= trained("sweep").items() | {(p, t) for p, t in before.items() if p.is_dir()}
    none = json.loads(mtl(*arguments, "--baseline", "none", "--json").out)
    assert none["baseline"] is None
    assert [(row["method"], row["delta_m"]) for row in none["rows"]] == [(m, None) for m in ("ew", "ew+pcgrad", "uw")]
    named = json.loads(mtl(*arguments, "--baseline", "+pcgrad", "--json").out)
    assert named["baseline"] == "ew+pcgrad"
    assert named["rows"][1]["delta_p"]["mean"] == pytest.approx(0, abs=1e-9)
    one = json.loads(mtl("compare", "toy.yaml", "--seeds", "0", "--out", "sweep", *FAST, "--json").out)
    assert one["rows"][1]["tasks"]["yes"]["auroc"]["std"] is None
    assert one["rows"][1]["delta_m"]["std"] is None

    # The finished directories give the same table, without the recipe.
    folders = [run.path for run in runs_in("sweep").values() if not run.path.name.endswith("2")]
    read = json.loads(mtl("compare", *(f for f in folders if "dwa" not in str(f)), "--json").out)
    assert means(read) == means(report)

    changed = mtl("compare", "toy.yaml", "--out", "sweep", *FAST, "--set", "optimizer.lr=0.5")
    assert changed.code == 2
    assert "sweep: belongs to a comparison whose recipe differs in more than methods and seeds" in changed.err
    assert "  optimizer.lr: 0.01 -> 0.5\nName another --out" in changed.err
    elsewhere = mtl("compare", "toy.yaml", "--seeds", "0", "--baseline", "none", *FAST, "--json")
    assert elsewhere.code == 0
    assert set(runs_in("runs/compare-toy")) == {"ew/seed-0"}


def test_several_recipes_are_several_methods(mtl: Mtl) -> None:
    """Each with its own options and held-out rows; what else they say must be the same."""
    text = Path("toy.yaml").read_text()
    line = next(line for line in text.splitlines() if line.startswith("weighting:"))
    Path("one.yaml").write_text(text.replace(line, "weighting: {loss: {name: dwa, temperature: 3}}"))
    Path("two.yaml").write_text(
        text.replace(line, "weighting: {loss: {name: slgrad, main: which}}").replace("toy,", "toy, held_out: 0.2,")
    )
    both = ["compare", "one.yaml", "two.yaml", "--seeds", "0,1", "--out", "sweep", *FAST, "--json"]
    done = mtl(*both)
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert [(row["method"], row["seeds"]) for row in report["rows"]] == [
        (method, [0, 1]) for method in ("single_task", "dwa", "slgrad")
    ]
    assert any("differ in more than the method and the seed: data.held_out" in note for note in report["notes"])
    kept = {name: recipes.load(run.recipe_file) for name, run in runs_in("sweep").items()}
    assert {r.data.held_out for name, r in kept.items() if name.startswith("slgrad")} == {0.2}
    assert {r.data.held_out for name, r in kept.items() if not name.startswith("slgrad")} == {0.0}
    assert [r.loss.options.temperature for name, r in kept.items() if name.startswith("dwa")] == [3, 3]
    before = trained("sweep")
    assert mtl(*both).code == 0
    assert trained("sweep") == before

    Path("three.yaml").write_text(text.replace("lr: 0.01", "lr: 0.5"))
    other = mtl("compare", "one.yaml", "three.yaml", "two.yaml", "--seeds", "0", *FAST)
    assert other.code == 2
    assert "three.yaml: optimizer.lr: 0.01 -> 0.5" in other.err
    assert "two.yaml:" not in other.err
    again = mtl("compare", "one.yaml", "one.yaml", *FAST)
    assert "one.yaml: is the same method as one.yaml; leave one out" in again.err
    chosen = mtl("compare", "one.yaml", "two.yaml", "--methods", "ew", *FAST)
    assert "--methods goes with one recipe" in chosen.err


def test_baselines_stay_in_the_folder_whatever_tasks_are_called() -> None:
    recipe = recipes.load(Path("toy.yaml"))
    known = plan.Known(("/tmp/x", "a/seed-0", "a", "50%2F"), "sha256:0")
    paths = [planned.path for planned in plan.plan(recipe, [recipe], [0], True, known) if planned.method != "ew"]
    assert [path.parts for path in paths] == [
        ("single_task", folder, "seed-0") for folder in ("%2Ftmp%2Fx", "a%2Fseed-0", "a", "50%252F")
    ]


def test_options_of_the_recipe_are_kept_and_told_apart(mtl: Mtl) -> None:
    recipe = recipes.load(
        Path("toy.yaml"), ["weighting={loss: {name: dwa, temperature: 3}, gradient: {name: mgda, every: 2}}"]
    )
    rivals = plan.rivals(recipe, plan.parse_methods("dwa+mgda,dwa,+graddrop", recipe))
    base = {p.label: p for p in plan.plan(recipe, rivals, [0], True)}
    assert base["dwa+mgda"].recipe.loss.options.temperature == 3
    assert base["dwa"].recipe.loss.options.temperature == 3
    assert base["dwa+mgda"].recipe.gradient_engine.every == 2
    assert base["ew+graddrop"].recipe.gradient_engine.every == 1
    assert base["single_task yes"].recipe.method == "ew"
    assert str(base["single_task yes"].path) == "single_task/yes/seed-0"
    assert str(base["dwa+mgda"].path).startswith("dwa+mgda-")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--methods", "igbv1"], "--methods: 'igbv1': no loss weighting 'igbv1'; did you mean 'igb_v1'?"),
        (["--methods", "nash"], "--methods: 'nash': no loss weighting 'nash'; did you mean '+nash_mtl'?"),
        (["--methods", "pcgrad"], "'pcgrad' is a gradient weighting: write +pcgrad, or LOSS+pcgrad"),
        (["--methods", "+uw"], "'uw' is a loss weighting: write uw, or uw+GRADIENT"),
        (["--methods", "ew+pcgard"], "no gradient weighting 'pcgard'; did you mean 'pcgrad'?"),
        (["--methods", "ew,uw,ew+sum"], "--methods: 'ew+sum' is given twice"),
        (["--methods", "ew,,uw"], "--methods: '': should be LOSS, +GRADIENT or LOSS+GRADIENT"),
        (["--methods", ""], "should be LOSS, +GRADIENT or LOSS+GRADIENT"),
        (["--methods", "constant"], "toy.yaml (method constant): weighting.loss.weights: is required"),
        (["--seeds", "1,2,1"], "--seeds 1,2,1: 1 is given twice"),
        (["--seeds", "-1"], "should be whole numbers from 0 to 2147483647"),
        (["--seeds", "1.5"], "found '1.5'"),
        (["--seeds", "a"], "found 'a'"),
        (["--seeds", ""], "found ''"),
        (["--seeds", "²"], "found '²'"),
        (["--seeds", "2147483648"], "found '2147483648'"),
        (["--baseline", "uw"], "--baseline uw: should be one of single_task, none, ew"),
        (["--baseline", "single-task"], "did you mean 'single_task'?"),
        (["--set", "data.tasks=[yes]", "--baseline", "single_task"], "the recipe has one task only"),
        (["--jobs", "0"], "Invalid value for '--jobs'"),
        (["--jobs", "many"], "Invalid value for '--jobs'"),
        (["--out", "toy.yaml"], "toy.yaml: exists and was not made by mtl compare"),
        (["--out", "other"], "other: exists and was not made by mtl compare"),
        (["--out", "toy.yaml/x"], "toy.yaml/x: cannot be written: Not a directory"),
        (["other.yaml"], "other.yaml: no such file"),
        (["other"], "toy.yaml: is a file; compare takes recipes, or run directories, not both"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_compared(mtl: Mtl, arguments: list[str], words: str) -> None:
    Path("other").mkdir()
    Path("other/notes.txt").touch()
    before = sorted(Path().rglob("*"))
    done = mtl("compare", "toy.yaml", *arguments)
    assert done.code == 2
    assert done.out == ""
    assert words in done.err
    assert "Traceback" not in done.err
    assert sorted(Path().rglob("*")) == before


def test_a_failing_run_is_a_row_with_its_reason(mtl: Mtl) -> None:
    done = mtl("compare", "toy.yaml", "--methods", "breaks,ew", "--seeds", "0,1", "--out", "sweep", "--json")
    assert done.code == 1
    report = json.loads(done.out)
    rows = {row["method"]: row for row in report["rows"]}
    assert rows["ew"]["seeds"] == [0, 1]
    assert rows["ew"]["delta_m"]["mean"] is not None
    assert rows["breaks"]["seeds"] == []
    assert rows["breaks"]["failed"] == [{"seed": s, "error": "RuntimeError: broken on purpose"} for s in (0, 1)]
    assert "failed: breaks, seed 0: RuntimeError: broken on purpose" in done.err
    assert Run(Path("sweep/breaks/seed-0")).info()["status"] == "failed"
    assert json.loads(Path("sweep/report.json").read_text()) == report


def test_a_baseline_that_fails_costs_the_deltas_alone(mtl: Mtl) -> None:
    done = mtl("compare", "toy.yaml", "--methods", "breaks,ew", "--seeds", "0", "--baseline", "breaks", "--json")
    assert done.code == 1
    report = json.loads(done.out)
    assert report["baseline"] is None
    assert "the baseline breaks did not finish, so delta_m and delta_p are not known" in report["notes"]


def test_nothing_but_failures_says_why(mtl: Mtl) -> None:
    done = mtl("compare", "toy.yaml", "--seeds", "0", "--out", "sweep", "--set", "data.break_at=40", "--json")
    assert done.code == 1
    assert done.out == ""
    assert "sweep: no method has a finished run, so there is nothing to compare" in done.err
    assert "\n  single_task amount, seed 0: task 'amount': its loss became inf" in done.err
    assert "\n  ew, seed 0: task 'amount': its loss became inf" in done.err
    assert Run(Path("sweep/single_task/yes/seed-0")).info()["status"] == "finished"


@pytest.mark.parametrize("name", ["run.json", "recipe.yaml"])
def test_a_damaged_run_costs_its_own_row_alone(mtl: Mtl, name: str) -> None:
    arguments = ["compare", "toy.yaml", "--methods", "ew,uw", "--baseline", "none", "--out", "sweep", *FAST, "--json"]
    assert mtl(*arguments, "--seeds", "0").code == 0
    Path("sweep/uw/seed-0", name).write_text("{")
    done = mtl(*arguments, "--seeds", "0,1")
    assert done.code == 1, done.err
    rows = {row["method"]: row for row in json.loads(done.out)["rows"]}
    assert (rows["ew"]["seeds"], rows["uw"]["seeds"]) == ([0, 1], [1])
    (failed,) = rows["uw"]["failed"]
    assert failed["seed"] == 0
    assert f"sweep/uw/seed-0/{name}" in failed["error"]


def test_a_table_that_damage_leaves_nothing_for_says_what_is_damaged(mtl: Mtl) -> None:
    arguments = ["compare", "toy.yaml", "--seeds", "0", "--out", "sweep", *FAST, "--json"]
    assert mtl(*arguments).code == 0
    Path("sweep/ew/seed-0/result.json").write_text("")
    done = mtl(*arguments)
    assert (done.code, done.out) == (2, "")
    assert "error: left out: sweep/ew/seed-0/result.json: is damaged" in done.err


def test_a_finished_run_of_another_recipe_is_not_taken_for_ours(mtl: Mtl) -> None:
    arguments = ["compare", "toy.yaml", "--seeds", "0", "--baseline", "none", "--out", "sweep", *FAST]
    assert mtl(*arguments).code == 0
    file = Path("sweep/ew/seed-0/recipe.yaml")
    file.write_text(file.read_text().replace("lr: 0.01", "lr: 0.5"))
    done = mtl(*arguments)
    assert done.code == 2
    assert (
        "sweep/ew/seed-0: holds a finished run of another recipe (there -> now):\n  optimizer.lr: 0.5 -> 0.01"
        in done.err
    )


def test_data_that_changed_are_seen_before_anything_is_trained(mtl: Mtl) -> None:
    arguments = ["compare", "toy.yaml", "--seeds", "0", "--out", "sweep", *FAST]
    assert mtl(*arguments).code == 0
    file = Path("sweep/ew/seed-0/result.json")
    file.write_text(file.read_text().replace('"fingerprint": "sha256:', '"fingerprint": "sha256:0'))
    before = trained("sweep")
    done = mtl(*arguments, "--methods", "ew,uw")
    assert done.code == 2
    assert "sweep/ew/seed-0: is a finished run on other data than the recipe gives now (sha256:0" in done.err
    assert "Name another --out" in done.err
    assert trained("sweep") == before


def test_two_sweeps_on_one_folder_train_each_run_once() -> None:
    """Both start at once; what one trains, the other waits for."""
    recipe = recipes.load(Path("toy.yaml"), ["train.epochs=1"])
    methods = plan.parse_methods("ew,uw,dwa", recipe)
    planned = plan.plan(recipe, plan.rivals(recipe, methods), [0, 1], False)
    ended: list[list[execute.Progress]] = []

    def go() -> None:
        local = execute.choose_launcher("local", [], 2)
        ended.append(execute.run_all(planned, local, Path(), lambda: False, lambda progress: None))

    threads = [threading.Thread(target=go) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [p.status for progress in ended for p in progress] == ["finished"] * 12
    for each in planned:
        started = [event for event in Run(each.path).events() if event["event"] == "Started"]
        assert len(started) == 1, each.path


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_sweep_is_completed_by_the_same_command(
    mtl: Mtl, background: Callable[..., Background], number: int
) -> None:
    process = background(*SLOW, "--jobs", "2", "--out", "sweep", SLOW_STEP="1.5")

    def training() -> list[int]:
        """Processes that are past their first step: none is still on its way to a run of its own."""
        found = [run for run in runs_in("sweep").values() if run.info()["status"] == "running"]
        return [run.info()["pid"] for run in found if any(e["event"] == "StepDone" for e in run.events())]

    process.until(lambda: len(training()) == 2, seconds=120)
    workers = training()
    if number == signal.SIGINT:  # Ctrl-C reaches the whole group
        os.killpg(process.process.pid, number)
        assert process.wait() == 130
        assert "The same command goes on with them." in process.output()
        assert "Traceback" not in process.output()
    else:
        process.signal(number)
        assert process.wait() == 137
    end = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < end, "orphans"
        time.sleep(0.05)
    left = {name: run for name, run in runs_in("sweep").items() if run.info()["status"] != "finished"}
    assert left
    assert {run.info()["status"] for run in left.values()} == {"interrupted"}
    assert all(run.last.exists() for run in left.values())

    done = mtl(*SLOW, "--out", "sweep", "--json")
    assert done.code == 0, done.err
    whole = mtl(*SLOW, "--out", "whole", "--json")
    assert means(json.loads(done.out)) == pytest.approx(means(json.loads(whole.out)), abs=1e-6)
    kept = {
        name: [e["resumed"] for e in run.events() if e["event"] == "Started"] for name, run in runs_in("sweep").items()
    }
    assert all(kept[name] == [False, True] for name in left)
    assert all(kept[name] == [False] for name in kept if name not in left)
