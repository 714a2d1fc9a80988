"""Gradient surgery."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from mtlcli.registry import gradient_weightings
from mtlcli.weighting.base import GradientWeighting
from mtlcli.weighting.gradients._state import random_orders
from mtlcli.weighting.solvers import answer, checked, cosines


@gradient_weightings.register("pcgrad")
class PCGrad(GradientWeighting):
    """Where two tasks conflict, take out of each gradient its part along the other.

    Formula: for each task i, h_i = g_i; then for every other task j in random order, where <h_i, g_j> < 0,
        h_i <- h_i - <h_i, g_j> / ||g_j||^2 g_j with the original g_j; direction = sum_i h_i (Algorithm 1).
    Reads: the Gramian; h_i stays a combination of the gradients, so its coefficients are all that is projected.
    Cost: K gradients, and K steps on K x K numbers.
    Source: Yu et al., Gradient Surgery for Multi-Task Learning, NeurIPS 2020, arXiv 2001.06782; code
        tianheyu927/PCGrad. Heads receive the gradient of the summed losses, as in that code and in AvivNavon/nash-mtl.
    Deviations: every task draws a fresh order, as the paper says; the TensorFlow code discards its shuffle and always
        goes 1..K. A task is never projected against itself, which that code does. The sum is not divided by K; the
        widely used PyTorch port WeiChengTseng/Pytorch-PCGrad averages.
    """

    reads = "gramian"

    def forward(self, statistic: Tensor, losses: Tensor) -> Tensor:
        """Weights (K,), at least 1 each. Raises MtlError where the Gramian is not finite."""
        cosine, lengths = cosines(checked(statistic, self.name))
        num = len(lengths)
        orders = random_orders(num, self.rng)
        rounds = orders[orders != np.arange(num)[:, None]].reshape(num, -1).T  # nobody meets itself
        pairs = num * np.arange(num) + rounds
        # In units of ||g_i||, which spares divisions by tiny squared norms: <h_i, u_j>, and what of u_j is taken out.
        products, taken, overlaps = cosine.copy(), np.zeros(num * num), np.empty(rounds.shape)
        for others, pair, overlap in zip(rounds, pairs, overlaps, strict=True):
            np.minimum(products.take(pair), 0.0, out=overlap)
            products -= overlap[:, None] * cosine.take(others, 0)
        taken[pairs] = overlaps
        # A zero gradient is never projected on, so its weight is its own 1.
        lengths[lengths == 0] = 1
        return answer(1 - (lengths @ taken.reshape(num, num)) / lengths, statistic)
