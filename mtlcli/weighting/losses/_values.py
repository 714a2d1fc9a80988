"""What loss weightings do with the values of K losses. Plain numbers take a tenth of the time of small tensors."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from mtlcli.weighting.base import LossWeighting

SMALLEST = 1e-12


class Kept:
    """Numbers that a method keeps from step to step, and `keep`s with its state: the attributes of a subclass."""

    def __init__(self, num_tasks: int) -> None:
        self.num_tasks = num_tasks

    def state_dict(self) -> dict[str, Any]:
        """All of them."""
        return copy.deepcopy(vars(self))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Counterpart of `state_dict`. Raises ValueError where it is of another number of tasks."""
        if state_dict["num_tasks"] != self.num_tasks:
            raise ValueError(f"it is of {state_dict['num_tasks']} tasks")
        vars(self).update(copy.deepcopy(state_dict))


def finite(values: Iterable[float]) -> bool:
    """Whether all of them are."""
    return all(map(math.isfinite, values))


def softmax(values: Sequence[float]) -> list[float]:
    """Shares (K,) that sum to 1."""
    top = max(values)
    powers = [math.exp(value - top) for value in values]
    whole = sum(powers)
    return [power / whole for power in powers]


def log_of(losses: Tensor, method: LossWeighting) -> Tensor:
    """Logs (K,) of `losses`. Below 1e-12 the log of 1e-12 without a gradient, which `method` counts."""
    if not any(loss <= SMALLEST for loss in losses.tolist()):
        return losses.log()
    method.count("a loss was not positive: no gradient through its log")
    return losses.clamp(min=SMALLEST).log()
