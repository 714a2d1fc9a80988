"""Model and split -> loss and metrics per task, exact over the split."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from mtlcli.data.base import BaseSplit, Batch
from mtlcli.metrics import Score, score
from mtlcli.models.base import MTLModel, run
from mtlcli.tasks import Task

ROWS_AT_ONCE = 8192


@dataclass(frozen=True)
class TaskScore:
    """How one task did on a split."""

    loss: float | None  # None where the split holds no label for the task
    metrics: dict[str, Score]

    def as_json(self) -> dict[str, Any]:
        """As in `result.json`; a metric without a value carries the reason."""
        shown = {name: asdict(value) for name, value in self.metrics.items()}
        for entry in shown.values():
            if entry["undefined"] is None:
                del entry["undefined"]
        return {"loss": self.loss, "metrics": shown}


def predict(
    model: MTLModel, tasks: Sequence[Task], batches: Iterable[Batch], autocast: torch.dtype | None = None
) -> dict[str, tuple[Tensor, Tensor]]:
    """Per task, raw predictions of every row in float32 and the labels beside them. Dropout is off."""
    was_training = model.training
    model.eval()
    found: dict[str, list[tuple[Tensor, Tensor]]] = {task.name: [] for task in tasks}
    with torch.no_grad():
        for batch in batches:
            for task, predictions in run(model, batch, autocast)[0].items():
                found[task].append((predictions.float(), batch.labels(task)))
    model.train(was_training)
    return {task: (torch.cat([p for p, _ in pairs]), torch.cat([t for _, t in pairs])) for task, pairs in found.items()}


def evaluate(
    model: MTLModel,
    tasks: Sequence[Task],
    batches: BaseSplit | Iterable[Batch],
    metrics: Mapping[str, tuple[str, ...]],
    autocast: torch.dtype | None = None,
) -> dict[str, TaskScore]:
    """Loss and `metrics[task]` of every task over all labelled rows of a split."""
    if isinstance(batches, BaseSplit):
        batches = batches.batches(ROWS_AT_ONCE)
    scores = {}
    predictions = predict(model, tasks, batches, autocast)
    for task in tasks:
        prediction, target = predictions[task.name]
        terms = task.loss(prediction, target)
        assert terms.count is not None
        count = float(terms.count.sum(dtype=torch.float64))
        loss = float(terms.total.sum(dtype=torch.float64)) / count if count else None
        scores[task.name] = TaskScore(loss, score(task, metrics[task.name], prediction, target))
    return scores
