"""Closed pipes, full disks behind stdout and closed terminals: training goes on without its display."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import SLOW, Background, same, steps

from mtlcli.runs import Run


@pytest.mark.parametrize("where", ["a closed pipe", "/dev/full"])
def test_a_training_outlives_its_display(undisturbed: dict[str, Any], where: str) -> None:
    """Its events and its result go to the run directory, whoever looks."""
    command = [sys.executable, "-m", "mtlcli", "train", "toy.yaml", *SLOW, "--out", "unseen"]
    if where == "/dev/full":
        target = os.open(where, os.O_WRONLY)
    else:
        reader, target = os.pipe()
        os.close(reader)
    done = subprocess.run(command, stdout=target, stderr=subprocess.PIPE, text=True, check=False)
    os.close(target)
    run = Run(Path("unseen"))
    assert done.returncode == 0, done.stderr
    assert run.info()["status"] == "finished"
    assert same(run.result(), undisturbed)
    lost = "error: stdout cannot be written (No space left on device); going on without it\n"
    assert done.stderr == (lost if where == "/dev/full" else "")


def test_a_training_outlives_its_terminal(undisturbed: dict[str, Any]) -> None:
    """With a live view on it, and errors as well."""
    run = Run(Path("unseen"))
    seen, terminal = pty.openpty()
    command = [sys.executable, "-m", "mtlcli", "train", "toy.yaml", *SLOW, "--out", "unseen"]
    environment = {**os.environ, "SLOW_STEP": "0.2", "TERM": "xterm"}
    process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment)
    os.close(terminal)
    while not (run.info_file.exists() and len(steps(run)) >= 2):
        select.select([seen], [], [], 0.1)
        os.read(seen, 1 << 16)
    os.close(seen)
    assert process.wait(60) == 0
    assert run.info()["status"] == "finished"
    assert same(run.result(), undisturbed)


def test_other_commands_end_with_their_display() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "mtlcli", "list", "runs", "."], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode != 0


def test_under_nohup_a_closed_terminal_stops_nothing(background: Callable[..., Background]) -> None:
    run = Run(Path("cut"))
    process = background("train", "toy.yaml", *SLOW, "--out", "cut", SLOW_STEP="0.1", NOHUP="1")
    process.until(lambda: len(steps(run)) >= 4)
    process.signal(signal.SIGHUP)
    assert process.wait() == 0
    assert run.info()["status"] == "finished"
