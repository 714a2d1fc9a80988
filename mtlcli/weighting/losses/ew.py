"""Equal weights."""

from __future__ import annotations

from torch import Tensor

from mtlcli.registry import loss_weightings
from mtlcli.weighting.base import LossWeighting, StepView


@loss_weightings.register("ew")
class EW(LossWeighting):
    """Train on the losses as they are.

    Formula: sum_k L_k.
    Reads: the losses.
    Cost: none.
    Source: the usual baseline; `LinearScalarization` in AvivNavon/nash-mtl, `EW` in median-research-group/LibMTL.
    Deviations: none.
    """

    honest_baseline = True

    def forward(self, step: StepView) -> Tensor:
        """The losses (K,)."""
        return step.losses
