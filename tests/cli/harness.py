"""How tests run the command line: in this process, or in a forked one where a signal or a kill is the point."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import toy

from mtlcli.cli import run
from mtlcli.runs import Run

PLUGIN = str(Path(__file__).with_name("plugin.py"))
RECIPE = f"""\
data: {{name: toy, batch_size: 32}}
model: {{encoder: {{name: mlp, widths: [8]}}}}
weighting: {{loss: ew, gradient: sum}}
optimizer: {{name: adam, lr: 0.01}}
schedule: {{name: constant}}
train: {{epochs: 2, log_every_steps: 1}}
plugins: [{toy.PLUGIN}, {PLUGIN}]
"""

SLOW = ["--set", "weighting.loss=slow", "--set", "train.epochs=4"]  # 3 steps an epoch


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


Mtl = Callable[..., Done]  # `mtl ARGUMENTS...` in this process


class Background:
    """`mtl ARGUMENTS...` in a process of its own, forked from a server that has imported everything.

    `environment` is set there before anything else happens.
    """

    def __init__(self, log: Path, *arguments: object, **environment: str) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["mtlcli.sweep.worker", "mtlcli.render"])
        words = [str(argument) for argument in arguments]
        self.log = log
        self.process: Any = context.Process(target=_child, args=(words, str(Path.cwd()), str(log), environment))
        self.process.start()

    def until(self, met: Callable[[], object], seconds: float = 60) -> None:
        """Wait until `met` holds while the process lives."""
        end = time.monotonic() + seconds
        while not met():
            assert self.process.is_alive(), f"ended early:\n{self.output()}"
            assert time.monotonic() < end, f"waited in vain:\n{self.output()}"
            time.sleep(0.005)

    def signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.process.pid, number)

    def wait(self, seconds: float = 60) -> int:
        """The exit code as a shell says it: 128 + n for a process that signal n killed."""
        self.process.join(seconds)
        code = self.process.exitcode
        assert code is not None, f"still runs:\n{self.output()}"
        return code if code >= 0 else 128 - code

    def output(self) -> str:
        """What it has printed so far, on stdout and stderr."""
        return self.log.read_text() if self.log.exists() else ""


def _child(arguments: Sequence[str], folder: str, log: str, environment: dict[str, str]) -> None:
    os.setsid()  # a terminal's Ctrl-C reaches a whole group: tests that send one must not reach pytest
    # As in a terminal, whatever the tests were started from: under nohup, for one, processes inherit its being ignored.
    signal.signal(signal.SIGHUP, signal.SIG_IGN if "NOHUP" in environment else signal.SIG_DFL)
    os.chdir(folder)
    os.environ.update(environment)
    torch.set_num_threads(1)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    code = run(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def scores(result: dict[str, Any]) -> dict[str, float]:
    """The numbers of a result that training decides."""
    found = {"epoch": float(result["selected"]["epoch"]), "steps": float(result["steps"])}
    for task, about in result["tasks"].items():
        found[f"{task}.loss"] = about["loss"]
        found |= {f"{task}.{name}": metric["value"] for name, metric in about["metrics"].items()}
    return found


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two results are of the same training."""
    return scores(one) == pytest.approx(scores(other), abs=1e-6)


def steps(run: Run) -> list[int]:
    """The steps that its events tell of."""
    return [event["step"] for event in run.events() if event["event"] == "StepDone"]
