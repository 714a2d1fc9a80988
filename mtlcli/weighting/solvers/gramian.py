"""Gramians in and weights out: the way between torch and the solvers."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtlcli.errors import TrainingError

Array: TypeAlias = NDArray[np.float64]

# Gradients arrive in float32, whose rounding moves a cosine by about 1e-7: a convex combination of unit gradients with
# a squared norm below this cannot be told from zero.
ROUNDING = 1e-7

# Shorter gradients, in lengths of the longest, count as zero: weights that stretch them to its length come near 3e38,
# the end of float32, in which weights are applied.
VANISHING = 1e-25


class Solution(NamedTuple):
    """What a solver found. `exact` is False where the conditions of optimality are not met or had to be relaxed."""

    weights: Array  # (K,)
    exact: bool


def checked(gramian: Tensor, method: str) -> Array:
    """`gramian` (K, K) in float64, read-only. Raises TrainingError naming `method` where it is not finite."""
    result: Array = gramian.detach().to("cpu", torch.float64).numpy()
    finite = np.isfinite(result)
    if not finite.all():
        tasks = np.flatnonzero(~finite.all(1)).tolist()
        raise TrainingError(
            f"{method}: the Gramian of the gradients should be finite; found NaN or inf in rows {tasks}: a gradient "
            "overflowed or is NaN; lower the learning rate or look for the loss that diverged"
        )
    result.flags.writeable = False  # it may share its memory with the caller's tensor
    return result


def answer(weights: Array, statistic: Tensor) -> Tensor:
    """`weights` (K,) as a tensor of the type and on the device of `statistic`."""
    return torch.from_numpy(weights).to(statistic)


def lengths_of(gramian: Array) -> Array:
    """Lengths (K,) of the gradients; 0 where one is below 1e-25 of the longest."""
    lengths: Array = np.sqrt(np.maximum(gramian.diagonal(), 0))
    lengths[lengths <= VANISHING * lengths.max()] = 0
    return lengths


def cosines(gramian: Array) -> tuple[Array, Array]:
    """Cosines (K, K) between the gradients and their lengths (K,).

    Working on unit gradients makes solvers indifferent to scale. A zero gradient has length 0 and cosine 0 to all, and
    so has one below 1e-25 of the longest.
    """
    lengths = lengths_of(gramian)
    inverse = np.divide(1, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    return np.clip(gramian * inverse[:, None] * inverse, -1, 1), lengths
