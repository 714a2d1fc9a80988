"""Laws that every gradient weighting obeys, whatever it does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from weighting_toys import build_gradient, direction, jacobian_of, task_names

from mtlcli import MtlError, gradient_weightings

G = jacobian_of(1, 6)[0]
H = jacobian_of(1, 6, seed=1)[0]
ZERO = torch.zeros(6, dtype=torch.float64)
E, F = torch.eye(6, dtype=torch.float64)[:2]
HARD = {
    "zero_row": [G, ZERO, H],
    "zero_row_and_conflict": [3 * E, -E + 1.2 * F, ZERO],
    "vanishing_row": [-1e-30 * (G + H), G, H],
    "all_zero": [ZERO, ZERO],
    "opposed": [G, -G],
    "opposed_and_unequal": [G, -1e5 * G],
    "opposed_and_another": [G, -G, H],
    "opposed_and_zero": [G, ZERO, -G],
    "nearly_opposed": [G, -G + 1e-5 * H],
    "balanced": [G, H, -G - H],
    "duplicated": [G, G, H],
    "all_alike": [G, G, G],
    "mixed_scales": [1e-10 * G, H, 1e10 * (G - H)],
    "opposed_at_mixed_scales": [1e-10 * G, -1e10 * G, H],
    "more_tasks_than_numbers": list(jacobian_of(9, 6, seed=2)),
}


@pytest.mark.parametrize("case", HARD)
@pytest.mark.parametrize("scale", [1e-10, 1.0, 1e10])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_finite(gradient_name: str, case: str, scale: float, dtype: torch.dtype) -> None:
    jacobian = (torch.stack(HARD[case]) * (scale if "scales" not in case else 1)).to(dtype)
    method = build_gradient(gradient_name, len(jacobian))
    found = direction(method, jacobian)
    assert found.shape == (6,)
    assert found.isfinite().all()
    if case == "all_zero":
        assert (found == 0).all()
    if method.reads == "gramian":
        weights = method(jacobian.double() @ jacobian.double().T, torch.ones(len(jacobian)))
        assert weights.shape == (len(jacobian),)
        assert (weights.abs() < 1e30).all()  # applied in float32, which ends at 3e38


@pytest.mark.parametrize("scale", [1e-10, 1.0, 1e10])
def test_one_task_keeps_its_direction(gradient_name: str, scale: float) -> None:
    found = direction(build_gradient(gradient_name, 1), scale * G[None])
    torch.testing.assert_close(found / found.norm(), G / G.norm())


def test_same_seed_same_output(gradient_name: str) -> None:
    methods = [build_gradient(gradient_name, 5, seed=7) for _ in range(2)]
    for seed in range(3):
        first, second = (direction(method, jacobian_of(5, 4, seed)) for method in methods)
        assert torch.equal(first, second)


def test_resumed_is_uninterrupted(gradient_name: str, tmp_path) -> None:
    method = build_gradient(gradient_name, 5, seed=3)
    for seed in range(4):
        direction(method, jacobian_of(5, 4, seed))
    torch.save(method.state_dict(), tmp_path / "state.pt")
    resumed = build_gradient(gradient_name, 5, seed=99)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for seed in range(4, 8):
        assert torch.equal(direction(method, jacobian_of(5, 4, seed)), direction(resumed, jacobian_of(5, 4, seed)))
    assert method.events == resumed.events


def test_task_order_does_not_matter(gradient_name: str) -> None:
    order = torch.tensor([2, 0, 3, 1])
    named = {"main": "task0"} if "main" in gradient_weightings.get(gradient_name).Options.model_fields else {}
    method = gradient_weightings.build(gradient_name, tasks=task_names(4), **named)
    state = method.rng.get_state()
    losses = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64)
    jacobian = jacobian_of(4, 10)
    expected = direction(method, jacobian, losses)
    if not torch.equal(state, method.rng.get_state()):
        pytest.skip("draws random numbers")
    permuted = gradient_weightings.build(gradient_name, tasks=task_names(4, order), **named)
    found = direction(permuted, jacobian[order], losses[order])
    torch.testing.assert_close(found, expected)


def test_takes_float32(gradient_name: str) -> None:
    jacobian = jacobian_of(3, 50)
    method = build_gradient(gradient_name, 3)
    if method.reads != "gramian":
        pytest.skip("reads no Gramian")
    gramian = (jacobian @ jacobian.T).float()
    given = gramian.clone()
    weights = method(gramian, torch.ones(3))
    assert weights.dtype == torch.float32
    assert torch.equal(gramian, given)
    expected = build_gradient(gradient_name, 3)(jacobian @ jacobian.T, torch.ones(3)).float()
    torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_refuses_what_is_not_finite(gradient_name: str, bad: float) -> None:
    method = build_gradient(gradient_name, 2)
    if method.reads != "gramian":
        pytest.skip("reads no Gramian")
    with pytest.raises(MtlError, match=rf"{gradient_name}: the Gramian .* rows \[1\]"):
        method(torch.tensor([[1.0, 0.0], [0.0, bad]]), torch.ones(2))


def quadratics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Two losses with minima at (1, 0) and (-1, 0), one ten times as steep; their values (2,) and Jacobian (2, 2)."""
    away = x - torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    steepness = torch.tensor([1.0, 10.0], dtype=torch.float64)
    return steepness / 2 * away.square().sum(1), steepness[:, None] * away


def test_descends_two_quadratics(gradient_name: str) -> None:
    method = build_gradient(gradient_name, 2)
    x = torch.tensor([4.0, 3.0], dtype=torch.float64)
    start, _ = quadratics(x)
    for number in range(400):
        losses, jacobian = quadratics(x)
        x = x - 0.1 / (1 + 0.02 * number) * direction(method, jacobian, losses)
    end, _ = quadratics(x)
    assert (end < start).all()
    assert x[1].abs() < 0.1  # Pareto-stationary: on the line between the minima
    assert -1.1 < x[0] < 1.1
