"""The simplex: weights that are not negative and sum to 1."""

from __future__ import annotations

import numpy as np

from mtlcli.weighting.solvers.gramian import Array


def onto_simplex(point: Array) -> Array:
    """The point of the simplex nearest to `point` (K,)."""
    point = point - point.max()  # no change to the answer, and nothing large left to round
    falling = np.sort(point)[::-1]
    excess = (np.cumsum(falling) - 1) / np.arange(1, len(point) + 1)
    nearest: Array = np.maximum(point - excess[falling > excess][-1], 0)
    return nearest
