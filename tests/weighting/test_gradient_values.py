"""Each gradient weighting against its definition, a closed form, or another implementation."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from weighting_toys import build_gradient, direction, jacobian_of

from mtlcli import MtlError, gradient_weightings
from mtlcli.engine import rows

JACOBIANS = {
    "random": [jacobian_of(k, 20, seed=k) for k in (2, 3, 5, 11)],
    "ill_conditioned": [
        jacobian_of(4, 20, seed=1) * torch.tensor([[1e-2], [1.0], [1e2], [1e1]], dtype=torch.float64),
        jacobian_of(1, 20, seed=2) + 1e-2 * jacobian_of(5, 20, seed=3),
    ],
    "rank_deficient": [
        jacobian_of(5, 3, seed=4) + 1,
        torch.cat([jacobian_of(3, 9, seed=5), jacobian_of(3, 9, seed=5)]),
        jacobian_of(9, 4, seed=6),
    ],
}
EVERY = [pytest.param(j, id=f"{case}{i}") for case, several in JACOBIANS.items() for i, j in enumerate(several)]


@pytest.fixture
def aggregation():
    """TorchJD, an independent implementation."""
    return pytest.importorskip("torchjd.aggregation")


# mgda


@pytest.mark.parametrize("jacobian", EVERY)
def test_mgda_hurts_no_task(jacobian: Tensor) -> None:
    gramian = jacobian @ jacobian.T
    method = build_gradient("mgda", len(jacobian))
    weights = method(gramian, torch.ones(len(jacobian)))
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0, dtype=torch.float64))
    assert (weights >= 0).all()
    products, squared_norm = gramian @ weights, weights @ gramian @ weights
    tolerance = 1e-9 * gramian.diagonal().max()
    assert products.min() >= squared_norm - tolerance  # optimality: no gradient is shorter along the direction
    assert (products[weights > 1e-9] - squared_norm).abs().max() <= tolerance
    assert not method.events


@pytest.mark.parametrize("num_tasks", [2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_mgda_against_a_grid(num_tasks: int, seed: int) -> None:
    jacobian = jacobian_of(num_tasks, 3, seed) + (seed % 2)
    gramian = jacobian @ jacobian.T
    ticks = torch.linspace(0, 1, 101, dtype=torch.float64)
    points = [(*p, 1 - sum(p)) for p in itertools.product(ticks.tolist(), repeat=num_tasks - 1) if sum(p) <= 1]
    grid = torch.tensor(points, dtype=torch.float64)
    norms = (grid @ gramian * grid).sum(1)
    weights = build_gradient("mgda", num_tasks)(gramian, torch.ones(num_tasks))
    assert weights @ gramian @ weights <= norms.min() + 1e-12
    assert norms.min() - weights @ gramian @ weights <= 1e-3 * gramian.diagonal().max()


@pytest.mark.parametrize("jacobian", EVERY)
def test_mgda_is_no_longer_than_torchjd(jacobian: Tensor, aggregation) -> None:
    """Theirs is Frank-Wolfe, stopped after 100 steps or when the step is below 0.001."""
    ours, theirs = direction(build_gradient("mgda", len(jacobian)), jacobian), aggregation.MGDA()(jacobian)
    assert ours.norm() <= theirs.norm() * (1 + 1e-9) + 1e-9
    exact = aggregation.MGDA(epsilon=1e-9, max_iters=3000)(jacobian)
    assert (ours - exact).norm() <= 0.05 * jacobian.norm(dim=1).max()


def test_mgda_two_tasks_by_hand() -> None:
    jacobian = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    weights = gradient_weightings.build("mgda", tasks=2)(jacobian @ jacobian.T, torch.ones(2))
    torch.testing.assert_close(weights, torch.tensor([0.1, 0.9]))
    weights = gradient_weightings.build("mgda", tasks=2, normalise="l2")(jacobian @ jacobian.T, torch.ones(2))
    torch.testing.assert_close(weights, torch.tensor([0.5, 0.5]))
    losses = torch.tensor([3.0, 1.0])
    weights = gradient_weightings.build("mgda", tasks=2, normalise="loss")(jacobian @ jacobian.T, losses)
    torch.testing.assert_close(weights, torch.tensor([0.5, 0.5]))
    weights = gradient_weightings.build("mgda", tasks=2, normalise="loss+")(jacobian @ jacobian.T, losses)
    torch.testing.assert_close(weights, torch.tensor([0.9, 0.1]))


def test_mgda_shares_among_equals() -> None:
    jacobian = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    method = build_gradient("mgda", 3)
    torch.testing.assert_close(method(jacobian @ jacobian.T, torch.ones(3)), torch.full((3,), 1 / 3))
    torch.testing.assert_close(method(torch.zeros(3, 3), torch.ones(3)), torch.full((3,), 1 / 3))
    assert method.events.total() == 1


@pytest.mark.parametrize("normalise", ["loss", "loss+"])
def test_mgda_refuses_to_divide_by_negative_losses(normalise: str) -> None:
    method = gradient_weightings.build("mgda", tasks=2, normalise=normalise)
    with pytest.raises(MtlError, match=r"found -0.5; choose none or l2"):
        method(torch.eye(2), torch.tensor([1.0, -0.5]))
    assert method(torch.eye(2), torch.tensor([1.0, 0.0])).isfinite().all()


# pcgrad


def surgery(jacobian: Tensor, orders: list[list[int]]) -> Tensor:
    """Algorithm 1 on the vectors themselves."""
    projected = jacobian.clone()
    for i, order in enumerate(orders):
        for j in order:
            overlap = projected[i] @ jacobian[j]
            if j != i and overlap < 0:
                projected[i] -= overlap / jacobian[j].square().sum() * jacobian[j]
    return projected.sum(0)


@pytest.mark.parametrize("jacobian", EVERY)
def test_pcgrad_is_surgery_on_vectors(jacobian: Tensor) -> None:
    method, rng = build_gradient("pcgrad", len(jacobian), seed=4), torch.Generator().manual_seed(4)
    for _ in range(3):
        orders = [torch.randperm(len(jacobian), generator=rng).tolist() for _ in jacobian]
        torch.testing.assert_close(direction(method, jacobian), surgery(jacobian, orders), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("jacobian", EVERY)
def test_pcgrad_is_torchjd(jacobian: Tensor, aggregation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact up to rounding, once both draw the same orders."""
    drawn = [torch.randperm(len(jacobian), generator=torch.Generator().manual_seed(k)) for k in range(len(jacobian))]
    found = []
    for aggregate in (lambda j: direction(build_gradient("pcgrad", len(j)), j), aggregation.PCGrad()):
        orders = iter(drawn)
        monkeypatch.setattr(torch, "randperm", lambda n, orders=orders, **_: next(orders))
        found.append(aggregate(jacobian))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


def test_pcgrad_by_hand() -> None:
    jacobian = torch.tensor([[2.0, 0.0], [-1.0, 1.0]])
    # h_1 = g_1 + g_2 (coefficient 2 / 2), h_2 = g_2 + g_1 / 2 (coefficient 2 / 4)
    weights = build_gradient("pcgrad", 2)(jacobian @ jacobian.T, torch.ones(2))
    torch.testing.assert_close(weights, torch.tensor([1.5, 2.0]))


def test_pcgrad_draws_new_orders() -> None:
    method, jacobian = build_gradient("pcgrad", 6), jacobian_of(6, 3)
    assert len({tuple(direction(method, jacobian).tolist()) for _ in range(5)}) > 1


# nash_mtl


def unclipped(jacobian: Tensor) -> Tensor:
    gramian = jacobian @ jacobian.T
    return gradient_weightings.build("nash_mtl", tasks=len(jacobian), max_norm=0)(gramian, torch.ones(len(jacobian)))


@pytest.mark.parametrize("jacobian", EVERY[:-1])  # in the last one gradients cancel
def test_nash_solves_its_equation(jacobian: Tensor) -> None:
    weights = unclipped(jacobian)
    assert (weights > 0).all()
    ones = torch.ones(len(jacobian), dtype=torch.float64)
    torch.testing.assert_close(weights * (jacobian @ jacobian.T @ weights), ones, rtol=0, atol=1e-8)
    torch.testing.assert_close((weights @ jacobian).norm(), ones.sum().sqrt(), rtol=1e-8, atol=0)


@pytest.mark.parametrize("angle", [0.0, 0.3, math.pi / 2, 2.5, math.pi - 1e-3])
@pytest.mark.parametrize("lengths", [(1.0, 1.0), (1e-10, 1e10), (1e10, 3e10), (1e-9, 3e-10)])
def test_nash_closed_form_of_two(angle: float, lengths: tuple[float, float]) -> None:
    first, second = lengths
    jacobian = torch.tensor([[first, 0.0], [second * math.cos(angle), second * math.sin(angle)]], dtype=torch.float64)
    expected = 1 / (torch.tensor(lengths, dtype=torch.float64) * math.sqrt(1 + math.cos(angle)))
    torch.testing.assert_close(unclipped(jacobian), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("max_norm", [0.1, 1.0, 1.5, 100.0])
def test_nash_shortens_all_weights_alike(max_norm: float) -> None:
    jacobian = jacobian_of(3, 10)
    weights = gradient_weightings.build("nash_mtl", tasks=3, max_norm=max_norm)(jacobian @ jacobian.T, torch.ones(3))
    expected = unclipped(jacobian) * min(1.0, max_norm / math.sqrt(3))
    torch.testing.assert_close(weights, expected, rtol=1e-8, atol=0)


@pytest.mark.filterwarnings("ignore")  # theirs: cvxpy and ecos warn about inaccurate solutions
@pytest.mark.parametrize("jacobian", [p for p in EVERY if p.id not in ("ill_conditioned0", "rank_deficient2")])
def test_nash_is_torchjd(jacobian: Tensor, aggregation) -> None:
    """Theirs is the published loop of convex programs. Their equation holds to 1e-6 where they solve it.

    Left out, because they do not: lengths from 1e-2 to 1e2 (their residual is 1e4) and cancelling gradients (no
    solution exists).
    """
    weights = build_gradient("nash_mtl", len(jacobian))(jacobian @ jacobian.T, torch.ones(len(jacobian)))
    theirs = aggregation.NashMTL(n_tasks=len(jacobian), max_norm=1.0)
    torch.testing.assert_close(weights @ jacobian, theirs(jacobian), rtol=1e-5, atol=1e-6)


def test_nash_where_gradients_cancel() -> None:
    jacobian = torch.tensor([[1.0, 0.0], [-2.0, 0.0], [0.0, 5.0]], dtype=torch.float64)
    method = build_gradient("nash_mtl", 3)
    weights = method(jacobian @ jacobian.T, torch.ones(3))
    assert method.events.total() == 1
    assert (weights > 0).all()
    # What cancels stays put to 1e-3 of a unit step, and the third task still gets its own.
    torch.testing.assert_close(weights @ jacobian, torch.tensor([0.0, 1.0], dtype=torch.float64), rtol=0, atol=1e-3)


def test_nash_keeps_a_zero_gradient_out() -> None:
    jacobian = jacobian_of(3, 10)
    with_zero = torch.cat([jacobian[:1], torch.zeros(1, 10, dtype=torch.float64), jacobian[1:]])
    weights = unclipped(with_zero)
    torch.testing.assert_close(weights[[0, 2, 3]], unclipped(jacobian))
    assert weights[1] == weights.min()
    assert unclipped(0 * jacobian).tolist() == [1.0, 1.0, 1.0]


# graddrop


def test_graddrop_is_torchjd(aggregation, monkeypatch: pytest.MonkeyPatch) -> None:
    jacobian = jacobian_of(4, 30)
    for leak in (0.0, 0.3):
        draws = torch.rand(30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        monkeypatch.setattr(torch, "rand", lambda *_, draws=draws, **__: draws)
        ours = gradient_weightings.build("graddrop", tasks=4, leak=leak)(jacobian, torch.ones(4))
        theirs = aggregation.GradDrop(leak=torch.full((4,), leak, dtype=torch.float64))(jacobian)
        torch.testing.assert_close(ours, theirs)


def test_graddrop_keeps_one_sign_as_often_as_purity_says() -> None:
    jacobian = torch.tensor([[3.0], [-1.0]]).expand(2, 20000).contiguous()
    found = build_gradient("graddrop", 2)(jacobian, torch.ones(2))
    assert set(found.unique().tolist()) == {3.0, -1.0}
    assert (found == 3.0).float().mean().item() == pytest.approx(0.75, abs=0.02)


def test_graddrop_leaves_agreement_alone() -> None:
    jacobian = jacobian_of(4, 1000).abs() * torch.where(jacobian_of(1, 1000, seed=8) > 0, 1, -1)
    torch.testing.assert_close(build_gradient("graddrop", 4)(jacobian, torch.ones(4)), jacobian.sum(0))


def test_graddrop_leaks_everything() -> None:
    method, jacobian = gradient_weightings.build("graddrop", tasks=4, leak=1.0), jacobian_of(4, 50)
    torch.testing.assert_close(method(jacobian, torch.ones(4)), jacobian.sum(0))


def test_graddrop_gets_some_columns_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "ENTRIES", 3 * 7)
    jacobian = jacobian_of(3, 30)
    method, seen = build_gradient("graddrop", 3), []
    method.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].shape[1]))
    found = rows.direction(method, jacobian, torch.ones(3))
    assert seen == [7, 7, 7, 7, 2]
    kept = torch.stack([jacobian.clamp(min=0).sum(0), jacobian.clamp(max=0).sum(0)])
    assert torch.isclose(found, kept).any(0).all()


def test_sum_is_all_ones() -> None:
    assert build_gradient("sum", 3)(torch.eye(3), torch.ones(3)).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("alpha", [2.0, 20.0])
@pytest.mark.parametrize("scale", [1e-15, 1e-5, 1.0])
def test_fairgrad_keeps_to_its_norm_in_float32(alpha: float, scale: float) -> None:
    """Terms that cancel leave their rounding, which must not outgrow the update."""
    for seed in range(5):
        jacobian = (scale * jacobian_of(12, 1, seed)).float()
        wide = jacobian.double()
        method = gradient_weightings.build("fairgrad", tasks=12, alpha=alpha)
        weights = method(wide @ wide.T, torch.ones(12, dtype=torch.float64))
        assert (weights.float() @ jacobian).norm() <= 1.01
