"""Quadratic programs over weights that must not be negative."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mtlcli.weighting.solvers.gramian import ROUNDING, Array, Solution, cosines, lengths_of

# Added to the diagonal of matrices with entries of about 1, so that linearly dependent gradients share their weight
# instead of blowing up. One step of refinement takes its effect on the solution back out.
RIDGE = 1e-8
TOLERANCE = 1e-7  # on the conditions of optimality, for problems with entries of about 1


def nonnegative_minimum(matrix: Array, linear: Array, free: NDArray[np.bool_] | None = None) -> Solution:
    """x >= 0 (K,) that minimises 1/2 x'Qx - b'x, for Q = `matrix` positive semidefinite and b = `linear` in its range.

    Q and b should have entries of about 1. `free` is a guess at which entries are positive; default: all.
    """
    guess = np.ones(linear.shape, np.bool_) if free is None else free
    points, exact = _nonnegative_minima(matrix, linear[None], guess[None])
    return Solution(points[0], exact)


def min_norm_point(gramian: Array, free: NDArray[np.bool_] | None = None) -> Solution:
    """Weights (K,) on the simplex that minimise the norm of the weighted sum of gradients, w'Gw.

    With unit gradients of cosines C, lengths d and c = min(d) / d, the answer is proportional to u / d, where u >= 0
    minimises 1/2 u'(C + cc')u - c'u: for a fixed direction the best multiple leaves a value that falls with the norm of
    the point. That problem is strictly bounded even where the hull holds zero, and its terms are at most 2.
    """
    cosine, lengths = cosines(gramian)
    zero = lengths == 0
    if zero.any():  # the hull holds a gradient that is zero, so zero is its shortest point
        return Solution(zero / zero.sum(), True)
    closeness = lengths.min() / lengths
    scaled = nonnegative_minimum(cosine + closeness[:, None] * closeness, closeness, free)
    multiples = scaled.weights * closeness
    total = multiples.sum()
    if total <= 0:  # only where `gramian` is not a Gramian
        return Solution(closeness / closeness.sum(), False)
    return Solution(multiples / total, scaled.exact)


def conflict_free_points(gramian: Array, starts: Array, ridge: float = 0.0) -> tuple[Array, bool]:
    """For each row u of `starts` (N, K), the v >= u whose v'Gv is least: the projection of the combination u of the
    gradients onto the vectors that conflict with none of them. Returns them as (N, K), and whether all are exact.
    `ridge` times the identity is added to G over its trace.

    In v = u + z / d, with unit gradients of cosines C and lengths d, z >= 0 minimises 1/2 z'Cz + (C (d u))'z.
    """
    trace = float(gramian.trace())
    if ridge > 0 and trace > 0:
        gramian = gramian / trace + ridge * np.eye(len(gramian))
    cosine, lengths = cosines(gramian)
    scaled = starts * lengths
    sizes = np.abs(scaled).max(1, keepdims=True)
    sizes[sizes == 0] = 1
    linear = -(scaled / sizes) @ cosine
    moves, exact = _nonnegative_minima(cosine, linear, linear > 0)
    inverse = np.divide(1, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    return starts + sizes * moves * inverse, exact


def conflict_averse_point(gramian: Array, radius: float) -> tuple[Array, float, bool]:
    """Weights w (K,) on the simplex that minimise <g_w, g_0> + c ||g_0|| ||g_w||, with g_w the weighted sum of the
    gradients, g_0 their mean and c = `radius`; the factor c ||g_0|| / ||g_w||; and whether both are exact.

    For a given factor l the weights are those of the shortest point in the hull of g_k + g_0 / l, and l ||g_w|| rises
    with l. A guess at l is as a rule right and needs one round to be confirmed. Else, while the positive weights stay
    the same, ||g_w||^2 = A + B / l^2, which gives the l of the next round; a bracket guards it.

    Where g_w is zero, or below 1e-4 of its terms, l has no upper end, and each vector in the ball around g_0 that
    conflicts with no gradient is best. Then, not exact, l w leads from g_0 to the nearest of these.
    """
    num, lengths = len(gramian), lengths_of(gramian)
    to_mean = gramian.mean(1)
    mean_square = max(float(to_mean.mean()), 0.0)
    target = radius * math.sqrt(mean_square)
    weights = np.full(num, 1 / num)
    if target == 0 or math.sqrt(mean_square) <= ROUNDING * lengths.max():
        return weights, 0.0, True
    there = np.flatnonzero(lengths)
    part, tried = gramian, len(there) < num
    if tried:
        nearest = _conflict_free_pull(gramian, target)
        if nearest:
            return nearest
        # Tasks for which nothing can be gained are not the worst off: the others cannot all be kept from losing.
        weights, part, to_mean, lengths = np.zeros(num), gramian[there[:, None], there], to_mean[there], lengths[there]
    low, high = 0.0, math.inf
    factor, free = _guessed_factor(part, to_mean, target) or (radius, None)
    for _ in range(60):
        shifted = part + (to_mean[:, None] + to_mean) / factor + mean_square / factor**2
        weights[there], exact = min_norm_point(shifted, free)
        found = weights[there]
        free = found > 0
        square = max(float(found @ part @ found), 0.0)
        if not tried and math.sqrt(square) <= 1e-4 * float(found @ lengths):
            tried, nearest = True, _conflict_free_pull(gramian, target)
            if nearest:
                return nearest
        miss = factor * math.sqrt(square) / target - 1
        if abs(miss) <= 1e-9 or high - low <= 1e-12 * low:
            return weights, factor, exact
        low, high = (factor, high) if miss < 0 else (low, factor)
        affine = _shortest_affine(part, free)
        rest = target**2 - factor**2 * (square - affine)
        best = math.sqrt(rest / affine) if rest > 0 and affine > 0 else math.inf
        if high == math.inf:
            factor = min(best, 30 * factor) if best > factor else 30 * factor
        else:
            factor = best if low < best < high else (low + high) / 2
    return weights, factor, False


def _conflict_free_pull(gramian: Array, target: float) -> tuple[Array, float, bool] | None:
    """The shortest step from the mean gradient to a vector that conflicts with no gradient, as `conflict_averse_point`
    returns it; None where that is longer than `target`."""
    num = len(gramian)
    points, _ = conflict_free_points(gramian, np.full((1, num), 1 / num))
    pull = points[0] - 1 / num
    if float(pull @ gramian @ pull) > target**2:
        return None
    total = float(pull.sum())
    return (pull / total, total, False) if total > 0 else (np.full(num, 1 / num), 0.0, False)


def _guessed_factor(gramian: Array, to_mean: Array, target: float) -> tuple[float, NDArray[np.bool_]] | None:
    """The factor l of `conflict_averse_point` and which of its weights are positive, or None where pivoting fails.

    In v = l w the conditions of optimality are (G v + `to_mean`)_k = h for the positive v_k, at least h for the others,
    and v'Gv = `target`^2. On given positive entries v = h p - q with G p = 1 and G q = `to_mean`, which leaves a
    quadratic equation for h. Each round moves every entry of the wrong sign across, without a guard.
    """
    cosine, lengths = cosines(gramian)
    if not lengths.all():
        return None
    cosine.flat[:: len(cosine) + 1] += 1e-12
    scaled = np.stack([np.ones_like(lengths), to_mean]) / lengths
    free = np.ones(len(lengths), np.bool_)
    for _ in range(12):
        index = np.flatnonzero(free)
        rows = cosine[index]
        solved = np.linalg.solve(rows[:, index], scaled[:, index].T)
        (ones, mixed), (_, means) = (scaled[:, index] @ solved).tolist()
        if not ones > 0:
            return None
        factor = math.sqrt(max(mixed * mixed - ones * (means - target * target), 0))
        height = (mixed + factor) / ones
        found = solved @ (height, -1)
        positive = found @ rows + scaled[1] < height * scaled[0]
        positive[index] = found > 0
        if (positive == free).all():
            return (factor, free) if factor > 0 else None
        free = positive
    return None


def _shortest_affine(gramian: Array, free: NDArray[np.bool_]) -> float:
    """Squared norm of the shortest combination, of whatever signs that sum to 1, of the gradients in `free`."""
    cosine, lengths = cosines(gramian[np.ix_(free, free)])
    if not lengths.all():
        return 0.0
    cosine.flat[:: len(cosine) + 1] += 1e-12
    total = float(np.linalg.solve(cosine, lengths.min() / lengths) @ (lengths.min() / lengths))
    return float(lengths.min() ** 2 / total) if total > 0 else 0.0


def _nonnegative_minima(matrix: Array, linear: Array, free: NDArray[np.bool_]) -> tuple[Array, bool]:
    """Rows x >= 0 that minimise 1/2 x'Qx - b'x for every row b of `linear` (N, K): block principal pivoting.

    Each round solves for the free entries and moves every entry with the wrong sign of value or slope across. A row
    that stops making progress, as happens where Q is singular, goes on with an active-set method.
    """
    num, size = linear.shape
    ridged = matrix.copy()
    ridged.flat[:: size + 1] += RIDGE
    points = np.zeros((num, size))
    free = free.copy()
    active = np.arange(num)  # the rows that still have entries of the wrong sign
    fewest, patience = np.full(num, size + 1), np.full(num, 3)
    while len(active):
        found = points[active] = _solve_free(ridged, linear[active], free[active])
        slopes = found @ ridged - linear[active]
        wrong = np.where(free[active], found, slopes) < -1e-12
        count = wrong.sum(1)
        better = count < fewest[active]
        fewest[active] = np.where(better, count, fewest[active])
        patience[active] = np.where(better, 3, patience[active] - 1)
        free[active] ^= wrong
        for row in active[patience[active] < 0]:
            points[row], free[row] = _active_set(ridged, linear[row], np.maximum(points[row], 0))
        active = active[(count > 0) & (patience[active] >= 0)]
    # One step of refinement on the final entries takes the effect of the ridge back out.
    refined = np.maximum(_solve_free(ridged, linear + RIDGE * points, free), 0)
    off = _violations(matrix, linear, refined)
    # Along a direction in which Q is zero up to rounding that step has no bound and can leave the quadrant.
    for row in np.flatnonzero(off > 1e-9):
        refined[row] = points[row]
        for _ in range(4):
            refined[row], _ = _active_set(ridged, linear[row] + RIDGE * refined[row], refined[row])
            off[row] = _violations(matrix, linear[row], refined[row])
            if off[row] <= 1e-9:
                break
    return refined, bool((off <= TOLERANCE * np.maximum(1, refined.max(1))).all())


def _violations(matrix: Array, linear: Array, points: Array) -> Array:
    """How far each row of `points` (N, K) misses the conditions of optimality: slope 0, or at least 0 at the bound."""
    slopes = points @ matrix - linear
    worst: Array = np.where(points > 0, np.abs(slopes), -slopes).max(-1)
    return worst


def _active_set(matrix: Array, linear: Array, start: Array) -> tuple[Array, NDArray[np.bool_]]:
    """x >= 0 (K,) that minimises 1/2 x'Qx - b'x for a positive definite Q, and which of its entries are free.

    From `start` >= 0 every round lowers the value, and ends with an entry more or less.
    """
    x, free = start, start > 0
    barred = np.zeros_like(free)  # entries that rounding turned away at once, until x has moved
    for _ in range(10 * len(x) + 10):
        target = _solve_free(matrix, linear[None], free[None])[0]
        blocking = free & (target <= 0)
        if not blocking.any():
            x = target
            slopes = np.where(free | barred, 0, linear - matrix @ x)
            if slopes.max() <= 1e-12:
                break
            free[slopes.argmax()] = True
        else:
            steps = x[blocking] / np.maximum(x[blocking] - target[blocking], 1e-300)
            first = steps.min()
            x = np.maximum(x + first * (target - x), 0)
            leaving = np.flatnonzero(blocking)[steps <= first]
            if first > 0:
                barred[:] = False
            else:
                barred[leaving] = True
            free[leaving] = False
            x[~free] = 0
    return x, free


def _solve_free(matrix: Array, linear: Array, free: NDArray[np.bool_]) -> Array:
    """x (N, K) with Qx = b in the free entries and 0 in the others."""
    if len(linear) == 1:
        index = np.flatnonzero(free[0])
        points = np.zeros_like(linear)
        points[0, index] = np.linalg.solve(matrix[index[:, None], index], linear[0, index])
        return points
    most = max(int(free.sum(1).max()), 1)
    index = np.argsort(~free, axis=1, kind="stable")[:, :most]  # free entries first, so that the systems are small
    used = np.take_along_axis(free, index, 1)
    systems = matrix[index[:, :, None], index[:, None, :]] * (used[:, :, None] & used[:, None, :])
    diagonal = np.arange(most)
    systems[:, diagonal, diagonal] += ~used
    wanted = np.where(used, np.take_along_axis(linear, index, 1), 0)
    points = np.zeros_like(linear)
    np.put_along_axis(points, index, np.linalg.solve(systems, wanted[..., None])[..., 0], 1)
    return points
