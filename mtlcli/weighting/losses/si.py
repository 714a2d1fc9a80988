"""Scale-invariant weights."""

from __future__ import annotations

from torch import Tensor

from mtlcli.registry import loss_weightings
from mtlcli.weighting.base import LossWeighting, StepView
from mtlcli.weighting.losses._values import log_of


@loss_weightings.register("si")
class SI(LossWeighting):
    """Train on the logs of the losses, so that no task's unit of measurement matters.

    Formula: sum_k log L_k, whose gradient is sum_k g_k / L_k.
    Reads: the losses, which should be positive.
    Cost: none.
    Source: the baseline of Navon et al., Multi-Task Learning as a Bargaining Game, ICML 2022, arXiv 2202.01017; code
        AvivNavon/nash-mtl, `ScaleInvariantLinearScalarization`.
    Deviations: a loss below 1e-12 has no gradient and is counted, unless it is 0 as without a label in the batch; the
        code returns infinities.
    """

    scale_free = True
    honest_baseline = True

    def forward(self, step: StepView) -> Tensor:
        """Logs (K,) of the losses."""
        return log_of(step.losses, self)
