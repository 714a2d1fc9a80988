"""Geometric loss strategy."""

from __future__ import annotations

import math

from torch import Tensor

from mtlcli.registry import loss_weightings
from mtlcli.weighting.base import LossWeighting, StepView
from mtlcli.weighting.losses._values import SMALLEST, count_unusable


@loss_weightings.register("gls")
class GLS(LossWeighting):
    """Train on the geometric mean of the losses, for which halving any one of them counts the same.

    Formula: G = (prod_k L_k)^(1/K); entry k is (G / (K L_k)) L_k with that factor detached, so that the entries sum to
        G and so do their gradients.
    Reads: the losses, which should be positive.
    Cost: none.
    Source: Chennupati et al., MultiNet++: Multi-Stream Feature Aggregation and Geometric Loss Strategy for Multi-Task
        Learning, CVPR Workshops 2019, arXiv 1904.08492; code median-research-group/LibMTL.
    Deviations: the product is taken over logs, so that it neither overflows nor vanishes. A loss below 1e-12, as
        without a label in the batch, stays out of the mean and is counted unless it is 0; the code's gradient vanishes
        for all other tasks then.
    """

    def forward(self, step: StepView) -> Tensor:
        """The losses (K,), each times the factor that its gradient gets from the geometric mean."""
        losses = step.losses.tolist()
        count_unusable(losses, self)
        logs = [math.log(loss) if loss > SMALLEST else None for loss in losses]
        known = [log for log in logs if log is not None]
        mean = sum(known) / max(len(known), 1)
        factors = [0.0 if log is None else math.exp(mean - log) / len(known) for log in logs]
        return step.losses.new_tensor(factors) * step.losses
