"""Gradient weightings that remember: running averages, learned weights, lengths."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from weighting_toys import build_gradient, direction, jacobian_of

from mtlcli import MtlError, gradient_weightings
from mtlcli.errors import OptionError
from mtlcli.weighting.gradients import excess_mtl
from mtlcli.weighting.solvers import onto_simplex

ONES = torch.ones(3, dtype=torch.float64)


def gramian_of(*lengths: float) -> Tensor:
    return torch.tensor(lengths, dtype=torch.float64).square().diag()


@pytest.mark.parametrize("name", ["moco", "db_mtl", "excess_mtl"])
def test_gradients_must_keep_their_size(name: str) -> None:
    method = build_gradient(name, 3)
    method(jacobian_of(3, 8), ONES)
    with pytest.raises(MtlError, match=r"found \(3, 6\) after \(3, 8\); take them at the parameters"):
        method(jacobian_of(3, 6), ONES)


@pytest.mark.parametrize("name", ["moco", "db_mtl", "excess_mtl"])
def test_gradients_must_be_finite(name: str) -> None:
    method, jacobian = build_gradient(name, 3), jacobian_of(3, 8)
    method(jacobian, ONES)
    jacobian[1, 4] = math.inf
    with pytest.raises(MtlError, match=rf"{name}: gradients should be finite; found NaN or inf in rows \[1\]"):
        method(jacobian, ONES)


@pytest.mark.parametrize("name", ["moco", "db_mtl", "excess_mtl"])
def test_the_jacobian_handed_in_is_left_alone(name: str) -> None:
    """The engine uses one buffer for all steps."""
    method, buffer = build_gradient(name, 3), torch.empty(3, 8, dtype=torch.float64)
    other = build_gradient(name, 3)
    for seed in range(3):
        buffer.copy_(jacobian_of(3, 8, seed))
        found = method(buffer, ONES)
        assert torch.equal(buffer, jacobian_of(3, 8, seed))
        assert torch.equal(found, other(jacobian_of(3, 8, seed), ONES))


# gradvac


def vaccinated(jacobian: Tensor, orders: list[list[int]], targets: Tensor, beta: float) -> Tensor:
    """Algorithm 1 on the vectors themselves."""
    turned = jacobian.clone()
    for i, order in enumerate(orders):
        for j in order:
            if i == j:
                continue
            phi = torch.cosine_similarity(turned[i], jacobian[j], dim=0)
            target = targets[i, j].clone()
            if phi < target:
                sine, wanted = (1 - phi**2).sqrt(), (1 - target**2).sqrt()
                factor = turned[i].norm() * (target * sine - phi * wanted) / (jacobian[j].norm() * wanted)
                turned[i] += factor * jacobian[j]
                torch.testing.assert_close(torch.cosine_similarity(turned[i], jacobian[j], dim=0), target)
            targets[i, j] = (1 - beta) * target + beta * phi
    return turned.sum(0)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("num_tasks", [2, 3, 7])
def test_gradvac_is_algorithm_one(num_tasks: int, beta: float) -> None:
    method = gradient_weightings.build("gradvac", tasks=num_tasks, beta=beta, seed=5)
    rng, targets = torch.Generator().manual_seed(5), torch.zeros(num_tasks, num_tasks, dtype=torch.float64)
    for seed in range(4):
        jacobian = jacobian_of(num_tasks, 12, seed) + 0.3
        orders = [torch.randperm(num_tasks, generator=rng).tolist() for _ in range(num_tasks)]
        expected = vaccinated(jacobian, orders, targets, beta)
        torch.testing.assert_close(direction(method, jacobian), expected, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(method.targets, targets)


def test_gradvac_with_frozen_targets_of_zero_is_pcgrad() -> None:
    jacobian = jacobian_of(5, 6)
    ours = direction(gradient_weightings.build("gradvac", tasks=5, beta=0.0, seed=2), jacobian)
    torch.testing.assert_close(ours, direction(build_gradient("pcgrad", 5, seed=2), jacobian))


def test_gradvac_stays_bounded_after_perfect_agreement() -> None:
    method = gradient_weightings.build("gradvac", tasks=2, beta=1.0)
    alike = jacobian_of(1, 8).expand(2, 8)
    direction(method, alike)
    assert method.targets[0, 1] == pytest.approx(1.0)
    assert direction(method, jacobian_of(2, 8, seed=3)).norm() < 1e5 * 8


# moco


def simplex(point: Tensor) -> Tensor:
    return torch.from_numpy(onto_simplex(point.double().numpy()))


def test_projection_onto_the_simplex() -> None:
    for seed in range(20):
        point = 2 * jacobian_of(1, 5, seed)[0]
        found = simplex(point)
        assert found.sum() == pytest.approx(1.0)
        assert (found >= 0).all()
        gap = point - found  # optimality: constant where positive, smaller elsewhere
        level = gap[found > 0].mean()
        torch.testing.assert_close(gap[found > 0], level.expand(int((found > 0).sum())))
        assert (gap[found == 0] <= level + 1e-12).all()
    assert simplex(torch.tensor([1e30, -1e30, 1e30])).tolist() == [0.5, 0.0, 0.5]


def test_moco_by_hand() -> None:
    method = gradient_weightings.build("moco", tasks=2, rho=0.1)
    first, second = jacobian_of(2, 5), jacobian_of(2, 5, seed=1)
    tracked, weights = 0.5 * first, torch.full((2,), 0.5, dtype=torch.float64)
    found = method(first, ONES[:2])
    weights = simplex(weights - 0.1 * (tracked @ tracked.T + 0.1 * torch.eye(2)) @ weights)
    torch.testing.assert_close(found, weights @ tracked)
    rate = 1 / math.sqrt(2)
    tracked = tracked + 0.5 * rate * (second - tracked)
    weights = simplex(weights - 0.1 * rate * (tracked @ tracked.T + 0.1 * torch.eye(2)) @ weights)
    torch.testing.assert_close(method(second, ONES[:2]), weights @ tracked)


def test_moco_tends_to_the_shortest_combination() -> None:
    jacobian = jacobian_of(3, 6) + 0.5
    method = gradient_weightings.build("moco", tasks=3, beta=1.0, beta_sigma=0.0, gamma=0.05, gamma_sigma=0.0)
    for _ in range(2000):
        found = method(jacobian, ONES)
    torch.testing.assert_close(found, direction(build_gradient("mgda", 3), jacobian), rtol=1e-5, atol=1e-5)


def test_moco_normalised_by_losses() -> None:
    losses = torch.tensor([3.0, 0.5], dtype=torch.float64)
    options = {"beta": 1.0, "beta_sigma": 0.0, "gamma": 1e-12, "normalise": "loss"}
    method = gradient_weightings.build("moco", tasks=2, **options)
    jacobian = torch.tensor([[5.0, 0.0], [0.0, 7.0]], dtype=torch.float64)
    torch.testing.assert_close(method(jacobian, losses), losses / 2)
    with pytest.raises(MtlError, match="found -1; choose none"):
        method(jacobian, -losses / 3)


# db_mtl


def test_db_mtl_stretches_to_the_longest() -> None:
    method = gradient_weightings.build("db_mtl", tasks=3, beta=0.0)
    jacobian = jacobian_of(3, 9) * torch.tensor([[1e-6], [1.0], [5.0]], dtype=torch.float64)
    lengths = jacobian.norm(dim=1)
    torch.testing.assert_close(method(jacobian, ONES), (lengths.max() / lengths) @ jacobian)


def test_db_mtl_averages() -> None:
    method = gradient_weightings.build("db_mtl", tasks=1, beta=0.9, beta_sigma=0.5)
    average = torch.zeros(1, 4, dtype=torch.float64)
    for step in range(1, 5):
        jacobian = jacobian_of(1, 4, step)
        average = jacobian + 0.9 / step**0.5 * (average - jacobian)
        torch.testing.assert_close(method(jacobian, ONES[:1]), average[0])


# excess_mtl


def test_excess_mtl_first_measures() -> None:
    method, jacobian = gradient_weightings.build("excess_mtl", tasks=3, step_size=1.0), jacobian_of(3, 5)
    torch.testing.assert_close(direction(method, jacobian), jacobian.sum(0))
    torch.testing.assert_close(method.first, jacobian.abs().sum(1))  # g^2 / sqrt(g^2)
    # The second time each excess is 1 / sqrt(2) of the first, for all tasks alike.
    torch.testing.assert_close(direction(method, jacobian), jacobian.sum(0))
    louder = jacobian * torch.tensor([[3.0], [1.0], [1.0]], dtype=torch.float64)
    excess = louder.square() / (2 * jacobian.square() + louder.square()).sqrt()
    weights = 3 * (excess.sum(1) / jacobian.abs().sum(1)).softmax(0)
    torch.testing.assert_close(method(louder, ONES), weights)


def test_excess_mtl_does_not_mind_the_scale() -> None:
    methods = [build_gradient("excess_mtl", 3) for _ in range(2)]
    scales = torch.tensor([[1e-8], [1.0], [1e6]], dtype=torch.float64)
    for seed in range(4):
        jacobian = jacobian_of(3, 5, seed)
        plain, _ = methods[0](jacobian, ONES), methods[1](scales * jacobian, ONES)
        torch.testing.assert_close(methods[0].logits, methods[1].logits)
    assert plain.isfinite().all()


def test_excess_mtl_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = build_gradient("excess_mtl", 3), build_gradient("excess_mtl", 3)
    for seed in range(3):
        monkeypatch.setattr(excess_mtl, "CHUNK", 100)
        expected = whole(jacobian_of(3, 10, seed), ONES)
        monkeypatch.setattr(excess_mtl, "CHUNK", 3)
        torch.testing.assert_close(parts(jacobian_of(3, 10, seed), ONES), expected)


def test_excess_mtl_meets_a_task_late() -> None:
    method, jacobian = gradient_weightings.build("excess_mtl", tasks=2, step_size=1.0), jacobian_of(2, 5)
    silent = jacobian * torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    method(silent, ONES[:2])
    method(jacobian, ONES[:2])
    torch.testing.assert_close(method.first, jacobian.abs().sum(1))


# modo, sdmgrad: two batches


def test_modo_by_hand() -> None:
    method = gradient_weightings.build("modo", tasks=2, gamma=0.1, rho=0.2)
    cross = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64)
    even = torch.full((2,), 0.5, dtype=torch.float64)
    expected = simplex(even - 0.1 * (cross @ even + 0.2 * even))
    torch.testing.assert_close(method(cross, ONES[:2]), expected)
    again = simplex(expected - 0.1 * (cross @ expected + 0.2 * expected))
    torch.testing.assert_close(method(cross, ONES[:2]), again)


def test_modo_tends_to_the_shortest_combination() -> None:
    jacobian = jacobian_of(3, 6) + 0.5
    method = gradient_weightings.build("modo", tasks=3, gamma=0.02, rho=0.0)
    for _ in range(3000):
        found = direction(method, jacobian)
    torch.testing.assert_close(found, direction(build_gradient("mgda", 3), jacobian), rtol=1e-4, atol=1e-4)


def test_sdmgrad_minimises_what_it_should() -> None:
    """v minimises 1/2 v'Av + pull even'Av over the simplex; brute force over a grid."""
    jacobian = jacobian_of(2, 4, seed=5)
    gramian = jacobian @ jacobian.T
    method = gradient_weightings.build("sdmgrad", tasks=2, pull=0.5, iterations=2000, lr=0.05)
    found = method(gramian, ONES[:2])
    first = torch.linspace(0, 1, 10_001, dtype=torch.float64)
    grid = torch.stack([first, 1 - first], dim=1)
    values = 0.5 * ((grid @ gramian) * grid).sum(1) + 0.5 * 0.5 * (grid @ gramian).sum(1)
    best = grid[values.argmin()]
    torch.testing.assert_close(found, (best + 0.25) / 1.5, rtol=0, atol=2e-4)


def test_sdmgrad_does_not_mind_the_scale() -> None:
    cross = jacobian_of(3, 4) @ jacobian_of(3, 4, seed=1).T + torch.eye(3)
    plain, scaled = build_gradient("sdmgrad", 3), build_gradient("sdmgrad", 3)
    torch.testing.assert_close(plain(cross, ONES), scaled(1e-12 * cross, ONES))


def test_sdmgrad_stays_where_no_gradient_agrees_with_itself() -> None:
    method = build_gradient("sdmgrad", 3)
    found = method(-torch.eye(3, dtype=torch.float64), ONES)
    assert found.tolist() == pytest.approx([1 / 3] * 3)
    assert method.events == {"no gradient agreed with itself over two batches: the weights stayed": 1}


# gradnorm


def test_gradnorm_starts_equal_and_evens_out_lengths() -> None:
    method = gradient_weightings.build("gradnorm", tasks=3, alpha=0.0, lr=0.01)
    gramian = gramian_of(1.0, 2.0, 4.0)
    assert method(gramian, ONES).tolist() == [1.0, 1.0, 1.0]
    for _ in range(600):
        weights = method(gramian, ONES)
    assert weights.sum() == pytest.approx(3.0)
    expected = torch.tensor([1.0, 0.5, 0.25], dtype=torch.float64)
    torch.testing.assert_close(weights, 3 * expected / expected.sum(), rtol=0.05, atol=0)


def test_gradnorm_gives_slow_tasks_more() -> None:
    method = gradient_weightings.build("gradnorm", tasks=2, alpha=1.0, lr=0.01)
    method(gramian_of(1.0, 1.0), torch.tensor([2.0, 2.0]))
    for _ in range(600):  # the first task's loss halved: inverse rates 0.5 and 1, relative to their mean 2/3 and 4/3
        weights = method(gramian_of(1.0, 1.0), torch.tensor([1.0, 2.0]))
    assert (weights[1] / weights[0]).item() == pytest.approx(2.0, rel=0.05)


def test_gradnorm_first_update_is_one_of_adam() -> None:
    method = gradient_weightings.build("gradnorm", tasks=2, lr=0.1)
    method(gramian_of(1.0, 3.0), ONES[:2])  # target 2: the first too short, the second too long
    torch.testing.assert_close(method.weights.detach(), torch.tensor([1.1, 0.9], dtype=torch.float64))


def test_gradnorm_counts_losses_that_are_not_positive() -> None:
    method = build_gradient("gradnorm", 2)
    assert method(gramian_of(1.0, 1.0), torch.tensor([-1.0, 1.0])).isfinite().all()
    assert method.events.total() == 1


def test_gradnorm_takes_each_base_from_the_first_positive_loss() -> None:
    """A task without labels in the first batch would otherwise seem to have stood still ever since."""
    method, other = (gradient_weightings.build("gradnorm", tasks=2, alpha=1.0, lr=0.01) for _ in range(2))
    method(gramian_of(1.0, 0.0), torch.tensor([2.0, 0.0]))
    other(gramian_of(1.0, 0.0), torch.tensor([2.0, 2.0]))
    for _ in range(300):
        weights = [each(gramian_of(1.0, 1.0), torch.tensor([1.0, 2.0])) for each in (method, other)]
    torch.testing.assert_close(*weights, rtol=0.05, atol=0)


# metabalance


def test_metabalance_by_hand() -> None:
    method = gradient_weightings.build("metabalance", tasks=("a", "b"), main="b")
    weights = method(gramian_of(4.0, 1.0), ONES[:2])
    torch.testing.assert_close(weights, torch.tensor([0.7 * 0.25 + 0.3, 1.0]).double())
    weights = method(gramian_of(4.0, 3.0), ONES[:2])  # running lengths 0.9 * 0.4 + 0.4 and 0.9 * 0.1 + 0.3
    torch.testing.assert_close(weights, torch.tensor([0.7 * 0.39 / 0.76 + 0.3, 1.0]).double())


def test_metabalance_main_task() -> None:
    first = gradient_weightings.build("metabalance", tasks=("a", "b"))
    assert first(gramian_of(4.0, 1.0), ONES[:2])[0] == 1
    with pytest.raises(OptionError, match="no task 'c'; tasks: a, b"):
        gradient_weightings.build("metabalance", tasks=("a", "b"), main="c")
