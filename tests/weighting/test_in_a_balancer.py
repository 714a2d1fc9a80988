"""What a Balancer shows to loss weightings: full precision, slopes where a probe stands, one mask for all probes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtlcli import Balancer
from mtlcli.options import Options
from mtlcli.weighting.base import Losses, LossWeighting, StepView

TASKS = ("a", "b")


class Probing(LossWeighting):
    """Probes the same point before and after random numbers are drawn, in the step and when it is over."""

    name = "probing"

    def __init__(self) -> None:
        super().__init__(Options(), TASKS, torch.Generator())
        self.samples = torch.empty(0)
        self.losses = torch.empty(0)
        self.probes: list[Losses] = []

    def forward(self, step: StepView) -> Tensor:
        self.samples, self.losses = step.sample_losses.detach(), step.losses.detach()
        for _ in range(2):
            self.probes.append(step.probe())
            torch.rand(3)
        self.probes.append(step.unmoved())
        return step.losses

    def after_step(self, step: StepView) -> None:
        self.probes.append(step.probe())


def test_losses_of_16_bits_become_those_of_32() -> None:
    probing, factor = Probing(), nn.Parameter(torch.ones(()))

    def losses() -> Tensor:
        return (factor * torch.tensor([[1.0, 1.0078125], [2.0, 2.0]])).bfloat16()

    report = Balancer(TASKS, loss=probing, shared=[factor]).backward(losses(), closure=losses)
    shown = [report.losses, probing.losses, *(probe.per_task.detach() for probe in probing.probes)]
    for found in shown:  # this mean has no bfloat16
        assert torch.equal(found, torch.tensor([1.00390625, 2.0]))
    assert probing.samples.dtype == probing.probes[0].per_sample.dtype == torch.float32


def test_probes_have_the_same_masks_whatever_is_drawn_between_them() -> None:
    torch.manual_seed(0)
    probing, model, x = Probing(), nn.Sequential(nn.Dropout(0.5), nn.Linear(64, 2)), torch.randn(8, 64)

    def losses() -> Tensor:
        return model(x).square().T

    balancer = Balancer(TASKS, loss=probing, shared=list(model.parameters()))
    for _ in range(2):  # of which the first has yet to find out that there are masks
        probing.probes.clear()
        balancer.backward(losses(), closure=losses)
        torch.rand(3)  # as the order of the next batch may be
        balancer.after_step()
        first, *others = (probe.per_task.detach() for probe in probing.probes)
        assert len(others) == 3
        assert all(torch.equal(first, other) for other in others)


TARGETS = torch.tensor([[1.0, -0.5, 0.3], [0.2, 0.8, -1.0]], dtype=torch.float64)
HELD_OUT = torch.tensor([[0.4, 0.1, 1.2], [-0.6, 0.9, 0.5]], dtype=torch.float64)
LR = 0.05


def products(a: Tensor, b: Tensor, targets: Tensor) -> Tensor:
    """Losses (K,) whose slopes in either factor are made of the other one, which autograd saves by reference."""
    return (a * b - targets).square().sum(1)


def exact_slopes(a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    """d V_t(theta - LR grad sum_k w_k L_k(theta)) / d w as (K, K), by differentiating through the step."""
    weights = weights.clone().requires_grad_()
    moves = torch.autograd.grad((weights * products(a, b, TARGETS)).sum(), [a, b], create_graph=True)
    there = [value - LR * move for value, move in zip((a, b), moves, strict=True)]
    return torch.stack(
        [torch.autograd.grad(loss, weights, retain_graph=True)[0] for loss in products(*there, HELD_OUT)]
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [("auto_lambda", {"distance": 1e-4}), ("moml", {"inner_lr": LR, "aggregate": "even"})],
    ids=["auto_lambda", "moml"],
)
def test_slopes_at_a_probe_are_made_of_its_own_values(name: str, options: dict[str, Any]) -> None:
    a, b = (nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in ([0.5, -1.0, 2.0], [1.5, 0.7, -0.4]))
    balancer = Balancer(TASKS, loss=name, shared=[a, b], options={"loss": options}, lr=LR)
    method: Any = balancer.loss_weighting.double()
    learned = next(method.parameters())
    method.adam = torch.optim.SGD([learned], lr=1.0)  # which moves by the slope itself
    before = learned.detach().clone()

    shares = before if name == "auto_lambda" else before.softmax(0)
    expected = exact_slopes(a, b, shares).sum(0)
    if name == "moml":  # its weights are a softmax
        expected = shares * (expected - shares @ expected)
    balancer.backward(
        list(products(a, b, TARGETS)),
        closure=lambda: products(a, b, TARGETS),
        held_out=lambda: list(products(a, b, HELD_OUT)),
    )
    torch.testing.assert_close(before - learned.detach(), expected, rtol=1e-5, atol=1e-8)
