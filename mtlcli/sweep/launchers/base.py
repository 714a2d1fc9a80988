"""The contract of a launcher: start a run somewhere, hear how it goes, stop it."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mtlcli.options import Options as AnyOptions
from mtlcli.runs import Run

TAIL = 1 << 16  # bytes at the end of events.jsonl that are looked at for news


@dataclass(frozen=True)
class Work:
    """One run to train: plain values, so that it can travel to another process or machine."""

    recipe: dict[str, Any]
    title: str
    path: str  # of the run directory, which must be the same folder wherever the run is trained
    slot: int  # 0 to jobs - 1, of which no two running jobs have the same
    threads: int  # CPU threads for it
    store: str | None = None  # folder of finished runs, where it is looked for before and kept after
    fingerprint: str | None = None  # of its data, for the store


class Job(ABC):
    """A run that was started."""

    @abstractmethod
    def news(self) -> dict[str, Any]:
        """What is new since the last call: any of `step`, `steps`, `losses`, `status`, `error`, `note`."""

    @abstractmethod
    def ended(self) -> str | None:
        """None while it runs; then why it ended, for a run that has not said so itself."""

    @abstractmethod
    def stop(self) -> None:
        """Ask it to save and end."""


class Launcher(ABC):
    """Starts jobs. Register with `@mtlcli.registry.launchers.register("name")`.

    Args:
        options: checked options.
        jobs: how many runs may go on at the same time.
    """

    name: ClassVar[str]
    package: ClassVar[str | None] = None  # the module that has to be installed, if any
    extra: ClassVar[str | None] = None  # the extra of mtlcli that installs it
    Options: ClassVar[type[AnyOptions]] = AnyOptions

    def __init__(self, options: AnyOptions, jobs: int) -> None:
        self.options: Any = options
        self.jobs = jobs

    @abstractmethod
    def open(self, folder: Path) -> AbstractContextManager[None]:
        """Be ready for jobs while the context lasts; `folder` is the comparison's. Raises MtlError where that fails."""

    @abstractmethod
    def start(self, work: Work) -> Job:
        """Begin a run, or queue it."""

    def wait(self, jobs: Sequence[Job]) -> None:
        """Return once a job has news or a moment has passed."""
        time.sleep(0.5)


class Watched:
    """News of a run from its run directory alone, for launchers whose jobs cannot be talked to."""

    def __init__(self, path: Path) -> None:
        self._events = Run(path).events_file
        self._size = -1
        self._steps = 0

    def news(self) -> dict[str, Any]:
        """The newest step and losses, where events.jsonl has grown."""
        try:
            size = self._events.stat().st_size
            if size == self._size:
                return {}
            self._size = size
            with open(self._events, "rb") as file:
                if not self._steps:
                    started = json.loads(file.readline())
                    self._steps = started["epochs"] * started["steps_per_epoch"]
                file.seek(max(0, size - TAIL))
                lines = file.read().split(b"\n")[:-1]
        except (OSError, ValueError, KeyError):  # not there yet, or half a line: the next look will tell
            return {}
        for line in reversed(lines):
            try:
                event = json.loads(line)
            except ValueError:  # the first line of the tail may lack its beginning
                break
            if event["event"] in ("StepDone", "EpochDone"):
                return {"step": event["step"], "steps": self._steps, "losses": event["losses"]}
        return {}
