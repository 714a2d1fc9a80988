"""Impartial multi-task learning, gradient part."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mtlcli.registry import gradient_weightings
from mtlcli.weighting.base import GradientWeighting
from mtlcli.weighting.solvers import ROUNDING, answer, checked, cosines, equal_projections


@gradient_weightings.register("imtl_g")
class IMTLG(GradientWeighting):
    """Combine the gradients so that the update has the same projection on each of them.

    Formula: <d, g_k> / ||g_k|| is the same for all k, d = sum_k w_k g_k, sum(w) = 1; with unit gradients of cosines C,
        w is proportional to (C^-1 1)_k / ||g_k|| (the closed form). Weights can be negative.
    Reads: the Gramian. The weights sum to 1.
    Cost: K gradients, and an eigendecomposition of K x K numbers.
    Source: Liu et al., Towards Impartial Multi-task Learning, ICLR 2021; no code by the authors; AvivNavon/nash-mtl,
        `IMTLG`. Heads train on the weighted losses, as there.
    Deviations: a pseudo-inverse of C where C is singular; the code inverts a (K-1) x (K-1) matrix and adds 1e-8 to it
        where that fails. SimplexLab/TorchJD takes the pseudo-inverse of the Gramian: the same direction, of another
        length where gradients depend on each other. If the point where the projections are equal lies behind, so that a
        step towards it would raise every loss, its opposite is taken and counted: the weights then sum to -1. Where
        only the point zero has equal projections (exactly opposed gradients) weights are in proportion to 1 / ||g_k||,
        and where weights cancel, so that they cannot sum to 1, their sizes do; both are counted. A zero gradient gets
        the weight 0, or 1 / K where all are zero.
    """

    reads = "gramian"
    heads = "weighted"

    def forward(self, statistic: Tensor, losses: Tensor) -> Tensor:
        """Weights (K,). Raises MtlError where the Gramian is not finite."""
        cosine, lengths = cosines(checked(statistic, self.name))
        present = lengths > 0
        if not present.any():
            return torch.full_like(statistic[0], 1 / len(lengths))
        shares, exact = equal_projections(cosine[present][:, present])
        if not exact:
            self.count("no update has equal projections on all gradients: the nearest was taken")
        if shares.sum() <= 1e-6:
            shares = np.ones(len(shares))
        relative = shares * (lengths[present].min() / lengths[present])
        total = relative.sum()
        if total < 0:
            self.count("equal projections lie behind: the opposite was taken")
        # Where positive and negative weights cancel, weights that sum to 1 have no bound.
        if abs(total) <= ROUNDING * np.abs(relative).sum():
            self.count("weights cancel: their sizes sum to 1 instead")
            total = np.abs(relative).sum()
        weights = np.zeros(len(lengths))
        weights[present] = relative / abs(total)
        return answer(weights, statistic)
