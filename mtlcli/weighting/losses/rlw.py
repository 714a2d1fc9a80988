"""Random loss weighting."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from mtlcli.options import Options as AnyOptions
from mtlcli.registry import loss_weightings
from mtlcli.search import searched_among
from mtlcli.weighting.base import LossWeighting, StepView
from mtlcli.weighting.losses._values import SMALLEST


@loss_weightings.register("rlw")
class RLW(LossWeighting):
    """Draw new random weights for every step.

    Formula: sum_k w_k L_k, w = K softmax(z) with z ~ N(0, I) (normal), or w = K d with d uniform on the simplex
        (dirichlet).
    Reads: the losses.
    Cost: K random numbers.
    Source: Lin et al., Reasonable Effectiveness of Random Weighting: A Litmus Test for Multi-Task Learning, TMLR 2022,
        arXiv 2111.10603; code median-research-group/LibMTL.
    Deviations: the weights sum to K, so that the learning rate means what it means for equal weights; in LibMTL and in
        AvivNavon/nash-mtl they sum to 1, which is a learning rate K times as small.
    """

    class Options(AnyOptions):
        """Options of random loss weighting."""

        distribution: Literal["normal", "dirichlet"] = Field(
            "normal",
            description="Where the weights are drawn from.",
            json_schema_extra=searched_among("normal", "dirichlet"),
        )

    def forward(self, step: StepView) -> Tensor:
        """The losses (K,), each times its random weight."""
        draw = torch.empty(len(self.tasks), device=self.rng.device)
        if self.options.distribution == "normal":
            share = draw.normal_(generator=self.rng).softmax(0)
        else:
            draw.exponential_(generator=self.rng)  # divided by their sum they are Dirichlet(1, ..., 1)
            share = draw / draw.sum()
        weights = share.to(step.losses)
        there = step.losses.detach() != 0  # a task without a label in the batch takes no share from the others
        return there.sum() * weights / (weights * there).sum().clamp(min=SMALLEST) * step.losses
