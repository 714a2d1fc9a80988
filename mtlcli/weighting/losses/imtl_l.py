"""Impartial multi-task learning, the part that balances losses."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mtlcli.options import Options as AnyOptions
from mtlcli.registry import loss_weightings
from mtlcli.weighting.base import LossWeighting, StepView
from mtlcli.weighting.losses._values import seen


@loss_weightings.register("imtl_l")
class IMTLL(LossWeighting):
    """Learn a scale for each loss that brings all of them to the same size.

    Formula: sum_k exp(s_k) L_k - s_k with learnable s, 0 at the start; exp(s_k) L_k settles at 1.
    Reads: the losses, which should be positive; the s_k are parameters and join the run's optimiser.
    Cost: K parameters.
    Source: Liu et al., Towards Impartial Multi-task Learning, ICLR 2021; code median-research-group/LibMTL, which has
        it only together with the part that balances gradients.
    Deviations: where a loss is exactly 0, as without a label in the batch, s has no gradient; it would grow for good.
    """

    def __init__(self, options: AnyOptions, tasks: tuple[str, ...], rng: torch.Generator) -> None:
        super().__init__(options, tasks, rng)
        self.log_scales = nn.Parameter(torch.zeros(len(tasks)))

    def forward(self, step: StepView) -> Tensor:
        """The losses (K,), scaled, less the logs of their scales."""
        own = seen(self.log_scales, step.losses)
        return own.exp() * step.losses - own
