"""Auto-Lambda, MOML and FORUM: their slopes against exact ones that autograd takes through the inner step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from weighting_toys import Quadratics, QuadraticStep

from mtlcli import loss_weightings
from mtlcli.errors import OptionError
from mtlcli.weighting.base import Losses
from mtlcli.weighting.losses.forum import aligned_minimum

TARGETS = torch.tensor([[1.0, 0.0], [0.8, 0.4], [-1.0, 0.3]], dtype=torch.float64)
HELD_OUT = torch.tensor([[0.9, 0.5], [0.1, 1.0], [-0.5, -1.0]], dtype=torch.float64)


class Curved(Quadratics):
    """Quartics, so that the step taken matters for the slopes there."""

    def losses(self, params: Any, targets: Tensor) -> Tensor:
        return self.signs * ((params["shared"] - targets).square().sum(1) + 0.3).square()


def exact(step: QuadraticStep, weights: Tensor, lr: float) -> Tensor:
    """d V_t(theta - lr grad sum_k w_k L_k(theta)) / d w as (K, K), by differentiating through the step."""
    toy: Any = step.toy
    weights = weights.clone().requires_grad_()
    losses = toy.losses(toy.params, toy.targets)
    (gradient,) = torch.autograd.grad((weights * losses).sum(), toy.params["shared"], create_graph=True)
    held_out = toy.losses({"shared": toy.params["shared"] - lr * gradient}, toy.held_out)
    return torch.stack([torch.autograd.grad(loss, weights, retain_graph=True)[0] for loss in held_out])


def weights_of(method: Any, step: Any) -> Tensor:
    return torch.autograd.grad(method(step).sum(), step.losses)[0]


@pytest.mark.parametrize(
    ("primary", "rows"), [(None, [0, 1, 2]), ("task1", [1]), (["task2", "task0"], [0, 2])], ids=str
)
def test_auto_lambda_slopes_are_exact(primary: Any, rows: list[int]) -> None:
    method = loss_weightings.build("auto_lambda", tasks=3, primary=primary, distance=1e-4).double()
    step = QuadraticStep(Curved(TARGETS, HELD_OUT), lr=0.05)
    expected = exact(step, torch.full((3,), 0.1, dtype=torch.float64), 0.05)[rows].sum(0)
    torch.testing.assert_close(method._slope(step), expected, rtol=1e-5, atol=1e-8)
    assert method.learnable() == []


def test_auto_lambda_moves_by_adam() -> None:
    method = loss_weightings.build("auto_lambda", tasks=3, lr=0.01, primary="task0").double()
    step = QuadraticStep(Curved(TARGETS, HELD_OUT))
    reference = torch.full((3,), 0.1, dtype=torch.float64).requires_grad_()
    adam = torch.optim.Adam([reference], lr=0.01)
    for _ in range(5):
        reference.grad = method._slope(step)
        adam.step()
        torch.testing.assert_close(weights_of(method, step), reference.detach())
    assert reference[0] > 0.1
    assert reference[2] < 0.1  # its target is the opposite one
    assert method.events["a negative weight was used"] == 0


def test_auto_lambda_counts_negative_weights() -> None:
    method = loss_weightings.build("auto_lambda", tasks=3, lr=0.2, primary="task0").double()
    method(QuadraticStep(Curved(TARGETS, HELD_OUT)))
    assert method.events["a negative weight was used"] == 1


def test_primary_goes_by_name() -> None:
    for primary in ("tsk1", ["task0", "tsk1"]):
        with pytest.raises(OptionError, match="did you mean 'task1'"):
            loss_weightings.build("auto_lambda", tasks=3, primary=primary)


def softmax_slopes(slopes: Tensor, logits: Tensor) -> Tensor:
    """Slopes (..., K) with respect to the logits."""
    jacobian = torch.autograd.functional.jacobian(lambda a: a.softmax(0), logits)
    return slopes @ jacobian


def test_moml_slopes_are_exact() -> None:
    method = loss_weightings.build("moml", tasks=3, inner_lr=0.05, aggregate="even").double()
    with torch.no_grad():
        method.logits += torch.tensor([0.2, -0.3, 0.4])
    step = QuadraticStep(Curved(TARGETS, HELD_OUT))
    logits = method.logits.detach().clone().requires_grad_()
    adam = torch.optim.Adam([logits], lr=1e-3)
    for _ in range(4):
        shares = logits.detach().softmax(0)
        logits.grad = softmax_slopes(exact(step, shares, 0.05).sum(0), logits.detach())
        adam.step()
        torch.testing.assert_close(weights_of(method, step), 3 * logits.detach().softmax(0))
        torch.testing.assert_close(method.logits, logits)


@pytest.mark.parametrize("held_out", [HELD_OUT, TARGETS[[0, 1, 0]]], ids=["opposed", "alike"])
def test_moml_takes_the_shortest_combination(held_out: Tensor) -> None:
    method = loss_weightings.build("moml", tasks=3).double()
    slopes = exact(QuadraticStep(Curved(TARGETS, held_out)), method.shares(), 0.1)
    logits = method.logits.detach()
    found = softmax_slopes(method._combined(slopes), logits)
    expected = shortest(softmax_slopes(slopes, logits))
    torch.testing.assert_close(found.norm(), expected.norm(), rtol=1e-2, atol=5e-3)
    assert method._combined(0 * slopes).tolist() == [0, 0, 0]


def test_moml_leaves_held_out_losses_of_zero_out() -> None:
    """Their slope of zero would be the shortest combination, and the weights would stay for good."""

    class Unlabelled(QuadraticStep):
        def probe(self, at: Any = None, batch: Any = "train") -> Losses:
            found = super().probe(at, batch).per_task * torch.tensor([1.0, 1.0 if batch == "train" else 0.0, 1.0])
            return Losses(found.unbind(), found[:, None].unbind())

    without = Curved(TARGETS, HELD_OUT[[0, 0, 2]])  # the same slope twice changes no shortest combination
    found, expected = (loss_weightings.build("moml", tasks=3).double() for _ in range(2))
    for _ in range(3):
        found(Unlabelled(Curved(TARGETS, HELD_OUT)))
        expected(QuadraticStep(without))
    torch.testing.assert_close(found.logits, expected.logits)
    assert (found.logits - 1 / 3).abs().max() > 1e-3


def shortest(rows: Tensor) -> Tensor:
    """The shortest convex combination of three rows, over a fine grid."""
    ticks = torch.linspace(0, 1, 401, dtype=rows.dtype)
    a, b = torch.meshgrid(ticks, ticks, indexing="ij")
    weights = torch.stack([a, b, 1 - a - b], -1).view(-1, 3)
    points = weights[(weights >= -1e-12).all(1)] @ rows
    return points[points.norm(dim=1).argmin()]


def test_one_task() -> None:
    step = QuadraticStep(Quadratics(TARGETS[:1]))
    found = weights_of(loss_weightings.build("moml", tasks=1).double(), step)
    torch.testing.assert_close(found, torch.ones(1, dtype=torch.float64))


def published_program(units: Tensor, q: Tensor, rho: float) -> Tensor:
    """c of the published program, by trying every c on a fine grid with the n that is best for it."""
    size = float(q @ q)
    prices = rho - units @ q / size
    ticks = torch.linspace(0, 1, 201, dtype=units.dtype)
    a, b = torch.meshgrid(ticks, ticks, indexing="ij")
    grid = torch.stack([a, b, 1 - a - b], -1).view(-1, 3)
    grid = grid[(grid >= -1e-12).all(1)]
    least = (grid @ prices).clamp(min=0)
    best = rho / 2 - grid @ units @ q / size  # where the slope in n is zero
    n = torch.maximum(least, best)
    values = (grid @ units + n[:, None] * q).square().sum(1) - n * rho * size
    return grid[values.argmin()]


@pytest.mark.parametrize("seed", range(12))
def test_forum_solves_the_published_program(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    units = torch.nn.functional.normalize(torch.randn(3, 4, generator=rng, dtype=torch.float64), dim=1)
    q = torch.randn(4, generator=rng, dtype=torch.float64)
    q = q / q.norm() * (0.1, 1.0, 10.0)[seed % 3]
    if seed % 4 == 0:  # q along the gradients, so that the condition is met with nothing to spare
        q = units.sum(0)
    rho = (0.1, 1.0)[seed % 2]
    size = float(q.norm())
    gramian, along = (units @ units.T).numpy(), (units @ q / size).numpy()
    found = torch.from_numpy(aligned_minimum(gramian, along, rho * size))
    expected = published_program(units, q, rho)

    def value(c: Tensor) -> float:
        n = max(float(c @ (rho - units @ q / size**2)), 0.0)
        return float((c @ units + n * q).square().sum() - n * rho * size**2)

    assert found.sum().item() == pytest.approx(1)
    assert (found >= 0).all()
    assert value(found) <= value(expected) + 1e-9
    assert value(found) >= value(expected) - 2e-2


def test_forums_program_of_many_tasks_is_solved() -> None:
    """It is convex, so that slopes towards the corners of the simplex bound what is left to gain."""
    rng = np.random.default_rng(0)
    sides = set()
    for trial in range(1000):
        tasks = int(rng.integers(2, 13))
        dimensions = int(rng.integers(1, 2 + trial % (tasks + 2)))  # often fewer than tasks
        units = rng.normal(size=(tasks, dimensions))
        units /= np.linalg.norm(units, axis=1)[:, None]
        direction = rng.normal(size=units.shape[1]) + 3 * (trial % 3 == 0) * units.sum(0)
        direction /= np.linalg.norm(direction) * rng.uniform(1, 1.1)
        gramian, along, radius = units @ units.T, units @ direction, 10 ** rng.uniform(-2, 0.5)
        found = aligned_minimum(gramian, along, radius)
        assert found.sum() == pytest.approx(1)
        assert (found >= 0).all()
        x = found @ along
        on_kink = abs(x - radius) < 1e-7
        sides.add("kink" if on_kink else x > radius)
        slopes = np.linspace(-radius, 0, 2001) if on_kink else [radius - 2 * x if x < radius else 0.0]
        left = [gradient @ found - gradient.min() for gradient in (2 * gramian @ found + s * along for s in slopes)]
        assert min(left) < 1e-5 + 2 * radius / 2000 * on_kink, trial
    assert sides == {"kink", True, False}


@pytest.mark.parametrize("seed", range(60))
def test_forums_program_of_two_tasks_against_a_grid(seed: int) -> None:
    """Some of these have their answer on the kink, where the push towards the training loss sets in."""
    rng = np.random.default_rng(seed)
    angle, x = rng.uniform(0.1, 3.0), rng.uniform(-0.9, 0.9)
    units = np.array([[1.0, 0.0], [np.cos(angle), np.sin(angle)]])
    direction = np.array([np.cos(x * np.pi), np.sin(x * np.pi)])
    gramian, along, radius = units @ units.T, units @ direction, rng.uniform(0.05, 0.9)

    def value(c: np.ndarray[Any, Any]) -> Any:
        inner = c @ along
        return ((c @ gramian) * c).sum(-1) + np.maximum(radius - inner, 0) * inner

    shares = np.linspace(0, 1, 200_001)
    grid = np.stack([shares, 1 - shares], axis=1)
    found = aligned_minimum(gramian, along, radius)
    assert value(found) <= value(grid).min() + 1e-9


# Epochs and points: at some the training loss asks for a push of its own, at others it falls by itself. Adam would hide
# the size of a push that is always the same.
PATH = [(0, [0.2, 0.2]), (0, [0.4, 1.2]), (2, [0.4, 0.6]), (2, [2.0, 1.0]), (3, [1.0, 1.5])]


def test_forum_against_its_published_loop() -> None:
    method = loss_weightings.build("forum", tasks=3, inner_steps=3, inner_lr=0.02, outer_lr=0.05, rho=0.05).double()
    quadratics = Curved(TARGETS, HELD_OUT)
    x = quadratics.params["shared"]
    logits = method.logits.detach().clone().requires_grad_()
    adam = torch.optim.Adam([logits], lr=0.05)
    combination = torch.zeros(3, dtype=torch.float64)
    pushes = []
    for epoch, point in PATH:
        with torch.no_grad():
            x.copy_(torch.tensor(point))
        step = QuadraticStep(quadratics)
        step.clock = step.clock._replace(epoch=epoch)
        found = weights_of(method, step)

        def weighted(at: Tensor) -> Tensor:
            return logits.softmax(0) @ quadratics.losses({"shared": at}, TARGETS)

        inner = x.detach().clone()
        for _ in range(3):
            inner = inner.requires_grad_()
            inner = (inner - 0.02 * torch.autograd.grad(weighted(inner), inner)[0]).detach()
        by_logits, by_x = torch.autograd.grad(weighted(x), [logits, x])
        by_logits = by_logits - torch.autograd.grad(weighted(inner), logits)[0]
        q = torch.cat([by_logits, by_x])
        gradients = torch.stack(
            [torch.autograd.grad(quadratics.losses(quadratics.params, HELD_OUT)[k], x)[0] for k in range(3)]
        )
        lengths = gradients.norm(dim=1)
        units = torch.cat([torch.zeros(3, 3, dtype=torch.float64), gradients / lengths[:, None]], 1)
        size = float(q.norm())
        solved = aligned_minimum((units @ units.T).numpy(), (units @ q / size).numpy(), 0.05 * size)
        combination = combination + (epoch + 1) ** -0.75 * (torch.from_numpy(solved) - combination)
        pushes.append(float(combination @ (0.05 - units @ q / size**2)))
        n = max(pushes[-1], 0.0)
        shares = logits.detach().softmax(0)
        torch.testing.assert_close(found, combination / lengths + n * shares, rtol=1e-5, atol=1e-6)
        logits.grad = n * by_logits
        adam.step()
        torch.testing.assert_close(method.logits, logits, rtol=1e-5, atol=1e-6)
    assert min(pushes) < -0.01
    assert max(pushes) > 0.1


@pytest.mark.parametrize("name", ["auto_lambda", "moml", "forum"])
def test_slopes_that_are_not_finite_change_nothing(name: str) -> None:
    class Broken(QuadraticStep):
        def probe(self, at: Any = None, batch: Any = "train") -> Any:
            found = super().probe(at, batch)
            broken = found.per_task * torch.tensor([1.0, torch.nan, 1.0])
            return Losses(broken.unbind(), broken[:, None].unbind())

    method = loss_weightings.build(name, tasks=3).double()
    before = [parameter.detach().clone() for parameter in method.parameters()]
    assert method(Broken(Quadratics(TARGETS))).isfinite().all()
    assert all(torch.equal(a, b) for a, b in zip(before, method.parameters(), strict=True))
    assert sum(method.events.values()) == 1
