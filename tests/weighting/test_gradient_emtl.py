"""EMTL and its worst-case distributions, against brute force and closed forms."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from weighting_toys import build_gradient

from mtlcli import gradient_weightings
from mtlcli.weighting.solvers import chi_square_worst_case, entropy_tempered

LENGTHS = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
LOSSES = torch.tensor([0.7, 3.0, 4.0], dtype=torch.float64)


def weights_of(lengths: Tensor = LENGTHS, losses: Tensor = LOSSES, **options: Any) -> Tensor:
    method = gradient_weightings.build("emtl", tasks=len(lengths), **options)
    return method(lengths.square().diag(), losses)


def chosen(lengths: Tensor = LENGTHS, losses: Tensor = LOSSES, **options: Any) -> Tensor:
    """The distribution p."""
    return weights_of(lengths, losses, normalise="none", **options) / len(lengths)


def radius_of(p: np.ndarray) -> np.ndarray:
    return 0.5 * ((p.shape[-1] * p - 1) ** 2).sum(-1)


@pytest.mark.parametrize("num_tasks", [2, 3, 7, 40])
@pytest.mark.parametrize("seed", range(3))
def test_interior_value_is_mean_plus_deviation(num_tasks: int, seed: int) -> None:
    values = np.random.default_rng(seed).exponential(size=num_tasks)
    for radius in (1e-3, 0.1, 0.5):
        p = chi_square_worst_case(values, radius)
        assert p.sum() == pytest.approx(1.0)
        assert (p >= 0).all()
        if radius <= num_tasks / (2 * (num_tasks - 1)):
            expected = values.mean() + math.sqrt(2 * radius * values.var() / num_tasks)
            assert p @ values == pytest.approx(expected, rel=1e-12)
        assert radius_of(p) == pytest.approx(radius, rel=1e-9)


@pytest.mark.parametrize("radius", [0.05, 0.5, 1.0, 1.5, 2.2, 2.9])
@pytest.mark.parametrize(
    "values", [(0.2, 0.9, 0.5), (0.0, 0.0, 1.0), (1.0, 1.0, 0.0), (1e-9, 2e-9, 5e-9), (3e8, 1e9, 2e8)]
)
def test_worst_case_against_a_grid(values: tuple[float, ...], radius: float) -> None:
    ticks = 400
    points = [(i, j, ticks - i - j) for i, j in itertools.product(range(ticks + 1), repeat=2) if i + j <= ticks]
    grid = np.array(points) / ticks
    inside = grid[radius_of(grid) <= radius]
    array = np.array(values)
    p = chi_square_worst_case(array, radius)
    assert radius_of(p) <= radius * (1 + 1e-9)
    best = (inside @ array).max()
    assert best <= p @ array * (1 + 1e-12)
    assert p @ array - best <= 5e-3 * (array.max() - array.min())


def test_worst_case_by_optimality_for_many_tasks() -> None:
    """p_k = [1 + (v_k - eta) / t]+ / K for some eta and t: the positive ones lie on a line, the others below it."""
    values = np.random.default_rng(0).normal(size=40)
    for radius in (1.0, 10.0, 100.0, 700.0):
        p = chi_square_worst_case(values, radius)
        on = p > 0
        slope, offset = np.polyfit(values[on], p[on], 1)
        np.testing.assert_allclose(p[on], slope * values[on] + offset, atol=1e-9)
        assert (slope * values[~on] + offset <= 1e-9).all()
        assert radius_of(p) == pytest.approx(radius)


def test_ends_of_the_ball() -> None:
    assert chosen(rho=0.0).tolist() == [1 / 3] * 3
    assert chosen(rho=3.0).tolist() == pytest.approx([0.0, 1.0, 0.0])  # K (K - 1) / 2; C is 0.7, 1.5, 0.8
    assert chosen(rho=100.0).tolist() == pytest.approx([0.0, 1.0, 0.0])
    tied = chi_square_worst_case(np.array([1.0, 0.0, 1.0]), 100.0)
    assert tied.tolist() == [0.5, 0.0, 0.5]
    assert chosen(losses=LENGTHS, rho=0.5).tolist() == [1 / 3] * 3  # all contributions equal


@pytest.mark.parametrize("form", ["chi2", "kl"])
@pytest.mark.parametrize("scale", [1e-10, 1e10])
def test_rescaling_a_loss_changes_nothing(form: str, scale: float) -> None:
    factor = torch.tensor([1.0, scale, 1.0], dtype=torch.float64)
    torch.testing.assert_close(chosen(factor * LENGTHS, factor * LOSSES, form=form), chosen(form=form))
    for normalise in ("gradient", "loss"):
        plain = weights_of(form=form, normalise=normalise) * LENGTHS
        scaled = weights_of(factor * LENGTHS, factor * LOSSES, form=form, normalise=normalise) * factor * LENGTHS
        torch.testing.assert_close(scaled / scaled.sum(), plain / plain.sum())


def test_interior_distribution_by_hand() -> None:
    contribution = LOSSES / LENGTHS
    gap = contribution - contribution.mean()
    expected = 1 / 3 + math.sqrt(2 * 0.1) / 3 * gap / gap.norm()
    torch.testing.assert_close(chosen(rho=0.1), expected)
    torch.testing.assert_close(weights_of(normalise="gradient", rho=0.1), 3 * expected * LENGTHS.mean() / LENGTHS)
    torch.testing.assert_close(weights_of(rho=0.1), 3 * expected / LOSSES)
    inverse = LENGTHS / LOSSES
    gap = inverse - inverse.mean()
    expected = 1 / 3 + math.sqrt(2 * 0.1) / 3 * gap / gap.norm()
    torch.testing.assert_close(chosen(ratio="norm_over_loss", rho=0.1), expected)


def test_penalty_by_hand() -> None:
    contribution = LOSSES / LENGTHS
    gap = contribution - contribution.mean()
    options = {"form": "penalty", "strength": 0.3}
    torch.testing.assert_close(weights_of(normalise="none", **options), 1 + 2 * 0.3 / 3 * gap / LENGTHS)
    bracket = 1 + 2 * 0.3 / 3 * gap
    torch.testing.assert_close(weights_of(normalise="gradient", **options), bracket * LENGTHS.mean() / LENGTHS)
    torch.testing.assert_close(weights_of(**options), bracket / LOSSES)
    assert weights_of(form="penalty", strength=1000.0).min() == 0


def test_penalty_is_the_gradient_of_its_objective() -> None:
    """With lengths held fixed, J = sum L + strength var(C): dJ/dL_k."""
    losses = LOSSES.clone().requires_grad_()
    (losses.sum() + 0.3 * (losses / LENGTHS).var(correction=0)).backward()
    assert losses.grad is not None
    torch.testing.assert_close(weights_of(form="penalty", strength=0.3, normalise="none"), losses.grad)


def divergence(p: np.ndarray) -> float:
    return float((p * np.log(np.maximum(p, 1e-300) * len(p))).sum())


@pytest.mark.parametrize("radius", [1e-6, 0.01, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0, 1e6])
def test_tempered_distribution(radius: float, scale: float) -> None:
    """The root of the equation in a = 1 / (1 + lambda), or the distribution itself where it lies inside."""
    logits = scale * np.random.default_rng(1).normal(size=6)
    p = np.exp(entropy_tempered(logits, radius))
    assert p.sum() == pytest.approx(1.0)
    free = np.exp(logits - logits.max())
    free /= free.sum()
    if divergence(free) <= radius:
        np.testing.assert_allclose(p, free)
        return
    assert divergence(p) == pytest.approx(radius, rel=1e-6)
    a = np.diff(np.log(p[np.argsort(logits)][-2:]))[0] / np.diff(np.sort(logits)[-2:])[0]
    q = free**a
    root = math.log(6) - radius - math.log(q.sum()) + a * (np.log(np.maximum(free, 1e-300)) * q).sum() / q.sum()
    assert abs(root) < 1e-6 * max(1.0, a * scale) or (free == 0).any()


def test_mirror_ascent_over_steps() -> None:
    method = gradient_weightings.build("emtl", tasks=3, form="kl", rho=10.0, normalise="none", strength=0.5)
    contribution = LOSSES / LENGTHS
    for step in range(1, 4):
        weights = method(LENGTHS.square().diag(), LOSSES)
        torch.testing.assert_close(weights, 3 * (0.5 * step * contribution).softmax(0))


def test_running_lengths() -> None:
    method = gradient_weightings.build("emtl", tasks=3, ema=0.9, rho=0.0, normalise="gradient")
    method(LENGTHS.square().diag(), LOSSES)
    running = 0.9 * LENGTHS + 0.1 * 3 * LENGTHS.flip(0)
    weights = method((3 * LENGTHS.flip(0)).square().diag(), LOSSES)
    torch.testing.assert_close(weights, running.mean() / running)


def test_edges() -> None:
    one = build_gradient("emtl", 1)
    assert one(torch.tensor([[4.0]]), torch.tensor([3.0])).tolist() == [1.0]
    assert one(torch.tensor([[4.0]]), torch.tensor([0.0])).tolist() == [0.0]
    method = build_gradient("emtl", 3)
    silent = torch.tensor([1.0, 0.0, 5.0], dtype=torch.float64)
    assert method(silent.square().diag(), LOSSES)[1] == 0
    assert not method.events
    assert method(LENGTHS.square().diag(), -LOSSES).tolist() == [0, 0, 0]
    assert dict(method.events) == {"a loss was not positive: its task had no weight": 1}
    plain = gradient_weightings.build("emtl", tasks=3, normalise="gradient")
    assert plain(LENGTHS.square().diag(), -LOSSES).isfinite().all()
    assert dict(plain.events) == {"a loss was negative: it counted as 0": 1}
    assert weights_of(losses=torch.zeros(3), normalise="gradient").isfinite().all()
    # A contribution a million times the others' counts as 1000 times.
    values = chosen(losses=torch.tensor([1e6, 2.0, 5.0]), rho=0.1)
    torch.testing.assert_close(values, chosen(losses=torch.tensor([1e3, 2.0, 5.0]), rho=0.1), rtol=1e-3, atol=0)


def test_a_task_that_stays_out_keeps_its_share_of_the_distribution() -> None:
    """Without labels in a batch a task has no gradient; it must come back with no more than it had."""
    method = gradient_weightings.build("emtl", tasks=4, form="kl", rho=10.0, normalise="none", strength=0.5)
    even = torch.ones(4, dtype=torch.float64)
    away = torch.tensor([1.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    for _ in range(3):
        assert method(away.diag(), even)[2] == 0
    torch.testing.assert_close(method(even.diag(), even), even)
