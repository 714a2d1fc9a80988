"""Conflict-averse gradient descent."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from mtlcli.options import Options as AnyOptions
from mtlcli.registry import gradient_weightings
from mtlcli.search import searched
from mtlcli.weighting.base import GradientWeighting
from mtlcli.weighting.solvers import answer, checked, conflict_averse_point


@gradient_weightings.register("cagrad")
class CAGrad(GradientWeighting):
    """Stay near the mean gradient and, within that distance, do best for the task that gains least.

    Formula: w = argmin <g_w, g_0> + c ||g_0|| ||g_w|| over w >= 0, sum(w) = 1, with g_w = sum_k w_k g_k and g_0 the
        mean gradient; direction = K (g_0 + c ||g_0|| / ||g_w|| g_w) / r (Algorithm 1), which maximises the least
        <g_k, d> over ||d - g_0|| <= c ||g_0||. r = 1, 1 + c^2 or 1 + c.
    Reads: the Gramian. The weights are at least 1 / r each, and 1 for c = 0.
    Cost: K gradients, a few linear systems and as a rule one quadratic program on K x K numbers.
    Source: Liu et al., Conflict-Averse Gradient Descent for Multi-task Learning, NeurIPS 2021, arXiv 2110.14048; code
        Cranial-XIX/CAGrad. Heads receive the gradient of the summed losses, as in that code.
    Deviations: solved exactly in float64, where the code uses SLSQP from the uniform point and adds 1e-8 to both norms,
        which decides the answer for gradients that small. c (LibMTL: 0.5), r and the factor K, which makes the
        direction comparable to a sum of gradients, follow the code; SimplexLab/TorchJD leaves out r and K. Where g_w is
        zero or below 1e-4 of its terms (gradients cancel, or one is zero) no task's gain can be the aim: of the updates
        in the ball that conflict with no task, the nearest to the mean gradient is taken, and the event is counted.
        Gradients below 1e-25 of the longest count as zero. Tasks without a label in the batch, and with `groups` those
        that do not reach a group, are left out.
    """

    class Options(AnyOptions):
        """Options of CAGrad."""

        c: float = Field(
            0.4,
            ge=0,
            description="Radius of the ball around the mean gradient, in lengths of it.",
            json_schema_extra=searched(0.05, 0.95),
        )
        rescale: Literal[0, 1, 2] = Field(
            1, description="What the update is divided by. 0: nothing, 1: 1 + c^2, 2: 1 + c."
        )

    reads = "gramian"
    minds_zeros = True

    def forward(self, statistic: Tensor, losses: Tensor) -> Tensor:
        """Weights (K,) > 0. Raises MtlError where the Gramian is not finite."""
        c = self.options.c
        worst, factor, exact = conflict_averse_point(checked(statistic, self.name), c)
        if not exact:
            self.count("gradients cancel, or one is zero: took the nearest update that conflicts with no task")
        shrink = (1.0, 1 + c**2, 1 + c)[self.options.rescale]
        return answer((1 + len(worst) * factor * worst) / shrink, statistic)
