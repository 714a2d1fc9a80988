"""Independent component alignment."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from mtlcli.options import Options as AnyOptions
from mtlcli.registry import gradient_weightings
from mtlcli.search import searched_among
from mtlcli.weighting.base import GradientWeighting
from mtlcli.weighting.solvers import answer, checked


@gradient_weightings.register("aligned_mtl")
class AlignedMTL(GradientWeighting):
    """Make the gradients orthogonal and equally long, changing them as little as possible, then add them up.

    Formula: G = V diag(l) V', B = sqrt(s) V diag(l)^(-1/2) V' over the eigenvalues that are not zero; direction =
        sum_j (sum_k B_jk g_k), whose terms have a condition number of 1 (Algorithm 1). s = min(l), median(l) or, for
        rmse, mean(l).
    Reads: the Gramian. The weights have no fixed sum; they are 1 each for orthogonal gradients of equal length.
    Cost: K gradients, and an eigendecomposition of K x K numbers.
    Source: Senushkin et al., Independent Component Alignment for Multi-Task Learning, CVPR 2023, arXiv 2305.19000; code
        SamsungLabs/MTL, `amtl`. Heads keep their own gradients, that code's default.
    Deviations: the aligned gradients are summed, as in the code; SimplexLab/TorchJD averages them. Eigenvalues below
        K times float32's epsilon (1.2e-7) times the largest count as zero, as in the code, whatever the type of the
        gradients.
    """

    class Options(AnyOptions):
        """Options of Aligned-MTL."""

        scale: Literal["min", "median", "rmse"] = Field(
            "min",
            description="The squared length of the aligned gradients, from the eigenvalues of the Gramian.",
            json_schema_extra=searched_among("min", "median", "rmse"),
        )

    reads = "gramian"

    def forward(self, statistic: Tensor, losses: Tensor) -> Tensor:
        """Weights (K,). Raises MtlError where the Gramian is not finite."""
        values, vectors = np.linalg.eigh(checked(statistic, self.name))
        kept = values > max(float(values[-1]), 0.0) * len(values) * torch.finfo(torch.float32).eps
        if not kept.any():
            return torch.ones_like(statistic[0])
        values, vectors = values[kept], vectors[:, kept]
        scales = {"min": values[0], "median": values[(len(values) - 1) // 2], "rmse": values.mean()}
        size = math.sqrt(float(scales[self.options.scale]))
        return answer(vectors @ (vectors.sum(0) * (size / np.sqrt(values))), statistic)
