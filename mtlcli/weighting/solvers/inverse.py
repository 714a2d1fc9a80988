"""Weights that answer to the products of the update with the gradients: G w = 1/w and its relatives."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from mtlcli.weighting.solvers.gramian import ROUNDING, Array, Solution
from mtlcli.weighting.solvers.quadratic import min_norm_point


def inverse_point(cosine: Array) -> Solution:
    """x > 0 (K,) with C x = 1 / x, for a positive semidefinite C = `cosine` with ones on its diagonal.

    The solution is unique and finite unless some convex combination of the unit gradients is zero. Then, and where one
    is shorter than rounding lets us see, the least of the multiples 1e-7, 1e-6, ... of the identity that gives a
    solution is added to C, and `exact` is False.
    """
    return power_point(cosine, np.ones(len(cosine)), 1.0)


def power_point(cosine: Array, lengths: Array, alpha: float) -> Solution:
    """w > 0 (K,) with G w = w^(-1/alpha), for gradients of these cosines and lengths.

    Each product holds to 1e-8 of its value or to the rounding of its terms, unless its w is at the end of float64,
    1e-300. Otherwise like `inverse_point`, and not exact where only a more moderate alpha, between 1 and `alpha`, could
    be solved for.
    """
    unit = math.exp(float(np.log(lengths).mean()))
    lengths = lengths / unit
    with np.errstate(all="ignore"):  # what overflows is thrown away
        w, outcome = _continued(cosine, lengths, alpha)
        exact = outcome == "solved"
        ridge = ROUNDING
        while outcome in ("cancels", "stuck"):
            ridged = cosine + ridge * np.eye(len(cosine))
            w, outcome = _continued(ridged, lengths, alpha, w if outcome == "cancels" else None, may_cancel=True)
            ridge *= 10
            if ridge > 1e6:  # G is as good as diagonal
                w, outcome = lengths ** (-2 * alpha / (1 + alpha)), "solved"
    return Solution(w * unit ** (-2 * alpha / (1 + alpha)), exact)


Outcome = Literal["solved", "moderate", "cancels", "stuck"]


def _continued(
    matrix: Array, lengths: Array, alpha: float, start: Array | None = None, may_cancel: bool = False
) -> tuple[Array, Outcome]:
    """Newton's method, and where it is stuck from alpha = 1 on in stages, each from the solution of the one before.

    `moderate` where some stages are solved but not the last: the solution is that of the nearest alpha.
    """
    w, outcome = _newton(matrix, lengths, alpha, start, may_cancel)
    if outcome != "stuck":
        return w, outcome
    reached = None
    for stage in np.geomspace(1, alpha, 2 + int(abs(math.log2(alpha)))).tolist():
        w, outcome = _newton(matrix, lengths, stage, reached, may_cancel)
        if outcome != "solved":
            break
        reached = w
    return (w, outcome) if reached is None or outcome != "stuck" else (reached, "moderate")


def _newton(
    matrix: Array, lengths: Array, alpha: float, start: Array | None = None, may_cancel: bool = False
) -> tuple[Array, Outcome]:
    """Newton's method with a line search.

    With D = diag(lengths), e = (1 - alpha) / (1 + alpha), p = 1 / alpha, s = D^e, w = D^(e - 1) x and y = s x, the
    equation G w = w^-p is C y = s x^-p, and 0 the gradient of a convex function of y.
    """
    power, exponent = 1 / alpha, (1 - alpha) / (1 + alpha)
    scale = lengths**exponent
    scale /= scale.max()
    to_weights = lengths ** (exponent - 1)
    if start is None:
        mean = max(float(scale @ matrix @ scale) / float(scale @ scale), ROUNDING)
        y = scale * mean ** (-1 / (1 + power))
    else:
        y = scale * start / to_weights
    product, sizes, off = matrix @ y, np.abs(matrix), math.inf
    for _ in range(200):
        x = y / scale
        pull = scale * x**-power
        residual = product - pull
        # Two ways to be done with an entry where rounding forbids more: the terms of its product cancel, or it is as
        # good as zero and wants to be smaller.
        vanished = (y < 1e-25 * y.max()) & (residual > 0)
        missing = np.where(vanished, 0, np.maximum(np.abs(residual) - 1e-14 * (sizes @ y), 0))
        before, off = off, float((missing / pull).max())
        if off < 1e-10 or (off < 1e-8 and off > before / 2):
            # Some gradients may cancel among themselves, which rounding of the others' larger terms hides.
            hidden = ~vanished & (np.abs(residual) > 1e-3 * pull)
            if not may_cancel and hidden.any() and _shortest(matrix[hidden][:, hidden]) <= ROUNDING:
                return to_weights * x, "cancels"
            break
        if not may_cancel and float(y @ product) <= ROUNDING * float(y @ y):
            return to_weights * x, "cancels"  # a convex combination of the unit gradients is as good as zero
        hessian = matrix.copy()
        hessian.flat[:: len(y) + 1] += power * pull / y
        if not np.isfinite(hessian).all():
            return to_weights * x, "stuck"
        try:
            move = np.linalg.solve(hessian, residual)
        except np.linalg.LinAlgError:
            return to_weights * x, "stuck"
        if not float(residual @ move) >= -1e-12:  # no Gramian
            return to_weights * x, "stuck"
        length = _step_length(y, move, product, matrix @ move, scale, power)
        if length == 0:
            break
        y = y - length * move
        product = matrix @ y
    if off >= 1e-8:
        return to_weights * x, "stuck"
    x[vanished] = np.maximum((product / scale)[vanished] ** -alpha, 1e-300)  # too small to change any product
    return to_weights * x, "solved"


def _shortest(cosine: Array) -> float:
    """The squared length of the shortest convex combination of unit gradients."""
    weights, _ = min_norm_point(cosine)
    return float(weights @ cosine @ weights)


def _step_length(y: Array, move: Array, product: Array, product_of_move: Array, scale: Array, power: float) -> float:
    """The first of 1, 1/2, 1/4, ... that stays positive and does not run past the minimum along -move by much."""
    slope = float(move @ (product - scale * (y / scale) ** -power))
    length = 1.0
    while length > 1e-18:
        there = y - length * move
        if (there > 0.01 * y).all():
            ahead = float(move @ (product - length * product_of_move - scale * (there / scale) ** -power))
            if ahead >= -0.5 * slope:
                return length
        length /= 2
    return 0.0
