"""events.jsonl of many runs -> curves by method: means over seeds, thin enough to draw."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from mtlcli.comparison.report import SINGLE_TASK
from mtlcli.errors import MtlError
from mtlcli.runs import Run

POINTS = 200  # a curve has no more; a screen shows no more
VALIDATION_LOSS, TRAINING_LOSS = "validation loss", "training loss"

Values = dict[float, float]  # of one run: step or epoch -> value
Matrix = list[list[float | None]]


@dataclass(frozen=True)
class Curve:
    """Mean over seeds, and the lowest and highest seed."""

    x: list[float]  # training steps, or epochs counted from 1
    mean: list[float]
    low: list[float]
    high: list[float]


@dataclass(frozen=True)
class Conflict:
    """How the task gradients lie to each other; the curves are means over pairs of tasks, by step."""

    tasks: list[str]
    cosines: Matrix  # (K, K), means over steps and seeds; None where undefined
    cosine: Curve | None  # -1 opposed, 0 orthogonal, 1 aligned
    similarity: Curve | None  # of magnitudes: 1 is equally long
    condition: Curve | None  # of the Gramian


@dataclass(frozen=True)
class History:
    """One method's training."""

    epochs: dict[str, dict[str, Curve]]  # by task and quantity: VALIDATION_LOSS, TRAINING_LOSS, names of metrics
    weights: dict[str, Curve]  # by task, by step
    conflict: Conflict | None


@dataclass
class _Collected:
    """The same quantities of several runs, before they are averaged."""

    epochs: dict[tuple[str, str], list[Values]] = field(default_factory=dict)
    weights: dict[str, list[Values]] = field(default_factory=dict)
    diagnostics: list[dict[float, Mapping[str, Any]]] = field(default_factory=list)


def histories(report: Mapping[str, Any], runs: Sequence[Path], base: Path) -> dict[str, History]:
    """What the events of `runs` tell, by the method of their row; methods without events are absent.

    Args:
        report: the content of report.json.
        runs: run directories.
        base: the report's folder, which its rows' `runs` are relative to.
    """
    found = {}
    for method, folders in by_method(report, runs, base).items():
        collected = _Collected()
        for folder in folders:
            _collect(Run(folder), collected)
        history = _averaged(collected, method)
        if history.epochs or history.weights or history.conflict:
            found[method] = history
    return found


def by_method(report: Mapping[str, Any], runs: Sequence[Path], base: Path) -> dict[str, list[Path]]:
    """Which of `runs` stand behind which row, in the order of the rows.

    A row says so itself; for one that does not, the runs' own results do, where they leave no doubt.
    """
    found: dict[str, list[Path]] = {row["method"]: [] for row in report["rows"]}
    left = {run.resolve(): run for run in runs}
    for row in report["rows"]:
        for named in row.get("runs") or ():
            for path in ((base / named).resolve(), Path(named).resolve()):
                if path in left:
                    found[row["method"]].append(left.pop(path))
    for run in left.values():
        try:
            result = Run(run).result()
        except MtlError:
            continue
        method = SINGLE_TASK if len(result["tasks"]) < len(report["metrics"]) else result["method"]
        if method in found:
            found[method].append(run)
    return {method: folders for method, folders in found.items() if folders}


def _collect(run: Run, into: _Collected) -> None:
    """Add one run. A resumed run may have a step or an epoch twice: the later line is the one that counts."""
    found = _OneRun()
    for event in run.events():
        with suppress(KeyError, TypeError, AttributeError, ValueError):  # a damaged line costs its point, no more
            found.take(event)
    for key, curve in found.epochs.items():
        into.epochs.setdefault(key, []).append(curve)
    for task in dict.fromkeys([*found.by_step, *found.by_epoch]):
        # A short run logs few steps; then the epochs tell more.
        curve = max(found.by_step.get(task, {}), found.by_epoch.get(task, {}), key=len)
        into.weights.setdefault(task, []).append(curve)
    if found.diagnostics:
        into.diagnostics.append(found.diagnostics)


@dataclass
class _OneRun:
    epochs: dict[tuple[str, str], Values] = field(default_factory=dict)
    by_step: dict[str, Values] = field(default_factory=dict)
    by_epoch: dict[str, Values] = field(default_factory=dict)
    diagnostics: dict[float, Mapping[str, Any]] = field(default_factory=dict)

    def take(self, event: Mapping[str, Any]) -> None:
        kind = event["event"]
        if kind == "StepDone":
            for task, weight in event["weights"].items():
                self.by_step.setdefault(task, {})[event["step"]] = _number(weight)
        elif kind == "EpochDone":
            for task, weight in event["weights"].items():
                self.by_epoch.setdefault(task, {})[event["step"]] = _number(weight)
            for task, loss in event["losses"].items():
                self.epochs.setdefault((task, TRAINING_LOSS), {})[event["epoch"] + 1] = _number(loss)
            for task, scores in event["val"].items():
                values = {VALIDATION_LOSS: scores["loss"]}
                values |= {name: metric["value"] for name, metric in scores["metrics"].items()}
                for name, value in values.items():
                    self.epochs.setdefault((task, name), {})[event["epoch"] + 1] = _number(value)
        elif kind == "Diagnostics":
            needed = ("tasks", "cosines", "magnitude_similarity", "condition")
            self.diagnostics[event["step"]] = {key: event[key] for key in needed}


def _averaged(collected: _Collected, method: str) -> History:
    epochs: dict[str, dict[str, Curve]] = {}
    for (task, name), curves in collected.epochs.items():
        merged = merge(curves)
        if merged:
            epochs.setdefault(task, {})[name] = merged
    weights = {task: merged for task, curves in collected.weights.items() if (merged := merge(curves))}
    if method == SINGLE_TASK:  # a network with one task has nothing to weigh
        weights = {}
    return History(epochs, weights, _conflict(collected.diagnostics))


def _conflict(diagnostics: Sequence[Mapping[float, Mapping[str, Any]]]) -> Conflict | None:
    events = [event for run in diagnostics for event in run.values()]
    if not events or len(events[0]["tasks"]) < 2:
        return None

    def over_time(value: Callable[[Mapping[str, Any]], float], logarithmic: bool = False) -> Curve | None:
        return merge([{step: value(event) for step, event in run.items()} for run in diagnostics], logarithmic)

    tasks = list(events[0]["tasks"])
    same = [event["cosines"] for event in events if list(event["tasks"]) == tasks]
    size = range(len(tasks))
    cosines: Matrix = [[_mean([_number(matrix[i][j]) for matrix in same]) for j in size] for i in size]
    return Conflict(
        tasks,
        cosines,
        over_time(lambda event: _mean_pair(event["cosines"])),
        over_time(lambda event: _mean_pair(event["magnitude_similarity"])),
        over_time(lambda event: _number(event["condition"]), logarithmic=True),
    )


def merge(curves: Sequence[Values], logarithmic: bool = False) -> Curve | None:
    """Mean, lowest and highest over runs, in at most POINTS points; None where no run has two finite values.

    A place that some run lacks, because it diverged there, is left out: a mean over the others would flatter.
    `logarithmic` takes geometric means, for what spans orders of magnitude.
    """
    finite = [{x: value for x, value in curve.items() if math.isfinite(value)} for curve in curves]
    if logarithmic:
        finite = [{x: math.log(value) for x, value in curve.items() if value > 0} for curve in finite]
    shared = set.intersection(*(set(curve) for curve in finite)) if finite else set()
    places = sorted(shared)
    if len(places) < 2:
        return None
    back: Callable[[float], float] = math.exp if logarithmic else float
    found = Curve([], [], [], [])
    for chunk in _chunks(places):
        values = [[curve[x] for curve in finite] for x in chunk]
        found.x.append(statistics.fmean(chunk))
        found.mean.append(back(statistics.fmean(statistics.fmean(each) for each in values)))
        found.low.append(back(statistics.fmean(min(each) for each in values)))
        found.high.append(back(statistics.fmean(max(each) for each in values)))
    return found


def _chunks(places: Sequence[float]) -> Iterable[Sequence[float]]:
    """At most POINTS groups of neighbours, as even as can be."""
    count = min(len(places), POINTS)
    edges = [round(number * len(places) / count) for number in range(count + 1)]
    return (places[start:end] for start, end in pairwise(edges))


def _mean_pair(matrix: Sequence[Sequence[float | None]]) -> float:
    """Mean over pairs of different tasks; NaN where none is defined."""
    pairs = [_number(matrix[i][j]) for i in range(len(matrix)) for j in range(i)]
    found = _mean(pairs)
    return math.nan if found is None else found


def _mean(values: Sequence[float]) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    return statistics.fmean(finite) if finite else None


def _number(value: Any) -> float:
    """What was not finite is null in the file."""
    return math.nan if value is None else float(value)
