"""Uncertainty weighting."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from mtlcli.options import Options as AnyOptions
from mtlcli.registry import loss_weightings
from mtlcli.search import searched
from mtlcli.weighting.base import LossWeighting, StepView
from mtlcli.weighting.losses._values import seen


@loss_weightings.register("uw")
class UW(LossWeighting):
    """Learn how noisy each task is and divide its loss by that.

    Formula: sum_k L_k / (2 exp(s_k)) + s_k / 2, with learnable s_k = log(sigma_k^2).
    Reads: the losses; the s_k are parameters and join the run's optimiser.
    Cost: K parameters.
    Source: Kendall, Gal & Cipolla, Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and
        Semantics, CVPR 2018, arXiv 1705.07115; code yaringal/multi-task-learning-example. Heads train on the weighted
        losses.
    Deviations: one form for all losses, as AvivNavon/nash-mtl and median-research-group/LibMTL have it; the paper
        derives L / sigma^2 without the 2 for classification. They differ in where s starts: at 0 in the former, as
        here, and at -0.5 in the latter. Where a loss is exactly 0, as without a label in the batch, s has no gradient:
        labels that were not seen have no likelihood.
    """

    class Options(AnyOptions):
        """Options of uncertainty weighting."""

        init: float = Field(
            0.0, description="First value of every log-variance s.", json_schema_extra=searched(-2.0, 2.0)
        )

    def __init__(self, options: AnyOptions, tasks: tuple[str, ...], rng: torch.Generator) -> None:
        super().__init__(options, tasks, rng)
        self.log_variances = nn.Parameter(torch.full((len(tasks),), float(self.options.init)))

    def forward(self, step: StepView) -> Tensor:
        """The losses (K,), divided by twice their variances, plus half of the log-variances."""
        own = seen(self.log_variances, step.losses)
        return step.losses / (2 * own.exp()) + own / 2
