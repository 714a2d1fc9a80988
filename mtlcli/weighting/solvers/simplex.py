"""The simplex: weights that are not negative and sum to 1."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mtlcli.weighting.solvers.gramian import Array


def onto_simplex(point: Array) -> Array:
    """The point of the simplex nearest to `point` (K,)."""
    if not len(point):
        return point
    point = point - point.max()  # no change to the answer, and nothing large left to round
    falling = np.sort(point)[::-1]
    excess = (np.cumsum(falling) - 1) / np.arange(1, len(point) + 1)
    nearest: Array = np.maximum(point - excess[falling > excess][-1], 0)
    return nearest


def labelled(matrix: Array, losses: Tensor) -> NDArray[np.bool_]:
    """(K,) tasks that say something: with a label in the batch that is trained on, and in both that `matrix` (K, K) is
    made of."""
    found: NDArray[np.bool_] = (matrix.diagonal() != 0) & (losses.numpy(force=True) != 0)
    return found


def conditional(weights: Array, there: NDArray[np.bool_]) -> tuple[Array, float]:
    """The weights of the tasks `there`, as shares of what these have together, and how much that is.

    Equal shares where it is nothing.
    """
    own = weights[there]
    mass = float(own.sum())
    return (own / mass if mass > 0 else np.full_like(own, 1 / max(len(own), 1))), mass
