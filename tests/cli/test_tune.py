"""`mtl compare --tune N`: as many trials for every method, chosen on val, the same however often it is interrupted."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import Background, Mtl
from test_sweep import means, runs_in, trained

from mtlcli import recipe as recipes
from mtlcli.comparison.improvement import delta_m
from mtlcli.runs import Run, lock
from mtlcli.sweep import study

SMALL = ["--set", "train.epochs=1", "--set", "data.rows=48", "--jobs", "2", "--json"]
LR = "optimizer.lr"


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take seconds to draw, and have tests of their own."""
    monkeypatch.setattr("mtlcli.comparison.figures.write_figures", lambda *arguments: [])


def tune(mtl: Mtl, methods: str, trials: int, *arguments: str, code: int = 0) -> dict[str, Any]:
    """The report of a small tuned comparison in `sweep`."""
    words = ["compare", "toy.yaml", "--methods", methods, "--tune", str(trials), "--seeds", "0", "--out", "sweep"]
    done = mtl(*words, *SMALL, "--baseline", "none", *arguments)
    assert done.code == code, done.err
    report: dict[str, Any] = json.loads(done.out)
    return report


def trials_of(name: str) -> list[recipes.Recipe]:
    """The recipes of a study's trials, in order."""
    return [recipes.load(file) for file in sorted(Path("sweep/tune", name).glob("trial-*/recipe.yaml"))]


def test_every_method_gets_the_same_trials_and_is_compared_with_its_best(mtl: Mtl) -> None:
    report = tune(mtl, "ew,dwa+cagrad", 2)
    studies = report["tuning"]
    assert set(studies) == {"ew", "dwa+cagrad", "si", "constant"}
    assert {row["method"] for row in report["rows"]} == set(studies)
    assert {(about["trials"], about["failed"]) for about in studies.values()} == {(2, 0)}
    assert all(about["val_delta_m"] <= 0 for about in studies.values())
    assert set(studies["ew"]["searched"]) == {LR}
    assert studies["ew"]["searched"][LR] == {"low": 0.001, "high": 0.1, "log": True}
    assert set(studies["dwa+cagrad"]["searched"]) == {LR, "weighting.loss.temperature", "weighting.gradient.c"}
    weights = {f"weighting.loss.weights.{task}" for task in ("yes", "which", "amount")}
    assert set(studies["constant"]["values"]) == {LR, *weights}

    # The first trial has the recipe's own values, and the table those of the best one on val.
    first, second = trials_of("dwa+cagrad")
    own = recipes.load(Path("toy.yaml"), ["train.epochs=1", "data.rows=48"])
    assert (first.optimizer, first.train.seed) == (own.optimizer, 0)
    assert (first.loss.options.temperature, first.gradient.options.c) == (2, 0.4)
    assert second.loss.options.temperature != 2
    scores = [study.val_scores(Run(Path(f"sweep/tune/ew/trial-00{k}"))) for k in (0, 1)]
    values = [{(task, name): value for task, name, value, _ in each} for each in scores]
    about = {(task, name): {"higher_is_better": higher} for task, name, _, higher in scores[0]}
    base = {metric: value for metric, value in values[0].items() if value}
    found = [delta_m(each, base, about) for each in values]
    assert studies["ew"]["val_delta_m"] == min(0, *(score for score in found if score is not None))
    # An epoch whose record is lost is scored again.
    run = Run(Path("sweep/tune/ew/trial-001"))
    run.events_file.write_text("")
    again = {(task, name): value for task, name, value, _ in study.val_scores(run)}
    assert again == pytest.approx(values[1], abs=1e-6)
    for row in report["rows"]:
        (path,) = row["runs"]
        settings = recipes.load(Path("sweep", path, "recipe.yaml"))
        assert settings.optimizer.options.lr == studies[row["method"]]["values"][LR]

    notes = " ".join(report["notes"])
    assert "were tuned, with 2 trials for every method" in notes
    assert "differ in more than" not in notes
    for form in ("md", "tex", "html"):
        text = Path(f"sweep/report.{form}").read_text().replace("\\", "")
        assert "tuned ew: optimizer.lr=" in text
        assert "(0.001 to 0.1, log)" in text


def test_trials_are_never_repeated_and_more_may_follow(mtl: Mtl) -> None:
    report = tune(mtl, "ew", 2)
    kept = trained("sweep")
    assert tune(mtl, "ew", 2) == report
    assert trained("sweep").keys() == kept.keys()
    journal = Path("sweep/tune/journal.log")
    lines = journal.read_text()

    more = tune(mtl, "ew", 3)
    assert journal.read_text().startswith(lines)
    assert more["tuning"]["ew"]["trials"] == 3
    assert more["tuning"]["ew"]["val_delta_m"] <= report["tuning"]["ew"]["val_delta_m"]
    assert len(trials_of("ew")) == 3
    files = {path: time for path, time in kept.items() if path.name != "journal.log" and path.is_file()}
    assert files.items() <= trained("sweep").items()
    assert tune(mtl, "ew", 1)["tuning"]["ew"]["values"] == {LR: 0.01}

    # As a folder of runs, a comparison holds no trials, unless these are named.
    alone = json.loads(mtl("compare", "sweep", "--json").out)
    assert not any("/tune/" in run for row in alone["rows"] for run in row["runs"])
    assert json.loads(mtl("compare", "sweep/tune", "--json").out)["rows"]

    for arguments, words in (
        (["--seeds", "1"], "sweep/tune/ew: was tuned with another recipe, seed or search space (there -> now):"),
        (["--set", "optimizer.lr=0.5"], "sweep: belongs to a comparison whose recipe differs"),
    ):
        other = mtl("compare", "toy.yaml", "--tune", "1", "--baseline", "none", "--out", "sweep", *SMALL, *arguments)
        assert other.code == 2
        assert words in other.err
    again = ["compare", "toy.yaml", "--tune", "1", "--seeds", "0", "--baseline", "none", "--out", "sweep", *SMALL]
    with lock(Path("sweep/tune"), "busy"):
        assert "sweep/tune: another process is tuning there; wait for it, or stop it" in mtl(*again).err
    journal.write_text(lines.replace("{", "", 1))
    damaged = mtl(*again)
    assert damaged.code == 2
    assert "sweep/tune/journal.log: is damaged" in damaged.err


def test_single_tasks_are_tuned_too(mtl: Mtl) -> None:
    arguments = ["compare", "toy.yaml", "--set", "data.tasks=[yes, amount]", "--tune", "2", "--seeds", "0", *SMALL]
    done = mtl(*arguments)
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert {"single_task yes", "single_task amount"} <= set(report["tuning"])
    assert report["tuning"]["single_task yes"]["searched"].keys() == {LR}
    assert report["rows"][0]["method"] == report["baseline"] == "single_task"


def test_a_failed_trial_is_said_and_never_chosen(mtl: Mtl) -> None:
    report = tune(mtl, "breaks,fragile", 2, "--set", "data.rows=96", code=1)
    assert report["tuning"]["fragile"] | {"searched": {}} == {
        "trials": 2,
        "failed": 1,
        "values": {LR: 0.01, "weighting.loss.strength": 1.0},
        "val_delta_m": 0,
        "searched": {},
    }
    assert report["tuning"]["breaks"]["failed"] == 2
    rows = {row["method"]: row for row in report["rows"]}
    assert rows["fragile"]["seeds"] == [0]
    why = "all 2 trials failed; the first: RuntimeError: broken on purpose"
    assert rows["breaks"]["failed"] == [{"seed": 0, "error": why}]
    assert "1 of them failed" in Path("sweep/report.md").read_text()


def test_an_interrupted_search_ends_like_an_uninterrupted_one(mtl: Mtl, background: Callable[..., Background]) -> None:
    """Ctrl-C in the middle of a trial, and half a line at the end of the journal; the weighting declares nothing."""
    words = ["compare", "toy.yaml", "--methods", "slow", "--tune", "3", "--seeds", "0", "--baseline", "none", *SMALL]
    trial = Run(Path("sweep/tune/slow/trial-001"))
    process = background(*words, "--out", "sweep", SLOW_STEP="0.5")
    process.until(lambda: any(event["event"] == "StepDone" for event in trial.events()), seconds=120)
    os.killpg(process.process.pid, signal.SIGINT)
    assert process.wait() == 130
    assert "trials are not over. The same command goes on with them." in process.output()
    assert "Traceback" not in process.output()
    assert not Path("sweep/report.json").exists()
    with Path("sweep/tune/journal.log").open("a") as journal:
        journal.write('{"op_code":')
    done, whole = (mtl(*words, "--out", out) for out in ("sweep", "whole"))
    assert done.code == 0, done.err
    one, other = json.loads(done.out), json.loads(whole.out)
    assert one["tuning"] == other["tuning"]
    assert one["tuning"]["slow"]["searched"].keys() == {LR}
    assert means(one) == means(other)
    assert runs_in("sweep").keys() == runs_in("whole").keys()
    assert [event["resumed"] for event in trial.events() if event["event"] == "Started"] == [False, True]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tune", "0"], "Invalid value for '--tune'"),
        (["--tune", "many"], "Invalid value for '--tune'"),
    ],
    ids=str,
)
def test_what_is_no_number_of_trials(mtl: Mtl, arguments: list[str], words: str) -> None:
    done = mtl("compare", "toy.yaml", *arguments)
    assert (done.code, done.out) == (2, "")
    assert words in done.err


def test_without_optuna_nothing_begins(mtl: Mtl, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("mtlcli.extras.find_spec", lambda name: None if name == "optuna" else find(name))
    done = mtl("compare", "toy.yaml", "--tune", "2", "--out", "sweep")
    assert (done.code, done.out) == (2, "")
    assert "needs the package optuna, which is not installed: pip install 'mtlcli[tune]'" in done.err
    assert not Path("sweep").exists()


def test_the_page_of_a_method_says_where_it_is_searched(mtl: Mtl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert "a number > 0; searched: 0.5 to 10, log" in mtl("list", "losses", "dwa").out
    page = json.loads(mtl("list", "losses", "dwa", "--json").out)
    assert [option["searched"] for option in page["options"]] == [{"low": 0.5, "high": 10.0, "log": True}, None, None]
