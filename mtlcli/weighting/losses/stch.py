"""Smooth Tchebycheff scalarisation."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from mtlcli.options import Options as AnyOptions
from mtlcli.registry import loss_weightings
from mtlcli.search import searched
from mtlcli.weighting.base import LossWeighting, StepView
from mtlcli.weighting.losses._values import SMALLEST, finite, log_of


@loss_weightings.register("stch")
class STCH(LossWeighting):
    """Lower a smooth maximum of the losses, each relative to what it was early in training.

    Formula: K mu log sum_k exp(z_k / mu), z_k = log(L_k / n_k), n_k = mean training loss of task k over the epoch
        `warmup_epochs`, counted from 0; sum_k log L_k until that epoch is over. Entry k is K softmax(z / mu)_k z_k with
        detached weights, which has the same gradient.
    Reads: the losses, which should be positive, and the epoch.
    Cost: K numbers of state.
    Source: Lin et al., Smooth Tchebycheff Scalarization for Multi-Objective Optimization, ICML 2024, arXiv 2402.19078;
        code Xi-L/STCH (STCH_MTL), as median-research-group/LibMTL has it. There the ideal point is 0 and the
        preferences are equal.
    Deviations: a loss below 1e-12 has no gradient and is counted; the code adds 1e-20. Steps with non-finite losses are
        left out of n.
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

    base_steps: Tensor  # ()  how many steps `base_total` holds
    base_total: Tensor  # (K,)  sum of the losses over the base epoch

    @classmethod
    def begins(cls, options: AnyOptions) -> int:
        """The one after the base."""
        chosen: Any = options
        return int(chosen.warmup_epochs + 1)

    def __init__(self, options: AnyOptions, tasks: tuple[str, ...], rng: torch.Generator) -> None:
        super().__init__(options, tasks, rng)
        self.register_buffer("base_steps", torch.zeros(()))
        self.register_buffer("base_total", torch.zeros(len(tasks)))

    def forward(self, step: StepView) -> Tensor:
        """Logs (K,) of the losses relative to their base, each times its weight."""
        logs = log_of(step.losses, self)
        losses = step.losses.detach()
        if step.clock.epoch == self.options.warmup_epochs and finite(losses.tolist()):
            self.base_steps += 1
            self.base_total += losses
        if step.clock.epoch <= self.options.warmup_epochs or self.base_steps == 0:
            return logs
        relative = logs - (self.base_total / self.base_steps).clamp(min=SMALLEST).log()
        weights: Tensor = len(logs) * (relative.detach() / self.options.mu).softmax(0)
        return weights * relative
