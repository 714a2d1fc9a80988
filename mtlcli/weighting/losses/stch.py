"""Smooth Tchebycheff scalarisation."""

from __future__ import annotations

import math
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from mtlcli.options import Options as AnyOptions
from mtlcli.registry import loss_weightings
from mtlcli.search import searched
from mtlcli.weighting.base import LossWeighting, StepView
from mtlcli.weighting.losses._values import Base, finite, log_of, weights_of


@loss_weightings.register("stch")
class STCH(LossWeighting):
    """Lower a smooth maximum of the losses, each relative to what it was early in training.

    Formula: K mu log sum_k exp(z_k / mu), z_k = log(L_k / n_k), n_k = mean training loss of task k over the epoch
        `warmup_epochs`, counted from 0; sum_k log L_k until that epoch is over. Entry k is K softmax(z / mu)_k z_k with
        detached weights, which has the same gradient.
    Reads: the losses, which should be positive, and the epoch.
    Cost: 2 K numbers of state.
    Source: Lin et al., Smooth Tchebycheff Scalarization for Multi-Objective Optimization, ICML 2024, arXiv 2402.19078;
        code Xi-L/STCH (STCH_MTL), as median-research-group/LibMTL has it. There the ideal point is 0 and the
        preferences are equal.
    Deviations: a loss below 1e-12, as without a label in the batch, stays out of n and of the sum, and K is the number
        of the others then; it is counted unless it is 0, and the code adds 1e-20. Steps with non-finite losses are left
        out of n.
    """

    scale_free = True

    class Options(AnyOptions):
        """Options of smooth Tchebycheff scalarisation."""

        mu: float = Field(
            1.0,
            gt=0,
            description="How smooth the maximum is: near 0, only the worst task trains.",
            json_schema_extra=searched(0.1, 10.0, log=True),
        )
        warmup_epochs: int = Field(
            4,
            ge=0,
            description="The epoch whose mean losses are the base, counted from 0.",
            json_schema_extra=searched(0, 4),
        )

    @classmethod
    def begins(cls, options: Any) -> int:
        """The one after the base."""
        return int(options.warmup_epochs + 1)

    def __init__(self, options: AnyOptions, tasks: tuple[str, ...], rng: torch.Generator) -> None:
        super().__init__(options, tasks, rng)
        self.base = Base(len(tasks), self.options.warmup_epochs)
        self.keep("base", self.base)

    def forward(self, step: StepView) -> Tensor:
        """Logs (K,) of the losses relative to their base, each times its weight."""
        logs, losses = log_of(step.losses, self), step.losses.tolist()
        if finite(losses):
            self.base.add(losses, step.clock.epoch)
        if step.clock.epoch <= self.options.warmup_epochs:
            return logs
        relative = [None if value is None else math.log(value) for value in self.base.over(losses, losses)]
        weights = weights_of([None if value is None else value / self.options.mu for value in relative])
        bases = [0.0 if value is None else math.log(loss) - value for loss, value in zip(losses, relative, strict=True)]
        return logs.new_tensor(weights) * (logs - logs.new_tensor(bases))
