"""SLGrad against per-sample gradients, on the published example and in a Balancer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from weighting_toys import ScriptedStep, Toy, ToyStep

from mtlcli import MtlError, loss_weightings
from mtlcli.engine.balancer import Balancer
from mtlcli.errors import OptionError
from mtlcli.weighting.base import Losses, Params


def build(tasks: int = 3, **options: Any) -> Any:
    return loss_weightings.build("slgrad", tasks=tasks, **options).double()


def double_toy(num_tasks: int = 3) -> Toy:
    toy = Toy(num_tasks)
    toy.params = {name: value.detach().double().requires_grad_() for name, value in toy.params.items()}
    plain = toy.sample_losses

    def sample_losses(params: Params, seed: int) -> Tensor:
        torch.set_default_dtype(torch.float64)
        try:
            return plain(params, seed)
        finally:
            torch.set_default_dtype(torch.float32)

    toy.sample_losses = sample_losses  # type: ignore[method-assign]
    toy.scales = toy.scales.double()
    return toy


def weights(method: Any, step: Any) -> Tensor:
    """The weight (K, B) that each sample's own gradient received."""
    return torch.autograd.grad(method(step).sum(), step.sample_losses)[0]


def by_sample(losses: Tensor, shared: Tensor) -> Tensor:
    """Gradients (K, B, P) of single samples."""
    rows = [torch.autograd.grad(loss, shared, retain_graph=True)[0] for loss in losses.flatten()]
    return torch.stack(rows).view(*losses.shape, -1)


@pytest.mark.parametrize("main", [0, 2])
def test_scores_are_inner_products_with_the_held_out_gradient(main: int) -> None:
    step = ToyStep(double_toy(), 5)
    v = torch.autograd.grad(step.probe(batch="held_out").per_task[main], step.params["shared"])[0]
    scores = (by_sample(step.sample_losses, step.params["shared"]) @ v).clamp(min=0)
    assert (scores == 0).any()
    method = build(main=f"task{main}", distance=1e-6)
    torch.testing.assert_close(weights(method, step), scores / scores.sum(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        weights(build(main=f"task{main}"), step), scores / scores.sum(), rtol=0.1, atol=1e-3
    )  # curvature at the default distance


def test_look_ahead_measures_elsewhere_and_comes_back() -> None:
    toy = double_toy()
    step = ToyStep(toy, 5, lr=0.05)
    method = build(distance=1e-6, look_ahead=True)
    before = {name: value.detach().clone() for name, value in toy.params.items()}
    for _ in range(2):  # the second look-ahead goes by the first one's weights
        shares = method.shares.clone()
        found = weights(method, step)
        gradients = torch.autograd.grad((shares * step.losses).sum(), list(toy.params.values()), retain_graph=True)
        there = {
            name: (value - 0.05 * g).detach().requires_grad_()
            for (name, value), g in zip(toy.params.items(), gradients, strict=True)
        }
        v = torch.autograd.grad(step.probe(there, "held_out").per_task[0], there["shared"])[0]
        scores = (by_sample(step.probe(there).per_sample, there["shared"]) @ v).clamp(min=0)
        torch.testing.assert_close(found, scores / scores.sum(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(method.shares, found.sum(1))
    assert all(torch.equal(before[name], value) for name, value in toy.params.items())


class Linear(ScriptedStep):
    """Losses that are linear in two shared parameters, with the gradients `rows` (K, B, 2)."""

    def __init__(self, rows: Tensor, held_out: Tensor, offsets: Tensor | None = None) -> None:
        self.rows, self.held_out = rows, held_out
        self.at: Params = {"shared": torch.zeros(2, dtype=torch.float64, requires_grad=True)}
        self.offsets = torch.zeros_like(rows[..., 0]) if offsets is None else offsets
        super().__init__(torch.ones(len(rows), dtype=torch.float64))
        self.sample_losses = self.of(self.at)
        self.losses = self.sample_losses.mean(1)

    def of(self, params: Params) -> Tensor:
        return self.rows @ params["shared"] + self.offsets

    @property
    def params(self) -> Params:
        return self.at

    gradient = ToyStep.gradient

    def probe(self, at: Params | None = None, batch: str = "train") -> Losses:
        at = self.at if at is None else at
        if batch == "held_out":
            per_task = torch.stack([self.held_out @ at["shared"]] * len(self.rows))
            return Losses(per_task.unbind(), per_task[:, None].unbind())
        return Losses(self.of(at).mean(1).unbind(), self.of(at).unbind())


EXAMPLE = torch.tensor([[[1.0, 1.0], [-1.0, 0.0]], [[0.5, 2.0], [0.0, 3.0]]], dtype=torch.float64)
ALONG = torch.tensor([1.0, 0.0], dtype=torch.float64)


def test_the_published_example() -> None:
    # scores [[1, -1], [0.5, 0]]
    expected = torch.tensor([[2 / 3, 0], [1 / 3, 0]], dtype=torch.float64)
    step = Linear(EXAMPLE, ALONG)
    torch.testing.assert_close(weights(build(2), step), expected)
    torch.testing.assert_close(weights(build(2, normalise="sum_k"), step), 2 * expected)


def test_no_sample_serves_the_main_task() -> None:
    for step in (Linear(-EXAMPLE.abs(), ALONG), Linear(EXAMPLE, 0 * ALONG)):
        method = build(2)
        assert not weights(method, step).any()
        assert sum(method.events.values()) == 1


def test_a_broken_or_unlabelled_sample_has_no_weight() -> None:
    offsets = torch.tensor([[0, 0], [torch.nan, 0]], dtype=torch.float64)
    rows = EXAMPLE.clone()
    rows[0, 1] = 0  # a missing label: the loss is 0 wherever the parameters are
    method = build(2)
    step = Linear(rows, ALONG, offsets)
    output = method(step)
    assert output.isfinite().all()
    found = torch.autograd.grad(output.sum(), step.sample_losses)[0]
    torch.testing.assert_close(found, torch.tensor([[1.0, 0], [0, 0]], dtype=torch.float64))
    (event,) = method.events
    assert event.startswith("a sample's loss is not finite")
    (shared,) = torch.autograd.grad(method(step).sum(), step.params["shared"])
    torch.testing.assert_close(shared, rows[0, 0])  # the broken loss's own derivative is finite


def test_a_label_that_is_nan_is_for_the_loss_to_mask() -> None:
    """No weight can keep the derivative of a loss from being NaN; with the label masked its sample leaves no trace."""

    class Squares(Linear):
        labels = torch.tensor([[1.0, 2.0], [torch.nan, 1.0]], dtype=torch.float64)
        masked = False

        def of(self, params: Params) -> Tensor:
            known = self.labels.isfinite() | (not self.masked)
            return (super().of(params) - torch.where(known, self.labels, 0)).square() * known

    class Masked(Squares):
        masked = True

    for step, finite in ((Squares(EXAMPLE, -ALONG), False), (Masked(EXAMPLE, -ALONG), True)):
        method = build(2)
        output = method(step)
        assert output.isfinite().all()
        (weight,) = torch.autograd.grad(output.sum(), step.sample_losses, retain_graph=True)
        assert weight[1, 0] == 0
        assert weight.any()
        (shared,) = torch.autograd.grad(output.sum(), step.params["shared"])
        assert bool(shared.isfinite().all()) == finite
        assert sum(method.events.values()) == (not finite)


def test_the_main_task_goes_by_name() -> None:
    with pytest.raises(OptionError, match="did you mean 'task1'"):
        build(main="tsk1")


@pytest.mark.parametrize("heads", ["weighted", "unweighted"])
def test_in_a_balancer(heads: str) -> None:
    torch.manual_seed(0)
    shared = nn.Linear(3, 4).double()
    own = {task: nn.Linear(4, 1).double() for task in ("a", "b")}
    x, y = torch.randn(10, 3, dtype=torch.float64), torch.randn(2, 10, dtype=torch.float64)

    def losses(rows: slice) -> Tensor:
        z = shared(x[rows])
        return (torch.stack([head(z)[:, 0] for head in own.values()]) - y[:, rows]).square()

    balancer = Balancer(
        ("a", "b"),
        loss="slgrad",
        shared=list(shared.parameters()),
        task_parameters={task: list(head.parameters()) for task, head in own.items()},
        options={"loss": {"heads": heads}},
    )
    balancer.loss_weighting.double()
    train, held_out = slice(0, 6), slice(6, 10)
    with pytest.raises(MtlError, match="held_out"):
        balancer.backward(losses(train), closure=lambda: losses(train))
    report = balancer.backward(losses(train), closure=lambda: losses(train), held_out=lambda: losses(held_out))
    assert report.weights.sum().item() == pytest.approx(1)

    raw = losses(train).mean(1)
    for k, head in enumerate(own.values()):
        (expected,) = torch.autograd.grad(raw[k], head.weight, retain_graph=True)
        assert head.weight.grad is not None
        assert torch.allclose(head.weight.grad, expected) == (heads == "unweighted")

    with pytest.raises(MtlError, match=r"per-sample losses"):
        balancer.backward(losses(train).mean(1), closure=lambda: losses(train), held_out=lambda: losses(held_out))
