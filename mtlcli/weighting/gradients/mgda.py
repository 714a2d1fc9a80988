"""The multiple-gradient descent algorithm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from mtlcli.errors import MtlError
from mtlcli.options import Options as AnyOptions
from mtlcli.registry import gradient_weightings
from mtlcli.search import searched_among
from mtlcli.weighting.base import GradientWeighting, Trait
from mtlcli.weighting.solvers import answer, checked, cosines, min_norm_point

NEGATIVE = "it divides by weighted losses, which can be negative there; use normalise: none or l2"


@gradient_weightings.register("mgda")
class MGDA(GradientWeighting):
    """Follow the shortest convex combination of the gradients, which hurts no task to first order.

    Formula: w = argmin ||sum_k w_k g_k / s_k||^2 over w >= 0, sum(w) = 1; direction = sum_k w_k g_k.
        s_k = 1 (none), ||g_k|| (l2), L_k (loss) or L_k ||g_k|| (loss+).
    Reads: the Gramian; for `loss` and `loss+` the losses, which must not be negative then.
    Cost: K gradients, and an exact active-set solve on K x K numbers.
    Source: Desideri, Multiple-gradient descent algorithm (MGDA) for multiobjective optimization, 2012; Sener & Koltun,
        Multi-Task Learning as Multi-Objective Optimization, NeurIPS 2018, arXiv 1810.04650; code
        isl-org/MultiObjectiveOptimization. Heads train on the weighted losses, as in that code.
    Deviations: solved exactly, where the code's Frank-Wolfe search may stop early. The weights sum to 1 as in that
        code; AvivNavon/nash-mtl multiplies them by K, which is a learning rate K times as large. With `normalise` other
        than none the weights found for the divided gradients go to the undivided ones, as in the code: the promise to
        hurt no task is then lost. A zero gradient takes all the weight, so that such a step does not move; only tasks
        without a label in the batch, and with `groups` those that do not reach a group, have no say.
    """

    class Options(AnyOptions):
        """Options of MGDA."""

        normalise: Literal["none", "l2", "loss", "loss+"] = Field(
            "none",
            description="What each gradient is divided by before the shortest combination is sought.",
            json_schema_extra=searched_among("none", "l2", "loss", "loss+"),
        )

    reads = "gramian"
    heads = "weighted"
    minds_zeros = True

    @classmethod
    def refuses(cls, options: Any) -> Mapping[Trait, str]:
        """Negative weights, where it divides by losses."""
        return {"negative_weights": NEGATIVE} if options.normalise in ("loss", "loss+") else {}

    def forward(self, statistic: Tensor, losses: Tensor) -> Tensor:
        """Weights (K,) on the simplex. Raises MtlError for a Gramian that is not finite or a negative loss."""
        gramian = checked(statistic, self.name)
        if self.options.normalise in ("l2", "loss+"):
            _, lengths = cosines(gramian)
            lengths[lengths == 0] = 1
            gramian = gramian / lengths[:, None] / lengths
        if self.options.normalise in ("loss", "loss+"):
            if (losses < 0).any():
                raise MtlError(
                    f"{self.name}: normalise: {self.options.normalise} divides by the losses, which should not be "
                    f"negative; found {losses.min():.4g}; choose none or l2"
                )
            scale = np.maximum(losses.numpy(force=True).astype(np.float64), 1e-12)
            scale = scale / scale.min()  # only ratios matter, and extremes would overflow
            gramian = gramian / scale[:, None] / scale
        weights, exact = min_norm_point(gramian)
        if not exact:
            self.count("min-norm solve stopped early, its last point was used")
        if (gramian.diagonal() <= 0).any():
            self.count("a zero gradient took all the weight")
        return answer(weights, statistic)
