"""Dynamic weight average."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from mtlcli.options import Options as AnyOptions
from mtlcli.registry import loss_weightings
from mtlcli.search import searched
from mtlcli.weighting.base import LossWeighting, StepView


@loss_weightings.register("dwa")
class DWA(LossWeighting):
    """Weigh a task up when its loss fell slowly over the last two epochs.

    Formula: w = K softmax(r / T), r_k = L_k(t - 1) / L_k(t - 2) with the mean training losses of the last two whole
        epochs, or of the last two windows of `length` steps, which move with every step and include this one; w = 1
        until there are two.
    Reads: the losses and the epoch.
    Cost: 3 K numbers of state; with windows, 2 K for each of their steps.
    Source: Liu, Johns & Davison, End-to-End Multi-Task Learning with Attention, CVPR 2019, arXiv 1803.10704; code
        lorenmt/mtan.
    Deviations: epochs, as in the paper and in mtan, unless `window: iterations` asks for the windows of 25 steps of
        AvivNavon/nash-mtl; these weigh from step 26 on, against a window still partly filled with ones, and here from
        the first step with two whole windows. Steps with non-finite losses are left out of the means, and a ratio to
        zero counts as 1: the task neither rose nor fell.
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

    epoch: Tensor  # ()  the epoch that `total` belongs to
    steps: Tensor  # ()  how many steps `total` holds
    total: Tensor  # (K,)  sum of this epoch's losses
    means: Tensor  # (2, K)  mean losses of the last two whole epochs, oldest first; nan before there are two
    recent: Tensor  # (2 length, K)  losses of the last steps, oldest first; nan before there are so many

    @classmethod
    def begins(cls, options: AnyOptions) -> int:
        """After the two epochs that it compares."""
        chosen: Any = options
        return 2 if chosen.window == "epoch" else 0

    def __init__(self, options: AnyOptions, tasks: tuple[str, ...], rng: torch.Generator) -> None:
        super().__init__(options, tasks, rng)
        self.register_buffer("epoch", torch.zeros((), dtype=torch.long))
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("total", torch.zeros(len(tasks)))
        self.register_buffer("means", torch.full((2, len(tasks)), torch.nan))
        recorded = 2 * self.options.length if self.options.window == "iterations" else 0
        self.register_buffer("recent", torch.full((recorded, len(tasks)), torch.nan))

    def forward(self, step: StepView) -> Tensor:
        """The losses (K,), each times its weight."""
        losses = step.losses.detach()
        before, last = self._windows(losses) if self.options.window == "iterations" else self._epochs(losses, step)
        if before.isnan().any():
            return step.losses
        ratio = torch.where(before != 0, last / before, 1).nan_to_num()
        weights: Tensor = len(ratio) * (ratio / self.options.temperature).softmax(0)
        return weights * step.losses

    def _epochs(self, losses: Tensor, step: StepView) -> Tensor:
        """Mean losses (2, K) of the last two whole epochs."""
        if step.clock.epoch != self.epoch:
            if self.steps > 0:
                self.means = torch.stack([self.means[1], self.total / self.steps])
            self.epoch.fill_(step.clock.epoch)
            self.steps.zero_()
            self.total.zero_()
        if torch.isfinite(losses).all():
            self.steps += 1
            self.total += losses
        return self.means

    def _windows(self, losses: Tensor) -> Tensor:
        """Mean losses (2, K) of the last two windows of steps."""
        if torch.isfinite(losses).all():
            self.recent = torch.cat([self.recent[1:], losses[None].to(self.recent)])
        return self.recent.view(2, -1, len(losses)).mean(1)
