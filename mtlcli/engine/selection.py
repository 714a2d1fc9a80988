"""Which epoch is best on `val`: one number from all tasks' scores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mtlcli import metrics
from mtlcli.engine.evaluate import TaskScore


class Selection:
    """`train.select_by` as a score, higher is better.

    `delta`: the mean over all metrics of the gain since the run's first epoch: the difference for metrics whose scale
    is their own (AUROC, accuracy, R2), the relative change for those in the task's unit (MAE in weeks) or without
    bounds, so that no metric counts more for its scale. A task of which no metric is defined counts by its loss. It
    only chooses an epoch and is never reported. `loss`: minus the mean over tasks of the loss relative to its first
    value. `last`: the newest epoch. `TASK.METRIC`: that metric.
    """

    def __init__(self, by: str) -> None:
        self.by = by
        self._first: dict[str, float] = {}

    def score(self, val: Mapping[str, TaskScore], epoch: int) -> float | None:
        """The score of an epoch; None where nothing that it needs is defined, or where training broke a task."""
        if self.by == "last":
            return float(epoch)
        if self.by in ("loss", "delta") and any(self._is_broken(scores) for scores in val.values()):
            return None
        if self.by == "loss":
            return _mean([-self._relative(task, s.loss) for task, s in val.items() if s.loss is not None])
        if self.by == "delta":
            return _mean([gain for task, scores in val.items() for gain in self._gains(task, scores)])
        task, _, name = self.by.rpartition(".")
        metric = val[task].metrics[name]
        return metric.value if metric.higher_is_better or metric.value is None else -metric.value

    def state_dict(self) -> dict[str, float]:
        """The first epoch's values."""
        return dict(self._first)

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Counterpart of `state_dict`."""
        self._first = dict(state)

    def silent(self, val: Mapping[str, Any]) -> str:
        """What to tell a person where an epoch has no score, from its scores as in `EpochDone.val`."""
        reasons = {
            f"{task}: {metric['undefined']}"
            for task, scores in val.items()
            for metric in scores["metrics"].values()
            if "undefined" in metric
        }
        return (
            f"train.select_by: {self.by} has no value on val ({'; '.join(sorted(reasons))}); while that is so, the "
            "newest epoch is kept, and none is chosen. Another data.split or select_by helps"
        )

    def _gains(self, task: str, scores: TaskScore) -> list[float]:
        gains = [
            (1 if metric.higher_is_better else -1) * self._gain(f"{task}.{name}", metric.value, metrics.get(name).unit)
            for name, metric in scores.metrics.items()
            if metric.value is not None
        ]
        return gains if gains or scores.loss is None else [1 - self._relative(task, scores.loss)]

    def _is_broken(self, scores: TaskScore) -> bool:
        """Whether predictions are not finite. A loss alone may overflow for a single label."""
        if scores.loss is None or math.isfinite(scores.loss):
            return False
        return self.by == "loss" or all(metric.value is None for metric in scores.metrics.values())

    def _gain(self, key: str, value: float, unit: str | None) -> float:
        first = self._first.setdefault(key, value)
        return value - first if unit in ("", "fraction") else self._relative(key, value) - 1

    def _relative(self, key: str, value: float) -> float:
        first = self._first.setdefault(key, value)
        return value / abs(first) if first else 1 + value


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
