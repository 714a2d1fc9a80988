"""Runs of a comparison on Ray and through Slurm's submitit, against real ones on this machine."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from harness import Mtl

from mtlcli import recipe as recipes
from mtlcli.engine.train import Stop
from mtlcli.errors import MtlError
from mtlcli.registry import launchers
from mtlcli.runs import Run
from mtlcli.sweep import execute, plan
from mtlcli.sweep.launchers.slurm import Task

OTHERS = [("ray", ["cpus=0.5"]), ("slurm", ["cluster=local", "cpus=1"])]
pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray and submitit, which leave processes to end by themselves


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    """What they warn of when objects are collected is said within the test."""
    yield
    gc.collect()


def planned(methods: str, *overrides: str) -> list[plan.Planned]:
    recipe = recipes.load(Path("toy.yaml"), overrides)
    return plan.plan(recipe, plan.rivals(recipe, plan.parse_methods(methods, recipe)), [0], False)


def run(
    name: str, settings: list[str], runs: Sequence[plan.Planned], stopped: Callable[[], bool] = lambda: False
) -> tuple[list[execute.Progress], list[int]]:
    """How the runs ended, and which numbers of steps the first one was seen to have."""
    seen: list[int] = []
    launcher = execute.choose_launcher(name, settings, 2)
    progress = execute.run_all(runs, launcher, Path.cwd(), stopped, lambda p: seen.append(p[0].steps))
    return progress, seen


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """submitit ends its local jobs by an interrupt, which they inherit as ignored from tests in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("name", "settings"), OTHERS)
def test_runs_elsewhere_end_like_runs_here(name: str, settings: list[str]) -> None:
    """One that is fine and one that breaks; what is finished is not trained again."""
    pytest.importorskip(launchers.get(name).package or "")
    good, _ = runs = planned("ew,breaks", "train.epochs=1")
    progress, seen = run(name, settings, runs)
    assert [(p.status, p.error) for p in progress] == [
        ("finished", None),
        ("failed", "RuntimeError: broken on purpose"),
    ]
    assert seen[-1] == 3
    there = Run(good.path).result()["tasks"]
    assert [p.status for p in run(name, settings, [good])[0]] == ["finished"]
    assert len([e for e in Run(good.path).events() if e["event"] == "Started"]) == 1
    good.path.rename("there")
    assert [p.status for p in run("local", [], [good])[0]] == ["finished"]
    assert Run(good.path).result()["tasks"] == there


@pytest.mark.parametrize(("name", "settings"), OTHERS)
def test_runs_elsewhere_are_stopped_and_gone_on_with(
    name: str, settings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(launchers.get(name).package or "")
    monkeypatch.setenv("SLOW_STEP", "0.3")  # workers take over this process's environment
    (slow,) = runs = planned("slow", "train.epochs=40")

    def training() -> bool:
        return slow.path.exists() and any(e["event"] == "StepDone" for e in Run(slow.path).events())

    progress, _ = run(name, settings, runs, training)
    assert [p.status for p in progress] == ["interrupted"]
    assert Run(slow.path).info()["status"] == "interrupted"
    monkeypatch.setenv("SLOW_STEP", "0")
    progress, _ = run("local", [], runs)
    assert [p.status for p in progress] == ["finished"]
    assert [e["resumed"] for e in Run(slow.path).events() if e["event"] == "Started"] == [False, True]


def test_mistakes_are_told_before_anything_is_made(mtl: Mtl, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(Path().rglob("*"))
    for arguments, words in [
        (["--launcher", "rya"], "no launcher 'rya'; did you mean 'ray'?"),
        (["--launcher", "slurm", "--launcher-set", "partition"], "--launcher-set partition: should be KEY=VALUE"),
        (["--launcher", "slurm", "--launcher-set", "gpu=1"], "--launcher slurm: option gpu: unknown key; did you mean"),
        (["--address", "auto"], "--launcher local: option address: unknown key"),
    ]:
        done = mtl("compare", "toy.yaml", *arguments)
        assert done.code == 2
        assert words in done.err
    assert sorted(Path().rglob("*")) == before
    monkeypatch.setattr("mtlcli.extras.find_spec", lambda name: None)
    with pytest.raises(MtlError, match=r"needs the package ray, .* pip install 'mtlcli\[ray\]'"):
        execute.choose_launcher("ray", [], 1)


def test_a_cluster_that_is_not_there() -> None:
    pytest.importorskip("ray")
    launcher = execute.choose_launcher("ray", ["address=127.0.0.1:1"], 1)
    with pytest.raises(MtlError, match=r"--launcher ray: cannot reach Ray at 127\.0\.0\.1:1: "):
        execute.run_all(planned("ew"), launcher, Path.cwd(), lambda: False, lambda progress: None)


@pytest.mark.parametrize("training", [True, False])
def test_a_warned_slurm_job_saves_before_it_is_queued_again(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the handlers that submitit has put in place: one that queues it again, one that lets SIGTERM pass."""
    done: list[str] = []

    def perform(work: object, device: str) -> dict[str, str]:
        stop = Stop()
        if not training:
            os.kill(os.getpid(), signal.SIGUSR2)
            return {"status": "finished"}
        with stop.listening():
            for _ in range(2):  # the second one comes while it saves
                os.kill(os.getpid(), signal.SIGUSR2)
            done.append("saved" if stop.requested() else "lost")
        return {"status": "interrupted"}

    monkeypatch.setattr("mtlcli.sweep.worker.perform", perform)
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM)}
    try:
        signal.signal(signal.SIGUSR2, lambda number, frame: done.append("queued"))
        signal.signal(signal.SIGTERM, lambda number, frame: done.append("let pass"))
        Task()(None, os.getcwd())  # type: ignore[arg-type]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert done == (["saved", "queued"] if training else ["queued"])
