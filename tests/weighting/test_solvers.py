"""The solvers on problems whose answers are known by another way."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor
from weighting_toys import jacobian_of

from mtlcli.weighting import solvers
from mtlcli.weighting.solvers import quadratic


def cosines(gramian: Tensor) -> tuple[Tensor, ...]:
    return tuple(map(torch.from_numpy, solvers.cosines(gramian.numpy())))


def solved(solver: Callable[..., solvers.Solution], *arguments: Tensor) -> tuple[Tensor, bool]:
    weights, exact = solver(*(argument.numpy() for argument in arguments))
    return torch.from_numpy(weights), exact


nonnegative_minimum = partial(solved, solvers.nonnegative_minimum)
min_norm_point = partial(solved, solvers.min_norm_point)
inverse_point = partial(solved, solvers.inverse_point)


def enumerated(matrix: Tensor, linear: Tensor) -> Tensor:
    """The constrained minimum by trying every set of free entries."""
    best, lowest = torch.zeros_like(linear), 0.0
    for size in range(1, len(linear) + 1):
        for free in map(list, itertools.combinations(range(len(linear)), size)):
            x = torch.zeros_like(linear)
            x[free] = torch.linalg.solve(matrix[free][:, free], linear[free])
            value = float(x @ matrix @ x / 2 - linear @ x)
            if (x >= 0).all() and value < lowest:
                best, lowest = x, value
    return best


@pytest.mark.parametrize("seed", range(20))
def test_nonnegative_minimum_by_enumeration(seed: int) -> None:
    matrix, _ = cosines(jacobian_of(6, 8, seed) @ jacobian_of(6, 8, seed).T)
    linear = matrix @ jacobian_of(1, 6, seed + 100)[0]
    found, exact = nonnegative_minimum(matrix, linear)
    assert exact
    torch.testing.assert_close(found, enumerated(matrix, linear), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("num_tasks", [1, 2, 5, 40])
@pytest.mark.parametrize("size", [3, 10, 100])
@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_min_norm_point_is_optimal(num_tasks: int, size: int, offset: float) -> None:
    for seed in range(3):
        jacobian = (jacobian_of(num_tasks, size, seed) + offset) * jacobian_of(num_tasks, 1, seed + 9).exp()
        gramian = jacobian @ jacobian.T
        weights, exact = min_norm_point(gramian)
        assert exact
        tolerance = 1e-8 * gramian.diagonal().max()
        assert (gramian @ weights).min() >= weights @ gramian @ weights - tolerance


@pytest.mark.parametrize("num_tasks", [1, 2, 5, 40])
@pytest.mark.parametrize("size", [3, 10, 100])
@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_inverse_point_solves_or_says_so(num_tasks: int, size: int, offset: float) -> None:
    for seed in range(3):
        jacobian = jacobian_of(num_tasks, size, seed) + offset
        cosine, _ = cosines(jacobian @ jacobian.T)
        x, exact = inverse_point(cosine)
        shortest, _ = min_norm_point(cosine)
        assert (x > 0).all()
        assert exact == bool(shortest @ cosine @ shortest > 1e-6)
        if exact:
            torch.testing.assert_close(x * (cosine @ x), torch.ones_like(x), rtol=0, atol=1e-8)


def test_inverse_point_of_what_is_no_gramian() -> None:
    x, exact = inverse_point(torch.tensor([[1.0, -1.0, -1.0], [-1.0, 1.0, -1.0], [-1.0, -1.0, 1.0]]).double())
    assert not exact
    assert x.isfinite().all()


def test_cosines_of_a_zero_gradient() -> None:
    cosine, lengths = cosines(torch.tensor([[4.0, 0.0], [0.0, 0.0]]).double())
    assert cosine.tolist() == [[1.0, 0.0], [0.0, 0.0]]
    assert lengths.tolist() == [2.0, 0.0]


def test_a_checked_gramian_is_read_only() -> None:
    """It may share its memory with the tensor that it was made of."""
    gramian = torch.eye(2, dtype=torch.float64)
    with pytest.raises(ValueError, match="read-only"):
        solvers.checked(gramian, "some")[0, 0] = 5.0


@pytest.mark.parametrize("num_tasks", [5, 20, 40])
@pytest.mark.parametrize("size", [2, 8, 30])
def test_singular_programs_are_solved(num_tasks: int, size: int) -> None:
    """Gradients that depend on each other make block pivoting cycle; the active-set method takes over."""
    for seed in range(6):
        jacobian = jacobian_of(num_tasks, size, seed) + 0.2 * (seed % 2)
        gramian = (jacobian @ jacobian.T).numpy()
        starts = np.eye(num_tasks) / num_tasks
        points, exact = solvers.conflict_free_points(gramian, starts)
        assert exact
        assert (points >= starts - 1e-12).all()
        products = points @ gramian
        scale = gramian.diagonal().max()
        assert products.min() >= -1e-6 * scale  # dual feasible
        assert np.abs(products * (points - starts)).max() <= 1e-6 * scale  # complementary


@pytest.mark.parametrize(("num_tasks", "size"), [(6, 5), (7, 5), (12, 5), (12, 30)])
@pytest.mark.parametrize("alone", [False, True])
def test_projections_of_duplicates_at_other_lengths(num_tasks: int, size: int, alone: bool) -> None:
    """In float32 a multiple of a gradient is off its direction by rounding: the Gramian is singular up to that."""
    for seed in range(60):
        rng = torch.Generator().manual_seed(seed)
        jacobian = torch.randn(num_tasks, size, generator=rng)
        jacobian[num_tasks // 2 :] = jacobian[: num_tasks - num_tasks // 2].clone()
        jacobian *= 10 ** (0.5 * torch.randn(num_tasks, 1, generator=rng))
        wide = jacobian.double().numpy()
        lengths = np.linalg.norm(wide, axis=1)
        starts = np.eye(num_tasks) / num_tasks if alone else np.full((1, num_tasks), 1 / num_tasks)
        points, exact = solvers.conflict_free_points(wide @ wide.T, starts)
        assert exact
        assert (points >= starts).all()
        slopes = points @ wide @ wide.T / lengths
        scale = (starts * lengths).max(1)[:, None]
        assert (slopes >= -1e-7 * scale).all()  # dual feasible
        assert (np.abs(slopes) * ((points - starts) * lengths > 0)).max() <= 1e-7 * scale.max()  # complementary
        update = points.sum(0) @ wide
        if np.linalg.norm(update) > 1e-6 * scale.max():  # else the projection is zero
            assert (wide @ update >= -1e-5 * lengths * np.linalg.norm(update)).all()


def test_what_the_ridge_leaves_is_refined_away() -> None:
    """Where Q is zero up to rounding in some direction, one round of it leaves 14 of these off, not 2."""
    off = []
    for seed in range(60):
        rng = torch.Generator().manual_seed(seed)
        jacobian = torch.randn(12, 5, generator=rng)
        jacobian[6:] = jacobian[:6].clone()
        jacobian *= 10 ** (0.5 * torch.randn(12, 1, generator=rng))
        cosine, lengths = cosines(jacobian.double() @ jacobian.double().T)
        linear = -cosine @ lengths / lengths.max()
        x, exact = nonnegative_minimum(cosine, linear)
        assert exact
        slopes = cosine @ x - linear
        off.append(float(torch.where(x > 0, slopes.abs(), -slopes).max()))
    assert sum(value > 1e-9 for value in off) <= 6


@pytest.mark.parametrize("radius", [0.2, 0.9, 1.5])
@pytest.mark.parametrize("num_tasks", [2, 5, 40])
@pytest.mark.parametrize("size", [4, 100])
def test_conflict_averse_point_is_optimal(num_tasks: int, size: int, radius: float) -> None:
    for seed in range(4):
        jacobian = jacobian_of(num_tasks, size, seed) * (jacobian_of(num_tasks, 1, seed + 5).exp() if seed % 2 else 1)
        gramian = (jacobian @ jacobian.T).numpy()
        weights, factor, exact = solvers.conflict_averse_point(gramian, radius)
        assert weights.sum() == pytest.approx(1.0)
        assert (weights >= 0).all()
        if not exact:
            continue
        slopes = gramian.mean(1) + factor * gramian @ weights  # of the objective, at the factor that belongs to it
        scale = np.abs(slopes).max() + factor * gramian.diagonal().max()
        assert slopes.min() >= slopes @ weights - 1e-7 * scale
        norm = np.sqrt(weights @ gramian @ weights)
        assert factor * norm == pytest.approx(radius * np.sqrt(gramian.mean()), rel=1e-8)


@pytest.mark.parametrize("num_tasks", [2, 5, 40])
def test_conflict_averse_point_in_few_rounds(num_tasks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each round solves for the factor as though the positive weights stayed: halving a bracket takes about 40."""
    rounds = []

    def counted(*arguments: np.ndarray) -> solvers.Solution:
        rounds[-1] += 1
        return solvers.min_norm_point(*arguments)

    monkeypatch.setattr(quadratic, "min_norm_point", counted)
    monkeypatch.setattr(quadratic, "_guessed_factor", lambda *_: None)
    for seed in range(10):
        jacobian = jacobian_of(num_tasks, 100, seed)
        rounds.append(0)
        assert solvers.conflict_averse_point((jacobian @ jacobian.T).numpy(), 0.5)[2]
    assert max(rounds) <= 10


def test_conflict_averse_point_says_when_gradients_cancel() -> None:
    _, _, exact = solvers.conflict_averse_point(np.array([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]), 0.5)
    assert not exact


def projected_mean(jacobian: np.ndarray) -> np.ndarray:
    """The vector nearest to the mean gradient that conflicts with no gradient, from the gradients themselves."""
    mean, lengths = jacobian.mean(0), np.linalg.norm(jacobian, axis=1)
    units = jacobian / np.where(lengths > 0, lengths, 1)[:, None]
    return mean + units.T @ scipy.optimize.nnls(units.T, -mean, maxiter=1000)[0]


@pytest.mark.parametrize("radius", [0.0, 0.1, 0.4, 0.7, 0.99])
@pytest.mark.parametrize("zeros", [0, 1, 2])
@pytest.mark.parametrize("shortest", [1.0, 1e-12])
def test_conflict_averse_point_with_zero_gradients(radius: float, zeros: int, shortest: float) -> None:
    projections = 0
    for seed in range(25):
        jacobian = (jacobian_of(3 + zeros + seed % 3, 2 + seed % 4, seed) + 0.5 * (seed % 2)).numpy()
        jacobian[:zeros] = 0
        jacobian[-1] *= shortest
        mean = jacobian.mean(0)
        weights, factor, exact = solvers.conflict_averse_point(jacobian @ jacobian.T, radius)
        assert weights.sum() == pytest.approx(1)
        assert (weights >= 0).all()
        assert factor < 1e3 / shortest
        update = mean + factor * weights @ jacobian
        size = np.linalg.norm(mean)
        assert np.linalg.norm(update - mean) <= (radius + 1e-7) * size
        scale = size * np.linalg.norm(jacobian, axis=1).max()
        # No update in the ball gains more than this, whichever point of the simplex it is taken at.
        points = np.vstack([weights, np.eye(len(jacobian))]) @ jacobian
        bound = (points @ mean + radius * size * np.linalg.norm(points, axis=1)).min()
        assert (jacobian @ update).min() >= bound - 1e-7 * scale
        nearest = projected_mean(jacobian)
        if zeros and radius > 0 and np.linalg.norm(nearest - mean) <= radius * size:
            projections += 1
            assert not exact
            np.testing.assert_allclose(update, nearest, atol=1e-6 * size)
    assert projections > 0 or not (zeros and radius > 0)


@pytest.mark.parametrize("alpha", [1e-3, 0.05, 0.7, 3.0, 20.0, 1e3])
def test_power_point_at_any_scale(alpha: float) -> None:
    """Changing the unit of all gradients by c changes w by c^(-2 alpha / (1 + alpha))."""
    jacobian = jacobian_of(4, 30, seed=1)
    cosine, lengths = solvers.cosines((jacobian @ jacobian.T).numpy())
    plain, exact = solvers.power_point(cosine, lengths, alpha)
    assert exact
    for unit in (1e-10, 1e10):
        scaled, _ = solvers.power_point(cosine, unit * lengths, alpha)
        np.testing.assert_allclose(
            scaled, plain * unit ** (-2 * alpha / (1 + alpha)), rtol=1e-6, atol=1e-25 * plain.max()
        )


OPPOSED_AND_SCATTERED = [
    (0.1, [0.04, 75.3, 12.1, 0.00791, -5.31e-05, -4640.0, 2.01]),
    (0.2, [0.00252, -188000.0, 0.00041, 0.112, 0.0669, 0.638, 6.15]),
    (20.0, [-0.000664, -7.96e-07, -3110000.0, -1.03, -5.77e-05, -0.000132, 2.41]),
    (30.0, [3680.0, 2.34, -0.000675, 0.253, 0.000483, 0.0303, 0.0675]),
]


@pytest.mark.parametrize(("alpha", "numbers"), OPPOSED_AND_SCATTERED)
def test_power_point_gets_its_ridge_where_no_stage_is_solved(alpha: float, numbers: list[float]) -> None:
    gradients = np.array(numbers)
    w, exact = solvers.power_point(*solvers.cosines(np.outer(gradients, gradients)), alpha)
    assert not exact
    assert np.isfinite(w).all()
    assert (w > 0).all()


def test_power_point_reaches_a_large_alpha_in_stages() -> None:
    """From its usual start Newton's method gets stuck at 17 of these 47, and would leave them to a ridge."""
    exact = []
    for seed in range(60):
        scales = 10 ** (4 * jacobian_of(3 + seed % 2, 1, seed + 100))
        jacobian = jacobian_of(3 + seed % 2, 2 + seed % 3, seed) * scales
        cosine, lengths = solvers.cosines((jacobian @ jacobian.T).numpy())
        shortest, _ = solvers.min_norm_point(cosine)
        if shortest @ cosine @ shortest > 1e-2:  # nothing near to cancelling, so there is a solution
            exact.append(solvers.power_point(cosine, lengths, 20.0)[1])
    assert len(exact) == 47
    assert sum(exact) > 40


@pytest.mark.parametrize("alpha", [0.05, 1.0, 20.0, 50.0])
def test_power_point_solves_for_weights_next_to_zero(alpha: float) -> None:
    solved_for = 0
    for seed in range(40):
        jacobian = jacobian_of(3 + seed % 2, 2 + seed % 3, seed) * 10 ** (4 * jacobian_of(3 + seed % 2, 1, seed + 100))
        cosine, lengths = solvers.cosines((jacobian @ jacobian.T).numpy())
        w, exact = solvers.power_point(cosine, lengths, alpha)
        if not exact:
            continue
        solved_for += 1
        terms, wanted = cosine * (lengths * w), w ** (-1 / alpha) / lengths
        off = np.abs(terms.sum(1) - wanted) - 1e-13 * np.abs(terms).sum(1)
        assert (off / wanted)[w > 1e-290].max() < 1e-6
    assert solved_for > 5


def test_equal_projections_or_the_nearest() -> None:
    x, exact = solvers.equal_projections(np.eye(3))
    assert exact
    assert x.tolist() == pytest.approx([1.0, 1.0, 1.0])
    _, exact = solvers.equal_projections(np.array([[1.0, -1.0], [-1.0, 1.0]]))
    assert not exact
    _, exact = solvers.equal_projections(np.ones((3, 3)))
    assert exact
