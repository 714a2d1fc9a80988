"""Runs in folders: which can be compared, what is left out and why, and the list of all."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from mtlcli.comparison.finished import Finished, read_run
from mtlcli.comparison.report import SINGLE_TASK
from mtlcli.errors import MtlError
from mtlcli.runs import ASIDE, Run

KIND = "runs"  # to `mtl list`
RUNS = Path("runs")  # where runs are written that are not told where


class Chosen(NamedTuple):
    """What a comparison is made of."""

    runs: list[Finished]
    damaged: list[str]  # what is wrong with runs that cannot be read, by file
    notes: list[str]  # which runs were left out of it, and why


class Inside(NamedTuple):
    """What a folder holds."""

    runs: list[Path]
    closed: dict[Path, str]  # folders that cannot be read, and why


def choose(targets: Sequence[Path]) -> Chosen:
    """The runs to compare: those named, and from every folder of runs those that can be compared with each other.

    Runs belong together that have the same data (fingerprint), tasks and metrics, and single tasks of these; the
    largest such group of a folder counts, among equals the one with the newest run. Of runs with the same recipe and
    seed the newest counts. A run that is named is never passed over, unless its files are damaged.

    Raises MtlError for a target that neither is a run nor holds any, for a named run that is not finished, and where
    nothing can be read.
    """
    inside = {path: search(path) for path in targets}
    named = _distinct(path for path in targets if _is_run(path) or not any(inside[path]))
    found = _distinct(run for path in targets if path not in named for run in inside[path].runs)
    closed = [message for path in targets for message in inside[path].closed.values()]
    known = {path.resolve() for path in named}
    found = [path for path in found if path.resolve() not in known]
    unfinished = {path: _status(Run(path)) for path in found if not Run(path).result_file.exists()}
    read_back, damaged, _ = read([*named, *(path for path in found if path not in unfinished)])
    damaged = [*closed, *damaged]
    ours = [run for run in read_back if run.path in named]
    theirs = [run for run in read_back if run.path not in named]
    notes = []
    if found:
        started = {run.path: _when(run.path) for run in read_back}
        group = _group(ours, theirs, started)
        kept = _newest(ours, group, started)
        other = [run for run in theirs if run not in group]
        older = [run for run in group if run not in kept]
        notes += _left_out("other data, tasks or metrics", other, lambda run: run.result["dataset"])
        notes += _left_out("a newer run has the same recipe and seed", older, lambda run: run.result["method"])
        theirs = kept
    if unfinished:
        listed = ", ".join(f"{path} ({status})" for path, status in unfinished.items())
        notes.append(f"left out, not finished: {listed}")
    notes += _damaged(damaged)
    if not ours and not theirs:
        raise MtlError("\n".join(["there is no finished run to compare:", *(f"  {note}" for note in notes)]))
    return Chosen([*ours, *theirs], damaged, notes)


def read(paths: Sequence[Path]) -> Chosen:
    """All of these runs but those whose files are damaged.

    Raises MtlError for a folder that is not a run, for a run without a result, and where all are damaged.
    """
    runs, damaged = [], []
    for path in tqdm(paths, desc="reading runs", unit="run", leave=False, disable=None):
        try:
            runs.append(read_run(path))
        except MtlError as error:
            if not Run(path).result_file.exists():
                raise
            damaged.append(f"{error}; delete {path} to train it again")
    if damaged and not runs:
        raise MtlError("\n".join(damaged))
    return Chosen(runs, damaged, _damaged(damaged))


def search(folder: Path) -> Inside:
    """Every run in `folder` at any depth, by name; what stands inside a run, or is set aside, is not looked at."""
    runs: list[Path] = []
    closed: dict[Path, str] = {}

    def note(error: OSError) -> None:
        closed[Path(error.filename)] = f"{error.filename}: cannot be read: {error.strerror}"

    for above, folders, files in os.walk(folder, onerror=note):
        if "run.json" in files and Path(above) != folder:
            folders.clear()
            runs.append(Path(above))
        folders[:] = sorted(n for n in folders if not n.startswith(".") and not os.path.exists(Path(above, n, ASIDE)))
    return Inside(runs, closed)


def listing(folder: Path) -> dict[str, Any]:
    """Every run in `folder`, newest first.

    Returns:
        `{"folder", "runs": [{"path", "method", "task", "seed", "dataset", "status", "epochs", "scores", "split",
        "started", "age_seconds", "problem"}]}`. `method` is `single_task` where the recipe takes one `task` out of the
        data's, which is null elsewhere. `scores` has the first metric of every task: of the test split where the run is
        finished, of the best epoch on the validation split so far where it is not. `problem` says what is damaged.

    Raises MtlError where there is no such folder.
    """
    if not folder.is_dir():
        raise MtlError(f"{folder}: {'is a file' if folder.exists() else 'no such folder'}; name a folder of runs")
    inside = search(folder)
    paths = [folder] if _is_run(folder) else [*inside.runs, *inside.closed]
    runs = [_describe(Run(path)) for path in paths]
    return {"folder": str(folder), "runs": sorted(runs, key=lambda run: run["started"] or "", reverse=True)}


# -- what belongs together ---------------------------------------------------------------------------------------------


def _group(named: Sequence[Finished], found: Sequence[Finished], started: Mapping[Path, float]) -> list[Finished]:
    """The largest part of `found` whose runs can be compared with each other and with all of `named`."""
    fitting = [to for to in (*named, *found) if all(_belongs(run, to) for run in named)]
    groups = {_kind(to): [run for run in found if _belongs(run, to)] for to in fitting}

    def size(runs: Sequence[Finished]) -> tuple[int, float]:
        return len(runs), max((started[run.path] for run in runs), default=0.0)

    return max(groups.values(), key=size, default=[])


def _kind(run: Finished) -> tuple[str, frozenset[tuple[str, str]]]:
    return run.result["fingerprint"], frozenset(run.metrics)


def _belongs(run: Finished, to: Finished) -> bool:
    """Whether `run` has the same data, tasks and metrics, or is a single task of them."""
    if _kind(run) == _kind(to):
        return True
    same = {(task, name) for task, name in to.metrics if task in run.tasks}
    return run.result["fingerprint"] == to.result["fingerprint"] and len(run.tasks) == 1 and set(run.metrics) == same


def _newest(named: Sequence[Finished], group: Sequence[Finished], started: Mapping[Path, float]) -> list[Finished]:
    """Without the older ones of runs that would count twice; what is named counts before what is found."""
    most = max((len(run.tasks) for run in (*named, *group)), default=0)

    def key(run: Finished) -> tuple[Any, ...]:
        # A baseline has one run a task and seed, whatever its recipe says besides.
        return run.result["seed"], run.tasks if len(run.tasks) < most else (run.result["method"], run.identity())

    taken = {key(run) for run in named}
    chosen: dict[tuple[Any, ...], Finished] = {}
    for run in sorted(group, key=lambda run: started[run.path]):
        if key(run) not in taken:
            chosen[key(run)] = run
    return [run for run in group if run in chosen.values()]


def _damaged(messages: Sequence[str]) -> list[str]:
    return [f"left out, damaged: {message}" for message in messages]


def _left_out(why: str, runs: Sequence[Finished], about: Callable[[Finished], str]) -> list[str]:
    return [f"left out, {why}: {', '.join(f'{run.path} ({about(run)})' for run in runs)}"] if runs else []


def _distinct(paths: Iterable[Path]) -> list[Path]:
    """Without what was named twice, however it was written."""
    return list({path.resolve(): path for path in paths}.values())


def _is_run(path: Path) -> bool:
    return path.joinpath("run.json").exists()


# -- one run -----------------------------------------------------------------------------------------------------------


def _status(run: Run) -> str:
    """As in run.json, and `killed` for a run that says it is running and is not."""
    try:
        status = str(run.info().get("status", "unknown"))
    except MtlError:
        return "damaged"
    return "killed" if status == "running" and not run.is_locked() else status


def _when(path: Path) -> float:
    """When a run was begun, in seconds since 1970; by its file where it does not say."""
    with suppress(MtlError, KeyError, TypeError, ValueError):
        return datetime.fromisoformat(Run(path).info()["started"]).timestamp()
    for place in (Run(path).info_file, path):
        with suppress(OSError):
            return place.stat().st_mtime
    return 0.0


def _describe(run: Run) -> dict[str, Any]:
    about: dict[str, Any] = dict.fromkeys(("method", "task", "seed", "dataset"))
    about = {"path": str(run.path), **about, "status": _status(run), "epochs": None, "scores": {}, "split": None}
    started = _when(run.path)
    about["started"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started))
    about["age_seconds"] = max(0, round(time.time() - started))
    about["problem"] = None
    try:
        if about["status"] == "finished":
            done = read_run(run.path)
            about |= {key: done.result[key] for key in ("method", "seed", "dataset")} | _alone(done.settings)
            about |= {"epochs": done.result.get("epochs"), "split": "test", "scores": _first(done.result["tasks"])}
        else:
            about |= _so_far(run)
    except (MtlError, KeyError, TypeError, AttributeError) as error:
        about |= {"status": "damaged", "problem": str(error) if isinstance(error, MtlError) else repr(error)}
    return about


def _so_far(run: Run) -> dict[str, Any]:
    """What recipe and events say of a run without a result."""
    from mtlcli import yamlfile
    from mtlcli.recipe import method_name

    values = yamlfile.read(run.recipe_file).values
    settings = yamlfile.flatten(values) if isinstance(values, dict) else {}
    epochs = [event for event in run.events() if event.get("event") == "EpochDone"]
    best = next((event for event in reversed(epochs) if event.get("best")), None)
    return {
        "method": method_name(settings["weighting.loss.name"], settings["weighting.gradient.name"]),
        **_alone(settings),
        "seed": settings["train.seed"],
        "dataset": settings["data.name"],
        "epochs": len({event["epoch"] for event in epochs}),
        "split": "val" if best else None,
        "scores": _first(best["val"]) if best else {},
    }


def _alone(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a run is called that learns one task of several: without others to balance, its weighting does nothing."""
    only = settings.get("data.only")
    return {"method": SINGLE_TASK, "task": only[0]} if isinstance(only, list) and len(only) == 1 else {}


def _first(tasks: Mapping[str, Any]) -> dict[str, Any]:
    """The first metric of every task, as `{task: {"metric", "value", "unit", "higher_is_better"}}`."""
    found = {}
    for task, scores in tasks.items():
        for name, metric in list(scores["metrics"].items())[:1]:
            found[task] = {"metric": name, **{key: metric[key] for key in ("value", "unit", "higher_is_better")}}
    return found
