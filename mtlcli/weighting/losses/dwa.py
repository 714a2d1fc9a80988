"""Dynamic weight average."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from mtlcli.options import Options as AnyOptions
from mtlcli.registry import loss_weightings
from mtlcli.search import searched
from mtlcli.weighting.base import LossWeighting, StepView
from mtlcli.weighting.losses._values import Kept, finite, weights_of


@loss_weightings.register("dwa")
class DWA(LossWeighting):
    """Weigh a task up when its loss fell slowly over the last two epochs.

    Formula: w = K softmax(r / T), r_k = L_k(t - 1) / L_k(t - 2) with the mean training losses of the last two whole
        epochs, or of the last two windows of `length` steps, which move with every step and include this one; w = 1
        until there are two.
    Reads: the losses and the epoch.
    Cost: 4 K numbers of state; with windows, 2 K more for each of their `length` steps.
    Source: Liu, Johns & Davison, End-to-End Multi-Task Learning with Attention, CVPR 2019, arXiv 1803.10704; code
        lorenmt/mtan.
    Deviations: epochs, as in the paper and in mtan, unless `window: iterations` asks for the windows of 25 steps of
        AvivNavon/nash-mtl; these weigh from step 26 on, against a window still partly filled with ones, and here from
        the first step with two whole windows. Steps with non-finite losses are left out of the means, and so is a loss
        of exactly 0, as without a label in the batch; a task that has no mean for both has w = 1, and K is the number
        of the others then.
    """

    class Options(AnyOptions):
        """Options of dynamic weight average."""

        temperature: float = Field(
            2.0,
            gt=0,
            description="T: the larger, the closer to equal weights.",
            json_schema_extra=searched(0.5, 10.0, log=True),
        )
        window: Literal["epoch", "iterations"] = Field("epoch", description="What the mean losses are taken over.")
        length: int = Field(25, ge=1, description="Steps in a window of `window: iterations`.")

    @classmethod
    def begins(cls, options: Any) -> int:
        """After the two epochs that it compares."""
        return 2 if options.window == "epoch" else 0

    def __init__(self, options: AnyOptions, tasks: tuple[str, ...], rng: torch.Generator) -> None:
        super().__init__(options, tasks, rng)
        self.history = History(len(tasks))
        self.keep("history", self.history)

    def forward(self, step: StepView) -> Tensor:
        """The losses (K,), each times its weight."""
        losses, options, history = step.losses.tolist(), self.options, self.history
        if options.window == "epoch":
            history.enter(step.clock.epoch)
        if finite(losses):
            history.add(losses, 2 * options.length if options.window == "iterations" else 0)
        if len(history.means) < 2:
            return step.losses
        means = zip(*history.means, strict=True)
        ratios = [last / before if before and last is not None else None for before, last in means]
        slow = [None if ratio is None else ratio / options.temperature for ratio in ratios]
        return step.losses.new_tensor(weights_of(slow, missing=1.0)) * step.losses


class History(Kept):
    """Mean losses of the last two windows, over the steps in which a task has labels; None where it had none."""

    def __init__(self, num_tasks: int) -> None:
        super().__init__(num_tasks)
        self.epoch, self.steps = 0, [0] * num_tasks
        self.total = [0.0] * num_tasks  # of this epoch's steps
        self.recent: list[list[float]] = []  # losses of the last steps, oldest first
        self.means: list[list[float | None]] = []  # of the last whole epochs or windows, oldest first

    def enter(self, epoch: int) -> None:
        """Close the last epoch if this is another."""
        if epoch != self.epoch:
            if any(self.steps):
                self.means = [*self.means[-1:], _divided(self.total, self.steps)]
            self.epoch, self.steps, self.total = epoch, [0] * self.num_tasks, [0.0] * self.num_tasks

    def add(self, losses: list[float], window: int) -> None:
        """One step's losses (K,): to the epoch, or to the last `window` steps, of which each half is one window."""
        if not window:
            self.steps = [steps + bool(loss) for steps, loss in zip(self.steps, losses, strict=True)]
            self.total = [total + loss for total, loss in zip(self.total, losses, strict=True)]
            return
        self.recent = [*self.recent, losses][-window:]
        if len(self.recent) == window:
            halves = self.recent[: window // 2], self.recent[window // 2 :]
            columns = [list(zip(*rows, strict=True)) for rows in halves]
            self.means = [_divided(map(sum, half), (sum(map(bool, column)) for column in half)) for half in columns]


def _divided(totals: Iterable[float], steps: Iterable[int]) -> list[float | None]:
    return [total / number if number else None for total, number in zip(totals, steps, strict=True)]
