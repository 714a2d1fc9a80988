"""Signals, kills and full disks: the run directory stays readable, and --resume ends where an undisturbed run ends."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import SLOW, Background, Mtl, same, steps

from mtlcli.engine.checkpoints import read_checkpoint
from mtlcli.runs import Run


def resumed(mtl: Mtl, *arguments: object) -> dict[str, Any]:
    done = mtl("train", *arguments, "--resume", "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)


def assert_every_line_parses(run: Run) -> None:
    for line in run.events_file.read_text().splitlines():
        json.loads(line)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_saves_and_resume_ends_alike(
    mtl: Mtl, background: Callable[..., Background], undisturbed: dict[str, Any], number: int, code: int
) -> None:
    run = Run(Path("cut"))
    process = background("train", "toy.yaml", *SLOW, "--out", "cut", SLOW_STEP="0.1")
    process.until(lambda: len(steps(run)) >= 4)
    process.signal(number)
    assert process.wait() == code
    assert run.info()["status"] == "interrupted"
    clock = read_checkpoint(run.last)["clock"]
    assert clock["step"] == max(steps(run)) + 1, "a step was lost"
    assert clock["step"] % 3, "the test should stop in the middle of an epoch"
    said = process.output().splitlines()[-1]
    assert (
        said == f"error: stopped by signal {number}; state saved in cut; go on with: mtl train cut/recipe.yaml --resume"
    )
    assert same(resumed(mtl, "cut/recipe.yaml"), undisturbed)
    assert run.info()["status"] == "finished"
    assert_every_line_parses(run)
    assert steps(run) == list(range(12))


def test_a_resumed_run_says_where_it_goes_on(mtl: Mtl) -> None:
    assert mtl("train", "toy.yaml", "--out", "run").code == 0
    run = Run(Path("run"))
    run.result_file.unlink()
    run.update_info(status="interrupted", ranks=4, device="cuda:3")
    assert mtl("train", "toy.yaml", "--out", "run", "--resume", "--device", "cpu").code == 0
    info = run.info()
    assert (info["status"], info["ranks"], info["device"]) == ("finished", 1, "cpu")


def test_a_result_that_was_lost_is_made_again(mtl: Mtl) -> None:
    first = json.loads(mtl("train", "toy.yaml", "--out", "cut", "--json").out)
    Run(Path("cut")).result_file.unlink()
    assert same(resumed(mtl, "cut/recipe.yaml"), first)


def test_a_second_signal_ends_at_once(background: Callable[..., Background]) -> None:
    run = Run(Path("cut"))
    process = background("train", "toy.yaml", *SLOW, "--out", "cut", SLOW_STEP="30")
    process.until(run.last.exists)
    process.signal(signal.SIGTERM)
    time.sleep(0.5)  # two that come together are one
    assert process.process.is_alive()
    process.signal(signal.SIGTERM)
    assert process.wait(10) == 143
    assert run.info()["status"] == "running"
    assert not run.is_locked()


def test_a_signal_before_training_leaves_nothing_broken(
    mtl: Mtl, background: Callable[..., Background], undisturbed: dict[str, Any]
) -> None:
    run = Run(Path("cut"))
    process = background("train", "toy.yaml", *SLOW, "--out", "cut", SLOW_START="0.5")
    process.until(run.info_file.exists)
    process.signal(signal.SIGTERM)
    assert process.wait() == 143
    assert same(resumed(mtl, "cut/recipe.yaml"), undisturbed)


# -- kill -9 -----------------------------------------------------------------------------------------------------------


def killed(background: Callable[..., Background], when: Callable[[Run], object], **environment: str) -> Run:
    run = Run(Path("cut"))
    process = background("train", "toy.yaml", *SLOW, "--out", "cut", **environment)
    process.until(lambda: when(run))
    process.signal(signal.SIGKILL)
    assert process.wait() == 137
    return run


@pytest.mark.parametrize(
    ("when", "environment"),
    [
        (lambda run: run.info_file.exists() and not run.last.exists(), {"SLOW_START": "5"}),
        (lambda run: len(steps(run)) >= 5, {"SLOW_STEP": "0.1"}),
        (lambda run: any(e["event"] == "EpochDone" for e in run.events()), {"SLOW_STEP": "0.05"}),
    ],
    ids=["before the first checkpoint", "in the middle of an epoch", "at an epoch's end"],
)
def test_a_kill_costs_no_more_than_the_steps_since_the_checkpoint(
    mtl: Mtl,
    background: Callable[..., Background],
    undisturbed: dict[str, Any],
    when: Callable[[Run], object],
    environment: dict[str, str],
) -> None:
    run = killed(background, when, **environment)
    assert run.info()["status"] == "running"
    refused = mtl("compare", "cut")
    assert refused.code == 2
    assert "cut: has no result yet (it was killed); finish it with: mtl train cut/recipe.yaml --resume" in refused.err
    assert same(resumed(mtl, "toy.yaml", *SLOW, "--out", "cut"), undisturbed)
    assert_every_line_parses(run)


def test_a_kill_between_any_two_renames(
    mtl: Mtl, background: Callable[..., Background], undisturbed: dict[str, Any]
) -> None:
    """Every checkpoint and every record is written aside and renamed; the process ends right before each rename."""
    for number in range(1, 30):
        out = f"cut-{number}"
        process = background("train", "toy.yaml", *SLOW, "--out", out, KILL_AT_RENAME=str(number))
        code = process.wait()
        run = Run(Path(out))
        assert run.info()["status"] in ("running", "finished")
        if run.last.exists():
            read_checkpoint(run.last)
        assert same(resumed(mtl, f"{out}/recipe.yaml"), undisturbed), number
        assert not list(run.path.glob(".*.tmp")), "half-written files stay behind"
        if code == 0:
            break
        assert code == 137
    assert number > 8, "the run was to be killed many times"


def test_a_torn_line_is_cut_off(mtl: Mtl, undisturbed: dict[str, Any]) -> None:
    mtl("train", "toy.yaml", *SLOW, "--out", "cut")
    run = Run(Path("cut"))
    run.update_info(status="running")
    whole = run.events_file.read_text()
    run.events_file.write_text(whole + '{"event": "StepDone", "st')
    assert len(list(run.events())) == whole.count("\n")
    assert same(resumed(mtl, "cut/recipe.yaml"), undisturbed)
    assert_every_line_parses(run)
    assert run.events_file.read_text().startswith(whole)


# -- ways to resume ----------------------------------------------------------------------------------------------------


def test_plain_resume_takes_the_newest_numbered_run(
    mtl: Mtl, background: Callable[..., Background], undisturbed: dict[str, Any]
) -> None:
    assert mtl("train", "toy.yaml", "--quiet").code == 0
    process = background("train", "toy.yaml", *SLOW, SLOW_STEP="0.05")
    second = Run(Path("runs/toy-2"))
    process.until(lambda: len(steps(second)) > 3)
    process.signal(signal.SIGTERM)
    assert process.wait() == 143
    assert same(resumed(mtl, "toy.yaml", *SLOW), undisturbed)
    assert second.info()["status"] == "finished"
    assert not Path("runs/toy-3").exists()


def test_resume_begins_where_there_is_nothing(mtl: Mtl, undisturbed: dict[str, Any]) -> None:
    assert same(resumed(mtl, "toy.yaml", *SLOW, "--out", "new"), undisturbed)
    assert same(resumed(mtl, "toy.yaml", *SLOW), undisturbed)
    assert Path("runs/toy/result.json").exists()


def test_resuming_a_finished_run_reports_it(mtl: Mtl) -> None:
    first = mtl("train", "toy.yaml", "--out", "done", "--json")
    before = {path: path.stat().st_mtime_ns for path in Path("done").iterdir()}
    again = mtl("train", "toy.yaml", "--out", "done", "--resume", "--json")
    assert again.code == 0
    assert json.loads(again.out) == json.loads(first.out)
    assert "the run was finished already; nothing was trained" in again.err
    assert {path: path.stat().st_mtime_ns for path in Path("done").iterdir()} == before


def test_a_run_is_repeated_by_its_own_recipe(mtl: Mtl, undisturbed: dict[str, Any]) -> None:
    again = mtl("train", "whole/recipe.yaml", "--json")
    assert same(json.loads(again.out), undisturbed)
    assert Path("runs/whole/recipe.yaml").read_text() == Path("whole/recipe.yaml").read_text()


def test_a_changed_recipe_is_not_resumed(mtl: Mtl) -> None:
    mtl("train", "toy.yaml", "--out", "done")
    done = mtl(
        "train", "toy.yaml", "--out", "done", "--resume", "--set", "train.epochs=3", "--set", "model.encoder.widths=[4]"
    )
    assert done.code == 2
    assert "done: --resume needs the recipe that the run was started with; these keys differ (run -> now):" in done.err
    assert "  model.encoder.widths: [8] -> [4]\n  train.epochs: 2 -> 3\n" in done.err
    other = mtl("train", "toy.yaml", "--out", "done", "--resume", "--set", "optimizer=sgd")
    assert "  optimizer.name: 'adam' -> 'sgd'\n" in other.err
    assert "  optimizer.momentum: not set -> 0.0\n" in other.err


def test_a_run_in_training_is_refused(mtl: Mtl, background: Callable[..., Background]) -> None:
    run = Run(Path("busy"))
    process = background("train", "toy.yaml", *SLOW, "--out", "busy", SLOW_STEP="0.5")
    process.until(lambda: steps(run))
    done = mtl("train", "busy/recipe.yaml", "--resume")
    assert done.code == 2
    assert "busy: another process is training this run; wait for it, or stop it" in done.err
    assert "(another process is training it)" in mtl("compare", "busy").err
    process.signal(signal.SIGTERM)
    assert process.wait() == 143


def test_names_are_numbered_under_concurrency() -> None:
    made: list[Path] = []

    def create() -> None:
        made.append(Run.create(None, "quickstart", "data: {}\n", {"status": "running"}).path)

    threads = [threading.Thread(target=create) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {path.name for path in made} == {"quickstart", *(f"quickstart-{n}" for n in range(2, 13))}
    assert {path.name for path in Path("runs").iterdir()} == {path.name for path in made}
    latest = Run.latest("quickstart")
    assert latest is not None
    assert latest.path.name == "quickstart-12"


# -- folders and disks -------------------------------------------------------------------------------------------------


def test_where_a_run_cannot_be(mtl: Mtl) -> None:
    assert mtl("train", "toy.yaml", "--out", "done", "--quiet").code == 0
    Path("full").mkdir()
    Path("full/notes.txt").touch()
    for out, words in [
        ("done", "done: already holds a run; add --resume to go on with it, or name another --out"),
        ("full", "full: holds other files; name a folder that is empty or not there yet"),
        ("toy.yaml", "toy.yaml: is a file; name a folder"),
        ("toy.yaml/x", "toy.yaml/x: cannot be written: Not a directory"),
        ("/proc/mtl/x", "/proc/mtl/x: cannot be written: "),
    ]:
        before = sorted(Path().rglob("*"))
        done = mtl("train", "toy.yaml", "--out", out)
        assert done.code == 2
        assert words in done.err
        assert done.err.count("\n") == 1
        assert sorted(Path().rglob("*")) == before
    Path("empty").mkdir()
    assert mtl("train", "toy.yaml", "--out", "empty", "--quiet").code == 0


@pytest.mark.parametrize("call", [2, 4, 5, 8])
def test_a_full_disk_spares_the_last_checkpoint(
    mtl: Mtl, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """The disk refuses the n-th file and everything after it."""
    calls = 0
    fsync = os.fsync

    def full(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls >= call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        done = mtl("train", "toy.yaml", *SLOW, "--out", "cut")
    assert done.code == 1
    assert "cannot be written: No space left on device; what was saved before is untouched" in done.err
    assert done.err.count("\n") == 1
    run = Run(Path("cut"))
    assert not list(run.path.glob(".*.tmp"))
    if call > 2:
        read_checkpoint(run.last)
    assert same(resumed(mtl, "cut/recipe.yaml"), undisturbed)


def test_a_disk_too_full_for_a_checkpoint(
    mtl: Mtl, background: Callable[..., Background], undisturbed: dict[str, Any]
) -> None:
    """A real refusal in the middle of a write: no file may grow beyond what the first checkpoint took."""
    assert mtl("train", "toy.yaml", *SLOW, "--out", "probe").code == 0
    size = Run(Path("probe")).last.stat().st_size
    Path("limit.py").write_text(
        f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({size // 2}, {size // 2}))\n"
    )
    text = Path("toy.yaml").read_text()
    Path("small.yaml").write_text(text.replace("plugins: [", "plugins: [limit.py, "))
    process = background("train", "small.yaml", *SLOW, "--out", "cut")
    assert process.wait() == 1
    assert "cut/last.pt: cannot be written: File too large" in process.output()
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    Path("limit.py").write_text("")
    assert same(resumed(mtl, "small.yaml", *SLOW, "--out", "cut"), undisturbed)


def test_a_disk_too_full_for_an_event(mtl: Mtl) -> None:
    mtl("train", "toy.yaml", "--out", "cut")
    run = Run(Path("cut"))
    run.update_info(status="interrupted")
    run.events_file.unlink()
    run.events_file.symlink_to("/dev/full")
    done = mtl("train", "cut/recipe.yaml", "--resume")
    assert done.code == 1
    assert "cut/events.jsonl: cannot be written: No space left on device" in done.err
    read_checkpoint(run.last)


def test_a_failed_run_says_so(mtl: Mtl) -> None:
    done = mtl("train", "toy.yaml", "--set", "data.break_at=40", "--out", "broken")
    assert done.code == 1
    assert "task 'amount': its loss became inf at step" in done.err
    assert Run(Path("broken")).info()["status"] == "failed"
    assert "inf" in Run(Path("broken")).info()["error"]
