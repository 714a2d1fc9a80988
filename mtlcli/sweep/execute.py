"""Planned runs -> trained ones, through a launcher."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtlcli import extras, registry, yamlfile
from mtlcli.errors import MtlError
from mtlcli.options import parse
from mtlcli.recipe import differences
from mtlcli.runs import Run, read_recipe
from mtlcli.sweep.launchers.base import Job, Launcher, Work
from mtlcli.sweep.plan import Planned


@dataclass
class Progress:
    """What is known of a run while the sweep goes on."""

    planned: Planned
    status: str = "waiting"  # waiting, running, finished, failed, interrupted
    step: int = 0
    steps: int = 0
    losses: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None
    note: str | None = None  # what a person should know besides, such as where a finished run was taken from
    said: str | None = None  # the status with which the run says that it ended; it counts once the job is over


def choose_launcher(name: str, settings: Sequence[str], jobs: int) -> Launcher:
    """The launcher `name` with settings such as `address=auto`, for `jobs` runs at a time.

    Raises MtlError for a name or a setting that does not exist, or a package that is missing.
    """
    cls = registry.launchers.get(name)
    if lacking := extras.missing(cls.package, cls.extra):
        raise MtlError(f"--launcher {name}: {lacking}")
    values: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise MtlError(f"--launcher-set {setting}: should be KEY=VALUE")
        values[key.strip()] = yamlfile.parse(value, f"--launcher-set {setting}").values
    return cls(parse(cls.Options, values, f"--launcher {name}"), jobs)


def run_all(
    planned: Sequence[Planned],
    launcher: Launcher,
    folder: Path,
    stopped: Callable[[], bool],
    show: Callable[[Sequence[Progress]], None],
    store: Path | None = None,
    after: Callable[[Progress], Planned | None] = lambda item: None,
) -> list[Progress]:
    """Train what is not finished yet, as many runs at a time as the launcher takes, and say how each ended.

    When `stopped` says so, running jobs are asked to save and end, and the rest is left for the next call.

    Args:
        store: where runs that name their data's fingerprint are looked for before, and kept after.
        after: the run that follows from how one ended, if any; not called for one that was asked to stop.

    Raises MtlError where a planned folder holds a run of another recipe, or the launcher cannot begin.
    """
    progress: list[Progress] = []
    queue: deque[Progress] = deque()

    def take_in(following: Planned | None) -> None:
        """Queue a run; where it is finished already, what follows it."""
        while following is not None:
            item = Progress(following)
            progress.append(item)
            if not _is_finished(item):
                queue.append(item)
                return
            following = after(item)

    for each in planned:
        take_in(each)
    if not queue:
        return progress
    threads = max(1, len(os.sched_getaffinity(0)) // launcher.jobs)
    active: dict[Job, tuple[Progress, int]] = {}
    asked = False
    with launcher.open(folder):
        while queue or active:
            while queue and len(active) < launcher.jobs and not stopped():
                slot = min(set(range(launcher.jobs)) - {slot for _, slot in active.values()})
                item = queue.popleft()
                active[launcher.start(_work(item.planned, slot, threads, store))] = item, slot
                item.status = "running"
            if stopped():
                queue.clear()
                if not asked:
                    asked = True
                    for job in active:
                        job.stop()
            launcher.wait(list(active))
            for job, (item, _) in list(active.items()):
                for name, value in job.news().items():
                    setattr(item, "said" if name == "status" else name, value)
                reason = job.ended()
                if reason is not None:
                    del active[job]
                    _settle(item, reason, asked)
                    if not (asked and item.status == "interrupted"):
                        take_in(after(item))
            show(progress)
    return progress


def _work(planned: Planned, slot: int, threads: int, store: Path | None) -> Work:
    recipe, fingerprint = planned.recipe, planned.fingerprint
    place = str(store.resolve()) if store is not None and fingerprint is not None else None
    return Work(recipe.as_dict(), recipe.title, str(planned.path.resolve()), slot, threads, place, fingerprint)


def _settle(item: Progress, reason: str, asked: bool) -> None:
    """Decide how a run ended once its job is over; `asked` says whether it was told to stop."""
    if item.said in ("failed", "interrupted"):
        item.status = item.said
    if item.status in ("failed", "interrupted") or _is_finished(item):
        return
    if asked or reason == "interrupted":
        item.status = "interrupted"
        return
    item.status, item.error = "failed", reason


def _is_finished(item: Progress) -> bool:
    """Whether the run on disk is finished. Raises MtlError where it follows from another recipe."""
    try:
        run = Run.at(item.planned.path)
        if run is None or not run.finished():
            return False
        theirs = read_recipe(run)
    except MtlError:  # damaged: the job that comes upon it says so, and the other runs go on
        return False
    changed = differences(theirs, item.planned.recipe)
    if changed:
        raise MtlError(
            f"{run.path}: holds a finished run of another recipe (there -> now):\n"
            + "\n".join(f"  {line}" for line in changed)
            + "\nName another --out"
        )
    item.status = "finished"
    return True
