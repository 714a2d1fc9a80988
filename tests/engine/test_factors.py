"""Gradients at the representation by their factors: the same as the gradients themselves, and taken only where they
are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mtlcli
from mtlcli.engine import factors as engine_factors
from mtlcli.engine import step as engine
from mtlcli.engine.factors import find_factors

TASKS = ("a", "b", "c")
BATCH, WIDTH = 8, 20
Losses = Callable[[Tensor], list[Tensor]]


def linear(outputs: int, bias: bool = True) -> nn.Linear:
    return nn.Linear(WIDTH, outputs, bias=bias)


def trunk() -> nn.Module:
    return nn.Sequential(nn.Linear(5, WIDTH), nn.Tanh())


def representation(seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return trunk()(torch.randn(BATCH, 5))


def squares(*heads: nn.Module) -> Losses:
    torch.manual_seed(1)
    return lambda z: [(head(z) - k).square().mean() * 3.0**k for k, head in enumerate(heads)]


def spread(columns: Tensor, seen: list[Tensor]) -> Tensor:
    """Something that goes by the order of the tasks, column by column."""
    seen.append(columns)
    return columns.amax(0) + 10 * columns[-1].clamp(min=0)


def _two_layers(z: Tensor) -> list[Tensor]:
    torch.manual_seed(2)
    mean, log_scale = linear(1), linear(1, bias=False)
    one = (mean(z).square() * log_scale(z).exp()).mean()
    return [one, *squares(linear(2), linear(1))(z)]


def _hidden(z: Tensor) -> list[Tensor]:
    torch.manual_seed(2)
    deep = nn.Sequential(linear(2), nn.ReLU(), nn.Linear(2, 3))
    return squares(deep, linear(1), linear(2))(z)


def _classes(z: Tensor) -> list[Tensor]:
    torch.manual_seed(2)
    labels = torch.arange(len(z)) % 3
    masked = nn.functional.mse_loss(linear(1)(z)[labels == 0, 0], torch.ones(int((labels == 0).sum())))
    return [nn.functional.cross_entropy(linear(3)(z), labels), masked, linear(1)(z).flatten().sigmoid().sum()]


def _frozen(z: Tensor) -> list[Tensor]:
    torch.manual_seed(2)
    return squares(linear(1).requires_grad_(False), linear(1), linear(1))(z)


def _same_parameter(z: Tensor) -> list[Tensor]:
    torch.manual_seed(2)
    head = linear(1)
    return [(head(z) - k).square().mean() for k in range(3)]


def _per_sample(z: Tensor) -> list[Tensor]:
    torch.manual_seed(2)
    return [(linear(1)(z)[:, 0] - k).square() for k in range(3)]


@pytest.mark.parametrize(
    "losses", [_two_layers, _hidden, _classes, _frozen, _same_parameter, _per_sample], ids=lambda f: f.__name__[1:]
)
def test_the_same_as_the_gradients_themselves(losses: Losses, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_factors, "ENTRIES", 3 * len(TASKS) * WIDTH)  # the last part is smaller
    z = representation()
    roots = losses(z)
    pull = [torch.rand_like(root) + 0.5 for root in roots]
    rows = [torch.autograd.grad(r, z, p, retain_graph=True)[0] for r, p in zip(roots, pull, strict=True)]
    jacobian = torch.stack([row.flatten() for row in rows]).double()
    factors = find_factors(roots, [z], "gramian")
    assert factors is not None
    factors.take(roots, pull, [])
    torch.testing.assert_close(factors.gramian(), jacobian @ jacobian.T, rtol=1e-5, atol=1e-8)
    weights = torch.tensor([0.5, 2.0, -1.0], dtype=torch.float64)
    (combined,) = factors.combine(weights)
    torch.testing.assert_close(combined, (weights @ jacobian).float().view_as(z), rtol=1e-5, atol=1e-7)
    parts: list[Tensor] = []
    (found,) = factors.by_columns(lambda columns: spread(columns, parts))
    torch.testing.assert_close(found, spread(jacobian, []).float().view_as(z), rtol=1e-5, atol=1e-7)
    assert [part.shape for part in parts] == [(3, 3 * WIDTH), (3, 3 * WIDTH), (3, 2 * WIDTH)]


def test_several_tensors_are_read() -> None:
    """Tasks with features of their own; the third reads two of them."""
    torch.manual_seed(0)
    split = nn.Linear(5, 2 * WIDTH)(torch.randn(BATCH, 5)).chunk(2, dim=1)
    heads = [linear(1), linear(2), linear(1), linear(1)]
    third = (heads[2](split[0]) * heads[3](split[1])).mean()
    roots = [heads[0](split[0]).square().mean(), heads[1](split[1]).square().mean(), third]
    rows = [torch.autograd.grad(root, split, retain_graph=True, allow_unused=True) for root in roots]
    dense = [[torch.zeros_like(z) if g is None else g for g, z in zip(row, split, strict=True)] for row in rows]
    jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in dense]).double()
    factors = find_factors(roots, split, "gramian")
    assert factors is not None
    factors.take(roots, [torch.ones(())] * 3, [])
    torch.testing.assert_close(factors.gramian(), jacobian @ jacobian.T, rtol=1e-5, atol=1e-8)
    weights = torch.tensor([0.5, 2.0, -1.0])
    for found, *rows_ in zip(factors.by_columns(lambda columns: spread(columns, [])), *dense, strict=True):
        torch.testing.assert_close(found.flatten(), spread(torch.stack(rows_).flatten(1), []), rtol=1e-5, atol=1e-7)
    for k, part in enumerate(factors.combine(weights)):
        torch.testing.assert_close(part, sum(w * row[k] for w, row in zip(weights, dense, strict=True)))


def test_heads_learn_in_the_same_pass() -> None:
    z = representation()
    heads = [linear(1), linear(2), linear(1)]
    roots = squares(*heads)(z)
    own = [p for head in heads for p in head.parameters()]
    expected = torch.autograd.grad(roots, own, retain_graph=True)
    factors = find_factors(roots, [z], "gramian")
    assert factors is not None
    found = factors.take(roots, [torch.ones(())] * 3, own)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True) if a is not None)
    assert None not in found


def test_a_representation_in_half_precision() -> None:
    """Layers under autocast read a copy of it."""
    z = representation()
    heads = [linear(1), linear(2), linear(1)]
    with torch.autocast("cpu", torch.bfloat16):
        roots = [head(z).float().square().mean() for head in heads]
    jacobian = torch.stack([torch.autograd.grad(r, z, retain_graph=True)[0].flatten() for r in roots]).double()
    factors = find_factors(roots, [z], "gramian")
    assert factors is not None
    factors.take(roots, [torch.ones(())] * 3, [])
    lengths = jacobian.norm(dim=1)
    difference = (factors.gramian() - jacobian @ jacobian.T) / torch.outer(lengths, lengths)
    assert difference.abs().max() < 1e-2
    (combined,) = factors.combine(torch.ones(3))
    assert combined.dtype == z.dtype
    torch.testing.assert_close(combined.double().flatten(), jacobian.sum(0), rtol=5e-2, atol=1e-3)


def _elsewhere(z: Tensor) -> list[Tensor]:
    """A loss that reads the representation beside its layer."""
    made = squares(linear(1), linear(1), linear(1))(z)
    return [made[0] + z.square().mean(), *made[1:]]


def _activated(z: Tensor) -> list[Tensor]:
    return squares(nn.Sequential(nn.ReLU(), linear(1)), linear(1), linear(1))(z)


def _shared_layer(z: Tensor) -> list[Tensor]:
    both = linear(2)(z)
    return [both[:, 0].square().mean(), both[:, 1].square().mean(), linear(1)(z).mean()]


def _stacked(z: Tensor) -> list[Tensor]:
    return list(torch.stack(squares(linear(1), linear(1), linear(1))(z)).unbind())


def _coupled(z: Tensor) -> list[Tensor]:
    made = squares(linear(1), linear(1), linear(1))(z)
    return [made[0] + made[1], made[1], made[2]]


def _not_there(z: Tensor) -> list[Tensor]:
    made = squares(linear(1), linear(1))(z)
    return [*made, nn.Parameter(torch.ones(2)).sum()]


def _wide(z: Tensor) -> list[Tensor]:
    return squares(linear(30), linear(30), linear(30))(z)


def _scaled(z: Tensor) -> list[Tensor]:
    made = squares(linear(1), linear(1))(z)
    return [*made, torch.addmm(torch.zeros(1), z, linear(1).weight.T, alpha=2.0).sum()]


def _weights_of_its_own(z: Tensor) -> list[Tensor]:
    """A layer whose weight is made from the representation."""
    made = squares(linear(1), linear(1))(z)
    return [*made, (z @ z.mean(0, keepdim=True).T).square().mean()]


@pytest.mark.parametrize(
    "losses",
    [
        _elsewhere,
        _activated,
        _shared_layer,
        _stacked,
        _coupled,
        _not_there,
        _wide,
        _scaled,
        _weights_of_its_own,
    ],
    ids=lambda f: f.__name__[1:],
)
def test_not_taken_where_they_would_be_wrong_or_slow(losses: Losses) -> None:
    z = representation()
    assert find_factors(losses(z), [z], "gramian") is None


def test_layers_may_be_wide_where_nothing_is_multiplied() -> None:
    z = representation()
    assert find_factors(_wide(z), [z], "columns") is not None


def test_not_taken_where_all_gradients_are_asked_for() -> None:
    z = representation()
    assert find_factors(_two_layers(z), [z], "jacobian") is None


def test_not_taken_of_maps() -> None:
    z = nn.Conv2d(1, 4, 3)(torch.randn(2, 1, 6, 6))
    assert find_factors([nn.Linear(4, 1)(z).mean() for _ in TASKS], [z], "gramian") is None


@pytest.mark.parametrize("gradient", [n for n in mtlcli.gradient_weightings.names() if n != "sum"])
def test_a_step_does_not_depend_on_them(gradient: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every method at the representation, over a few steps."""
    if "representation" not in mtlcli.gradient_weightings.get(gradient).anchors:
        pytest.skip("does not work at the representation")

    def trained(taken: bool) -> list[Tensor]:
        with monkeypatch.context() as patch:
            counted: list[Any] = []

            def find(*arguments: Any) -> Any:
                counted.append(find_factors(*arguments) if taken else None)
                return counted[-1]

            patch.setattr(engine, "find_factors", find)
            torch.manual_seed(0)
            shared, heads = trunk().double(), nn.ModuleList(linear(k + 1) for k in range(3)).double()
            balancer = mtlcli.Balancer(
                TASKS,
                "ew",
                gradient,
                shared=list(shared.parameters()),
                task_parameters={task: list(head.parameters()) for task, head in zip(TASKS, heads, strict=True)},
                wrt="representation",
                smooth=0.3 if mtlcli.gradient_weightings.build(gradient, TASKS).gives_weights() else 0.0,
            )
            optimizer = torch.optim.SGD([*shared.parameters(), *heads.parameters()], lr=0.05)
            for _ in range(4):
                z = shared(torch.randn(BATCH, 5, dtype=torch.float64))
                losses = [(head(z) - k).square().mean() for k, head in enumerate(heads)]
                optimizer.zero_grad()
                balancer.backward(losses, representation=z)
                optimizer.step()
            if mtlcli.gradient_weightings.get(gradient).reads in ("gramian", "columns"):
                assert len(counted) == 4
                assert all((found is not None) == taken for found in counted)
            return [p.detach() for p in (*shared.parameters(), *heads.parameters())]

    for ours, dense in zip(trained(True), trained(False), strict=True):
        torch.testing.assert_close(ours, dense, rtol=1e-6, atol=1e-9)
