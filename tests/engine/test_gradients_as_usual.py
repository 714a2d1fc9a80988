"""What a step leaves in `.grad` is what a backward pass would: its layout, memory and precision, every part once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtlcli.engine.accumulate import accumulate
from mtlcli.engine.balancer import Balancer
from mtlcli.engine.rows import inner_products
from mtlcli.errors import MtlError

TASKS = ("a", "b")


def test_the_layout_of_the_parameter() -> None:
    """A fused optimiser reads both in the order of their memory."""
    torch.manual_seed(0)
    trunk = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    heads = nn.ModuleList([nn.Linear(4, 1) for _ in TASKS])
    balancer = Balancer(TASKS, gradient="pcgrad", shared=trunk.parameters(), task_parameters=owners(heads))
    z = trunk(torch.randn(5, 3, 6, 6)).mean((2, 3))
    balancer.backward([head(z).square().mean() for head in heads])
    for parameter in (*trunk.parameters(), *heads.parameters()):
        assert parameter.grad is not None
        assert parameter.grad.stride() == parameter.stride()


def owners(heads: nn.ModuleList) -> dict[str, list[nn.Parameter]]:
    return {task: list(head.parameters()) for task, head in zip(TASKS, heads, strict=True)}


def test_memory_of_its_own() -> None:
    whole = torch.ones(4)
    given = [whole, whole, whole[:2], torch.ones(1).expand(3), torch.arange(6.0).view(2, 3).T, None]
    parameters = [nn.Parameter(torch.zeros(size)) for size in [(4,), (4,), (2,), (3,), (3, 2), (1,)]]
    accumulate(parameters, given)
    for parameter, gradient in zip(parameters, given, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        if gradient is not None:
            assert torch.equal(parameter.grad, gradient)
            assert parameter.grad.is_contiguous()
    for parameter in parameters[:-1]:
        parameter.grad *= 2  # as clipping does
    assert [float(p.grad.sum()) for p in parameters[:-1]] == [8, 8, 4, 6, 30]


def test_disjoint_parts_of_one_direction_are_not_copied() -> None:
    flat = torch.arange(6.0)
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2, 2))]
    accumulate(parameters, [flat[:2], flat[2:].view(2, 2)])
    assert [p.grad.data_ptr() for p in parameters] == [flat.data_ptr(), flat[2:].data_ptr()]


@pytest.mark.parametrize("gradient", ["upgrad", "mgda", "graddrop"])
def test_parameters_of_one_task_behind_the_representation(gradient: str) -> None:
    """An adapter between the trunk and what is called the representation has its task's gradient, once."""
    torch.manual_seed(0)
    trunk = nn.Linear(3, 4)
    adapters, heads = (nn.ModuleList([nn.Linear(4, 4) for _ in TASKS]) for _ in range(2))
    private = {t: [*a.parameters(), *h.parameters()] for t, a, h in zip(TASKS, adapters, heads, strict=True)}
    inputs = torch.randn(6, 3)

    def forward() -> tuple[list[Tensor], list[Tensor]]:
        cut = [torch.tanh(adapter(trunk(inputs))) for adapter in adapters]
        return cut, [head(z).square().mean() for head, z in zip(heads, cut, strict=True)]

    expected = [torch.autograd.grad(loss, private[t]) for t, loss in zip(TASKS, forward()[1], strict=True)]
    balancer = Balancer(
        TASKS, gradient=gradient, wrt="representation", shared=trunk.parameters(), task_parameters=private
    )
    cut, losses = forward()
    report = balancer.backward(losses, representation=cut)
    for k, task in enumerate(TASKS):
        scale = report.weights[k] if balancer.gradient_weighting.heads == "weighted" else 1
        for parameter, gradient_ in zip(private[task], expected[k], strict=True):
            torch.testing.assert_close(parameter.grad, scale * gradient_)
    assert all(p.grad is not None for p in trunk.parameters())


@pytest.mark.parametrize("wrt", ["params", "last_shared"])
def test_a_call_inside_of_autocast(wrt: Any) -> None:
    torch.manual_seed(0)
    trunk, heads = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)), nn.ModuleList([nn.Linear(8, 1)] * 2)
    heads = nn.ModuleList([nn.Linear(8, 1) for _ in TASKS])
    inputs = torch.randn(32, 8)

    def weights(inside: bool) -> Tensor:
        last = trunk[2].parameters() if wrt == "last_shared" else ()
        own = owners(heads)
        balancer = Balancer(
            TASKS, gradient="imtl_g", wrt=wrt, shared=trunk.parameters(), last_shared=last, task_parameters=own
        )
        with torch.autocast("cpu", torch.bfloat16):
            losses = [(k + 1) * head(trunk(inputs)).float().square().mean() for k, head in enumerate(heads)]
            if inside:
                return balancer.backward(losses).weights
        return balancer.backward(losses).weights

    torch.testing.assert_close(weights(True), weights(False))


def test_the_gramian_of_gradients_of_16_bits() -> None:
    torch.manual_seed(0)
    rows = torch.randn(3, 70_001).bfloat16()
    exact = rows.double() @ rows.double().T
    torch.testing.assert_close(inner_products(rows, rows), exact, rtol=1e-5, atol=1e-2)


def test_heads_that_learn_from_raw_losses_always_do() -> None:
    """MGDA weighs heads as it weighs the trunk; a task that it gives nothing keeps training its head nonetheless."""
    torch.manual_seed(0)
    trunk, heads = nn.Linear(3, 4), nn.ModuleList([nn.Linear(4, 1) for _ in TASKS])
    inputs = torch.randn(8, 3)

    def losses() -> list[Tensor]:
        return [head(trunk(inputs)).square().mean() * 10**k for k, head in enumerate(heads)]

    own = owners(heads)
    balancer = Balancer(TASKS, "hydalearn", "mgda", shared=trunk.parameters(), task_parameters=own)
    expected = [torch.autograd.grad(loss, own[task]) for task, loss in zip(TASKS, losses(), strict=True)]
    balancer.backward(losses(), closure=losses)
    for task, gradients in zip(TASKS, expected, strict=True):
        for parameter, gradient in zip(own[task], gradients, strict=True):
            torch.testing.assert_close(parameter.grad, gradient)


# -- weights that are used again ---------------------------------------------------------------------------------------


def turns(gradient: str, **settings: Any) -> float:
    """The largest loss after training on labels of one task at a time."""
    torch.manual_seed(0)
    trunk, heads = nn.Sequential(nn.Linear(4, 16), nn.Tanh()), nn.ModuleList([nn.Linear(16, 1) for _ in TASKS])
    inputs = torch.randn(64, 4)
    wanted = [inputs[:, :1], inputs[:, 1:2]]
    parameters = [*trunk.parameters(), *heads.parameters()]
    optimizer = torch.optim.Adam(parameters, 1e-2)
    balancer = Balancer(TASKS, gradient=gradient, shared=trunk.parameters(), task_parameters=owners(heads), **settings)
    for step in range(200):
        optimizer.zero_grad()
        z = trunk(inputs)
        losses = [(head(z) - y).square().mean() for head, y in zip(heads, wanted, strict=True)]
        losses[step % 2] = 0 * losses[step % 2]
        balancer.backward(losses)
        optimizer.step()
    z = trunk(inputs)
    return max((head(z) - y).square().mean().item() for head, y in zip(heads, wanted, strict=True))


@pytest.mark.parametrize("gradient", ["mgda", "imtl_g", "cagrad", "config", "aligned_mtl", "emtl", "nash_mtl"])
def test_a_task_that_had_no_label_when_weights_were_computed(gradient: str) -> None:
    assert turns(gradient, every=2) < 0.1
    assert turns(gradient, smooth=0.9) < 0.1


def test_a_task_that_returns_has_the_weights_computed_anew() -> None:
    shared = nn.Parameter(torch.tensor([1.0, 2.0]))
    balancer = Balancer(TASKS, gradient="mgda", shared=[shared], every=10)

    def weights(present: float) -> list[float]:
        a, b = shared.square().unbind()  # gradients 2 and 4, at right angles
        return balancer.backward([a, present * b]).weights.tolist()

    assert weights(0.0) == pytest.approx([1.0, 0.0])
    assert weights(0.0) == pytest.approx([1.0, 0.0])
    assert weights(1.0) == pytest.approx([0.8, 0.2])
    assert weights(0.0) == pytest.approx([0.8, 0.2])


def test_a_loss_of_zero_counts_where_it_has_a_gradient() -> None:
    """Only a task without both, as without a label, has no say."""
    shared = nn.Parameter(torch.tensor([0.0, 1.0]))
    balancer = Balancer(TASKS, gradient="mgda", shared=[shared])
    a, b = shared.unbind()
    report = balancer.backward([a, 2 * b])
    assert report.losses.tolist() == [0.0, 2.0]
    assert report.weights.tolist() == pytest.approx([0.8, 0.2])


def test_smoothing_waits_for_a_task_without_a_label() -> None:
    model = nn.Linear(2, 2)

    def weights(balancer: Balancer, present: bool) -> Tensor:
        a, b = model(torch.ones(1, 2))[0].square().unbind()
        return balancer.backward([a, b if present else 0 * b]).weights

    balancer = Balancer(TASKS, gradient="mgda", shared=model.parameters(), smooth=0.9)
    first = weights(balancer, True)
    weights(balancer, False)
    assert weights(balancer, True)[1] == pytest.approx(float(first[1]), rel=1e-5)
    other = Balancer(TASKS, gradient="mgda", shared=model.parameters(), smooth=0.9)
    weights(other, False)
    kept = Balancer(TASKS, gradient="mgda", shared=model.parameters(), smooth=0.9)
    kept.load_state_dict(other.state_dict())
    assert weights(kept, True)[1] == pytest.approx(float(first[1]), rel=1e-5)


# -- wrong use ---------------------------------------------------------------------------------------------------------


def simple() -> tuple[nn.Linear, Callable[[], list[Tensor]]]:
    model = nn.Linear(2, 2)
    return model, lambda: list(model(torch.ones(1, 2))[0].square().unbind())


def test_a_graph_is_used_once() -> None:
    model, losses = simple()
    balancer = Balancer(TASKS, gradient="upgrad", shared=model.parameters())
    given = losses()
    balancer.backward(given)
    with pytest.raises(MtlError, match="the graph of these losses is used up; compute them anew"):
        balancer.backward(given)


def test_without_gradients() -> None:
    model, losses = simple()
    given = losses()
    with torch.no_grad(), pytest.raises(MtlError, match="gradients are switched off here"):
        Balancer(TASKS, shared=model.parameters()).backward(given)


def test_a_representation_that_is_given_twice() -> None:
    model, losses = simple()
    z = torch.ones(1, 2, requires_grad=True)
    with pytest.raises(MtlError, match="representation should hold each tensor once"):
        Balancer(TASKS, gradient="upgrad", wrt="representation", shared=model.parameters()).backward(losses(), [z, z])


def test_what_is_unfrozen_later_is_found_out() -> None:
    trunk, heads = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4)), nn.ModuleList([nn.Linear(4, 1) for _ in TASKS])
    trunk[0].requires_grad_(False)
    balancer = Balancer(TASKS, gradient="upgrad", shared=trunk[1].parameters(), task_parameters=owners(heads))

    def step() -> None:
        balancer.backward([head(trunk(torch.ones(5, 3))).square().mean() for head in heads])

    for _ in range(4):
        step()
    trunk[0].requires_grad_(True)
    with pytest.raises(MtlError, match="2 trainable parameters of the losses are in neither"):
        step()
