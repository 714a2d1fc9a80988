"""Projection of the mean gradient."""

from __future__ import annotations

import numpy as np
from pydantic import Field
from torch import Tensor

from mtlcli.options import Options as AnyOptions
from mtlcli.registry import gradient_weightings
from mtlcli.search import searched_among
from mtlcli.weighting.base import GradientWeighting
from mtlcli.weighting.solvers import answer, checked, conflict_free_points


@gradient_weightings.register("dualproj")
class DualProj(GradientWeighting):
    """Project the mean gradient onto the directions that conflict with no task.

    Formula: direction = argmin ||d - g_0|| over <d, g_k> >= 0 for all k, with g_0 the mean gradient (equation 11);
        d = sum_k v_k g_k with v = argmin v'Gv over v_k >= 1/K.
    Reads: the Gramian. The weights sum to at least 1, and to 1 where the mean conflicts with no task.
    Cost: K gradients, and a quadratic program on K x K numbers.
    Source: Lopez-Paz & Ranzato, Gradient Episodic Memory for Continual Learning, NeurIPS 2017, arXiv 1706.08840, whose
        projection it is; code SimplexLab/TorchJD. Heads keep their own gradients, as there.
    Deviations: the paper projects the newest task's gradient against those of earlier tasks; here, as in TorchJD, the
        mean against all. Solved exactly on unit gradients: <d, g_k> / ||g_k|| is nowhere below zero by more than 1e-7
        of the longest gradient, the rounding of float32, or 1e-5 where gradients all but cancel. TorchJD solves for G /
        trace(G) + reg_eps I with reg_eps = 1e-4, which `reg_eps` does here if asked, and does not project at all where
        trace(G) < norm_eps = 1e-4. Gradients below 1e-25 of the longest count as zero.
    """

    class Options(AnyOptions):
        """Options of DualProj."""

        reg_eps: float = Field(
            0.0,
            ge=0,
            description="Multiple of the identity added to the Gramian over its trace.",
            json_schema_extra=searched_among(0.0, 1e-4, 1e-3, 1e-2),
        )

    reads = "gramian"

    def forward(self, statistic: Tensor, losses: Tensor) -> Tensor:
        """Weights (K,) of at least 1/K. Raises MtlError where the Gramian is not finite."""
        gramian = checked(statistic, self.name)
        num = len(gramian)
        weights, exact = conflict_free_points(gramian, np.full((1, num), 1 / num), self.options.reg_eps)
        if not exact:
            self.count("the projection stopped early, its last point was used")
        return answer(weights[0], statistic)
