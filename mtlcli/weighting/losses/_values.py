"""What loss weightings do with the values of K losses. Plain numbers take a tenth of the time of small tensors.

A task without a label in the batch has a loss of 0. It sits the step out: the others are weighted as though it was not
there, and what a method remembers of it stays as it was.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from mtlcli.weighting.base import LossWeighting

SMALLEST = 1e-12


class Kept:
    """Numbers that a method keeps from step to step, and `keep`s with its state: the attributes of a subclass, but for
    those that come from its options."""

    from_options: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, num_tasks: int) -> None:
        self.num_tasks = num_tasks

    def state_dict(self) -> dict[str, Any]:
        """All of them."""
        return {name: copy.deepcopy(value) for name, value in vars(self).items() if name not in self.from_options}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Counterpart of `state_dict`. Raises ValueError where it is of another number of tasks."""
        if state_dict["num_tasks"] != self.num_tasks:
            raise ValueError(f"it is of {state_dict['num_tasks']} tasks")
        vars(self).update(copy.deepcopy(state_dict))


class Base(Kept):
    """The mean loss of every task over one epoch, of the steps in which it has labels.

    A task that has none in that epoch takes the loss of its first step with labels after it.
    """

    from_options = frozenset({"epoch"})

    def __init__(self, num_tasks: int, epoch: int) -> None:
        super().__init__(num_tasks)
        self.epoch = epoch
        self.steps, self.total = [0] * num_tasks, [0.0] * num_tasks

    def add(self, losses: Sequence[float], epoch: int) -> None:
        """Losses (K,) of a step in `epoch`."""
        for k, loss in enumerate(losses):
            if loss > SMALLEST and (epoch == self.epoch or (epoch > self.epoch and not self.steps[k])):
                self.steps[k] += 1
                self.total[k] += loss

    def over(self, values: Sequence[float], losses: Sequence[float]) -> list[float | None]:
        """`values` (K,) over the base; None for a task that has none, or without a label in the step of `losses`."""
        return [
            value / (total / steps) if loss > SMALLEST and steps else None
            for value, loss, steps, total in zip(values, losses, self.steps, self.total, strict=True)
        ]


def finite(values: Iterable[float]) -> bool:
    """Whether all of them are."""
    return all(map(math.isfinite, values))


def softmax(values: Sequence[float | None]) -> list[float]:
    """Shares (K,) that sum to 1; 0 where there is no value."""
    top = max((value for value in values if value is not None), default=0.0)
    powers = [0.0 if value is None else math.exp(value - top) for value in values]
    whole = sum(powers) or 1.0
    return [power / whole for power in powers]


def weights_of(values: Sequence[float | None], missing: float = 0.0) -> list[float]:
    """Weights (K,), 1 on average: softmax of the values that there are; `missing` where there is none."""
    number = sum(value is not None for value in values)
    return [missing if v is None else number * share for v, share in zip(values, softmax(values), strict=True)]


def seen(parameter: Tensor, losses: Tensor) -> Tensor:
    """A learnable number per task (K,), without a gradient where the loss is exactly 0."""
    if losses.device.type == "cpu" and 0.0 not in losses.tolist():  # a GPU would have to be waited for
        return parameter
    return torch.where(losses.detach() == 0, parameter.detach(), parameter)


def count_unusable(losses: Sequence[float], method: LossWeighting) -> None:
    """Let `method` count that one of `losses` (K,) is not positive, unless it is 0."""
    if any(loss <= SMALLEST for loss in losses if loss):
        method.count("a loss was not positive: its task sat the step out")


def log_of(losses: Tensor, method: LossWeighting) -> Tensor:
    """Logs (K,) of `losses`. Below 1e-12 the log of 1e-12 without a gradient, which `method` counts unless it is 0."""
    values = losses.tolist()
    if not any(loss <= SMALLEST for loss in values):
        return losses.log()
    count_unusable(values, method)
    return losses.clamp(min=SMALLEST).log()
