"""Weights from the coefficient of variation."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from mtlcli.options import Options as AnyOptions
from mtlcli.registry import loss_weightings
from mtlcli.search import searched_among
from mtlcli.weighting.base import LossWeighting, StepView


@loss_weightings.register("cov")
class CoV(LossWeighting):
    """Weigh a task up while its loss still varies, relative to its mean: then it has more to learn.

    Formula: w = K c / sum(c), c_k = std(l_k) / mean(l_k) over all steps before this one, of the ratios
        l_k(t) = L_k(t) / mean of L_k before t; w = 1 in the first two steps.
    Reads: the losses.
    Cost: 5 K numbers of state.
    Source: Groenendijk et al., Multi-Loss Weighting with Coefficient of Variations, WACV 2021, arXiv 2009.01717; code
        rickgroen/cov-weighting.
    Deviations: the weights sum to K, so that the learning rate means what it means for equal weights; in the code they
        sum to 1. Steps with non-finite losses reuse the weights of the step before, and a ratio to zero counts as 1.
    """

    class Options(AnyOptions):
        """Options of the coefficient of variation."""

        decay: float | None = Field(
            None,
            gt=0,
            lt=1,
            description="Share of the means kept in a step; without it all steps count alike.",
            json_schema_extra=searched_among(None, 0.9, 0.99, 0.999),
        )

    steps: Tensor  # ()
    mean_loss: Tensor  # (K,)
    mean_ratio: Tensor  # (K,)
    squares: Tensor  # (K,)  Welford's sum of squared distances of the ratios from their mean
    weights: Tensor  # (K,)  of the last step

    def __init__(self, options: AnyOptions, tasks: tuple[str, ...], rng: torch.Generator) -> None:
        super().__init__(options, tasks, rng)
        self.register_buffer("steps", torch.zeros(()))
        for name in ("mean_loss", "mean_ratio", "squares"):
            self.register_buffer(name, torch.zeros(len(tasks)))
        self.register_buffer("weights", torch.ones(len(tasks)))

    def forward(self, step: StepView) -> Tensor:
        """The losses (K,), each times its weight."""
        losses = step.losses.detach().to(self.mean_loss)
        if not torch.isfinite(losses).all():
            self.count("non-finite losses: the last weights were used")
            return self.weights * step.losses
        steps = int(self.steps)
        if steps > 1:
            variation = (self.squares / steps + 1e-8).sqrt() / self.mean_ratio.abs().clamp(min=1e-8)
            self.weights = len(losses) * variation / variation.sum()
        if steps == 0:
            self.mean_loss, self.mean_ratio = losses, torch.ones_like(losses)
        else:
            kept = self.options.decay or steps / (steps + 1)
            ratios = torch.where(self.mean_loss != 0, losses / self.mean_loss, 1)
            mean_ratio = torch.lerp(ratios, self.mean_ratio, kept)
            self.squares = self.squares + (ratios - self.mean_ratio) * (ratios - mean_ratio)
            self.mean_ratio, self.mean_loss = mean_ratio, torch.lerp(losses, self.mean_loss, kept)
        self.steps += 1
        return self.weights * step.losses
