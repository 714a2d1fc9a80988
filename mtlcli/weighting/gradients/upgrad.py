"""Unconflicting projection of gradients."""

from __future__ import annotations

import numpy as np
from pydantic import Field
from torch import Tensor

from mtlcli.options import Options as AnyOptions
from mtlcli.registry import gradient_weightings
from mtlcli.search import searched_among
from mtlcli.weighting.base import GradientWeighting
from mtlcli.weighting.solvers import answer, checked, conflict_free_points


@gradient_weightings.register("upgrad")
class UPGrad(GradientWeighting):
    """Project each gradient onto the directions that conflict with none, then average.

    Formula: direction = 1/K sum_k P(g_k), P the projection onto {d: <d, g_j> >= 0 for all j}; P(g_k) =
        sum_j v_j g_j with v = argmin v'Gv over v >= e_k (proposition 1).
    Reads: the Gramian. The weights sum to at least 1, and to 1 where no gradients conflict.
    Cost: K gradients, and K quadratic programs on K x K numbers, solved together.
    Source: Quinton & Rey, Jacobian Descent for Multi-Objective Optimization, 2024, arXiv 2406.16232; code
        SimplexLab/TorchJD. Heads keep their own gradients, as there.
    Deviations: solved on unit gradients, whatever their lengths, and exactly, so that <d, g_k> / ||g_k|| is nowhere
        below zero by more than 1e-7 of the longest gradient, the rounding of float32, or 1e-5 where gradients all but
        cancel; those below 1e-25 of it count as zero. TorchJD solves for G / trace(G) + reg_eps I with reg_eps = 1e-4,
        whose updates can conflict a little, and does not project at all where trace(G) < norm_eps = 1e-4. `reg_eps`
        does the first here if asked; the second is left out.
    """

    class Options(AnyOptions):
        """Options of UPGrad."""

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
        weights, exact = conflict_free_points(gramian, np.eye(num) / num, self.options.reg_eps)
        if not exact:
            self.count("a projection stopped early, its last point was used")
        return answer(weights.sum(0), statistic)
