"""What `fit` yields: the lines of `events.jsonl`, and what every live view is a rendering of."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from mtlcli.weighting.solvers import ROUNDING, cosines


@dataclass(frozen=True)
class Event:
    """Base of all events; `as_json` adds the class's name as `event`."""

    def as_json(self) -> dict[str, Any]:
        """One line of `events.jsonl`."""
        return {"event": type(self).__name__, **asdict(self)}


@dataclass(frozen=True)
class Started(Event):
    """Training begins, or goes on at `step`."""

    method: str
    tasks: list[str]
    device: str
    epochs: int
    steps_per_epoch: int
    step: int
    resumed: bool


@dataclass(frozen=True)
class Warned(Event):
    """Something that a person should know, with what helps."""

    message: str


@dataclass(frozen=True)
class StepDone(Event):
    """The losses and weights of one step, recorded every `train.log_every_steps`. Epochs and steps count from 0."""

    step: int
    epoch: int
    losses: dict[str, float | None]  # None where the batch held no label of the task
    weights: dict[str, float]
    lr: float
    step_ms: float


@dataclass(frozen=True)
class Diagnostics(Event):
    """How the raw losses' gradients at the shared parameters stand to each other in one step, over all ranks.

    Recorded every `train.diagnostics_every` steps. `cosines` (K, K); `magnitude_similarity` (K, K),
    2 |g_i| |g_j| / (|g_i|^2 + |g_j|^2) (Yu et al., Gradient Surgery for Multi-Task Learning, NeurIPS 2020);
    `condition`, the largest over the smallest eigenvalue of the Gramian, None where it is singular.
    """

    step: int
    epoch: int
    tasks: list[str]
    cosines: list[list[float]]
    magnitude_similarity: list[list[float]]
    condition: float | None

    @classmethod
    def of(cls, gramian: Tensor, tasks: list[str], step: int, epoch: int) -> Diagnostics:
        """From the Gramian (K, K) of the gradients."""
        found, lengths = cosines(gramian.detach().double().cpu().numpy())
        squares = lengths[:, None] ** 2 + lengths**2
        similar = np.divide(2 * lengths[:, None] * lengths, squares, out=np.ones_like(squares), where=squares > 0)
        values = np.linalg.eigvalsh(gramian.detach().double().cpu().numpy())
        singular = values[0] <= ROUNDING * values[-1]
        condition = None if singular else float(values[-1] / values[0])
        return cls(step, epoch, tasks, found.tolist(), similar.tolist(), condition)


@dataclass(frozen=True)
class EpochDone(Event):
    """An epoch is over and `val` is scored; `score` is what `train.select_by` compares (higher is better)."""

    epoch: int
    step: int
    losses: dict[str, float | None]  # means over the epoch's steps that had labels of the task
    weights: dict[str, float]
    val: dict[str, Any]  # per task: loss and metrics, as in result.json
    score: float | None
    best: bool
    lr: float
    seconds: float
    counts: dict[str, int] = field(default_factory=dict)  # solver fallbacks and the like, so far


@dataclass(frozen=True)
class Finished(Event):
    """The best epoch's model has been scored on `test`."""

    result: dict[str, Any]
