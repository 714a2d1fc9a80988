"""Fair resource allocation."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from mtlcli.options import Options as AnyOptions
from mtlcli.registry import gradient_weightings
from mtlcli.search import searched
from mtlcli.weighting.base import GradientWeighting
from mtlcli.weighting.solvers import ROUNDING, Array, answer, checked, cosines, min_norm_point, power_point


@gradient_weightings.register("fairgrad")
class FairGrad(GradientWeighting):
    """Share the decrease of the losses fairly, from the largest total (alpha = 0) to the largest minimum.

    Formula: w > 0 with G w = w^(-1/alpha) (equation 4), so that each task gains <g_k, d> = w_k^(-1/alpha) from
        d = sum_k w_k g_k; direction = d, shortened to the norm `max_norm`. alpha = 0: w = 1, the sum; 1: a bargain, all
        gain relative to their gradients' lengths; 2: least potential delay; max_min: the limit alpha -> infinity, w
        proportional to the weights of the shortest point in the gradients' hull, with <g_k, d> = 1 where w_k > 0.
    Reads: the Gramian. The weights have no fixed sum.
    Cost: K gradients, and about ten Newton steps on K x K numbers.
    Source: Ban & Ji, Fair Resource Allocation in Multi-Task Learning, ICML 2024, arXiv 2402.15638; code
        OptMN-Lab/fairgrad. Heads keep their own gradients, as in that code.
    Deviations: Newton's method with the residual checked, where the code's `least_squares` stops after 100 K
        evaluations. alpha is 2 as in the scripts of all its experiments; the class's default there is 1. The code
        multiplies w by K before it shortens the update, which matters only to updates that are short already; that is
        left out, so that the equation holds for the weights returned. Where gradients cancel (a convex combination of
        them is zero) no solution exists: the least multiple of the identity that gives one is added to the cosines.
        Where an alpha below 0.1 or above 30 leaves no solution in floating point, a more moderate one is used. Both are
        counted, and for `max_norm` the update counts as no shorter than 3e-4 of its terms: rounding in float32 leaves
        as much. A task with a zero gradient, or one below 1e-25 of the longest, gets the smallest weight of the others,
        or 1.
    """

    class Options(AnyOptions):
        """Options of FairGrad."""

        alpha: Annotated[float, Field(ge=0)] | Literal["max_min"] = Field(
            2.0,
            description="How much fairness counts: 0 not at all, max_min alone.",
            json_schema_extra=searched(0.5, 10.0, log=True),
        )
        max_norm: float = Field(
            1.0,
            ge=0,
            description="Largest norm of the update; larger ones are shortened. 0: no limit.",
            json_schema_extra=searched(0.3, 3.0, log=True),
        )

    reads = "gramian"

    def forward(self, statistic: Tensor, losses: Tensor) -> Tensor:
        """Weights (K,). Raises MtlError where the Gramian is not finite."""
        gramian = checked(statistic, self.name)
        cosine, lengths = cosines(gramian)
        present = lengths > 0
        if not present.any():
            return torch.ones_like(statistic[0])
        cosine, lengths = cosine[present][:, present], lengths[present]
        alpha = self.options.alpha
        if alpha == 0:
            found = np.ones(len(lengths))
        elif alpha == "max_min":
            found = self._largest_minimum(gramian[present][:, present], cosine, lengths)
        else:
            found, exact = power_point(cosine, lengths, alpha)
            if not exact:
                self.count("no exact solution: gradients cancel (a ridge was added), or alpha is too extreme for them")
        scaled = found * lengths
        # The sum is applied in float32: of terms that cancel, at least their rounding is left.
        norm = math.sqrt(max(float(scaled @ cosine @ scaled), ROUNDING * float(scaled @ scaled)))
        if 0 < self.options.max_norm < norm:
            found = found * (self.options.max_norm / norm)
        weights = np.full(len(present), found.min())
        weights[present] = found
        return answer(weights, statistic)

    def _largest_minimum(self, gramian: Array, cosine: Array, lengths: Array) -> Array:
        weights, exact = min_norm_point(gramian)
        scaled = weights * lengths
        square = float(scaled @ cosine @ scaled)
        least = ROUNDING * float(scaled @ scaled)
        if square <= least or not exact:
            self.count("gradients cancel each other: shared with a ridge added")
        return weights / max(square, least)
