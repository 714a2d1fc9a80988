"""What a Balancer is told wrongly, and what it has to find out by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_balancer import TASKS, Net, balancer_for, net, task_losses
from torch import Tensor, nn

from mtlcli.engine.balancer import Balancer
from mtlcli.errors import MtlError


def heads_of(model: Net) -> dict[str, list[nn.Parameter]]:
    return {task: list(head.parameters()) for task, head in model.heads.items()}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"every": 0}, "every: should be a whole number of at least 1; found 0"),
        ({"every": 2.5}, "every: should be a whole number"),
        ({"smooth": 1.5}, "smooth: should be from 0 to below 1; found 1.5"),
        ({"smooth": -1}, "smooth: should be"),
        ({"rows": "quick"}, "rows: should be auto or sequential or batched; found 'quick'"),
        ({"wrt": "weights"}, "wrt: should be params or representation or last_shared; found 'weights'"),
        ({"lr": -1}, "lr should be a number of at least 0; found -1"),
        ({"lr": "0.1"}, "lr should be a number"),
        ({"epochs": -2}, "epochs should be a number of at least 0"),
        ({"seed": "one"}, "seed should be a whole number; found 'one'"),
        ({"options": "gradient"}, "options should be a dict; found str"),
        ({"options": {"gradient": "nash_mtl"}}, r"options\['gradient'\] should be a dict; found str"),
        ({"task_parameters": [1]}, "task_parameters should be a dict; found list"),
    ],
)
def test_settings_that_cannot_be(options: dict[str, Any], says: str) -> None:
    model = net()
    options = {"shared": list(model.encoder.parameters()), **options}
    with pytest.raises(MtlError, match=says):
        Balancer(TASKS, **options)


@pytest.mark.parametrize(
    ("shared", "found"),
    [
        (lambda model: model.encoder, "Sequential"),
        (lambda model: model.encoder.named_parameters(), "tuple"),
        (lambda model: model.encoder[0].weight, "Parameter"),
        (lambda model: 3, "int"),
    ],
)
def test_parameters_are_a_list_of_parameters(shared: Callable[[Net], Any], found: str) -> None:
    model = net()
    with pytest.raises(MtlError, match=f"shared should be a list of parameters, .* found {found}"):
        Balancer(TASKS, gradient="pcgrad", shared=shared(model))
    with pytest.raises(MtlError, match=r"task_parameters\['seg'\] should be a list of parameters"):
        Balancer(TASKS, shared=model.encoder.parameters(), task_parameters={"seg": shared(model)})


def test_shared_parameters_of_two_types_are_refused() -> None:
    model = net()
    model.encoder[0].double()
    with pytest.raises(MtlError, match=r"one dtype; found torch\.float32, torch\.float64"):
        balancer_for(model, gradient="pcgrad")


def test_one_group_has_to_hold_all_shared_parameters() -> None:
    model = net()
    with pytest.raises(MtlError, match="exactly one group"):
        balancer_for(model, gradient="pcgrad", groups=[list(model.encoder[0].parameters())])
    balancer_for(model, gradient="pcgrad", groups=[list(model.encoder.parameters())])


@pytest.mark.parametrize("options", [{"gradient": "nash_mtl"}, {"loss": "hydalearn"}, {"loss": "moml"}])
def test_heads_that_nobody_named_are_noticed(options: dict[str, Any]) -> None:
    """They would stay as they are, or be trained on something else than the method says."""
    model = net()
    balancer = Balancer(TASKS, shared=model.encoder.parameters(), **options)
    with pytest.raises(MtlError, match=r"6 trainable parameters .* in neither .*: \(1, 8\)|6 trainable .*\(1,\)"):
        balancer.backward(*two(model), **closures(model))
    named = Balancer(TASKS, shared=model.encoder.parameters(), model=model, **options)
    with pytest.raises(MtlError, match=r"heads\.seg\.(weight|bias)|heads\.(depth|normal)\."):
        named.backward(*two(model), **closures(model))


def test_heads_need_no_names_where_nothing_asks_for_them() -> None:
    model = net()
    Balancer(TASKS, loss="uw").backward(task_losses(model)[1])
    assert all(p.grad is not None for p in model.parameters())


def test_behind_the_representation_nothing_has_to_be_named() -> None:
    model = net()
    balancer = Balancer(TASKS, gradient="nash_mtl", wrt="representation", task_parameters=heads_of(model))
    z, losses = task_losses(model)
    balancer.backward(losses, representation=z)
    assert all(p.grad is not None for p in model.parameters())


def test_methods_that_take_gradients_need_shared_parameters() -> None:
    model = net()
    balancer = Balancer(TASKS, loss="hydalearn", task_parameters=heads_of(model))
    with pytest.raises(MtlError, match="'hydalearn' takes gradients at the shared parameters: pass shared="):
        balancer.backward(task_losses(model)[1], closure=lambda: task_losses(model)[1])


def test_closures_over_batch_normalisation_need_the_model() -> None:
    model = net(norm=True)
    losses = task_losses(model)[1]
    with pytest.raises(MtlError, match=r"batch normalisation.*pass model="):
        balancer_for(model, loss="famo").backward(losses, closure=lambda: task_losses(model)[1])
    balancer_for(model, loss="famo", model=model).backward(losses, closure=lambda: task_losses(model)[1])
    balancer_for(model, loss="uw").backward(task_losses(model)[1])


def test_the_state_of_another_method_is_refused() -> None:
    model = net()
    state = balancer_for(model, loss="uw").state_dict()
    with pytest.raises(MtlError, match=r"not the state of dwa\+sum on 3 tasks: "):
        balancer_for(model, loss="dwa").load_state_dict(state)
    with pytest.raises(MtlError, match=r"not the state of uw\+sum on 2 tasks: "):
        Balancer(("a", "b"), loss="uw").load_state_dict(state)


def test_losses_measured_again_have_the_masks_of_those_they_are_compared_with() -> None:
    """With dropout, the loss given and that of a closure differ although nothing has moved."""
    model = net(dropout=0.5)
    balancer = balancer_for(model, loss="famo")
    for _ in range(2):
        balancer.backward(task_losses(model)[1], closure=lambda: task_losses(model)[1])
        balancer.after_step()
        torch.testing.assert_close(balancer.loss_weighting.logits.detach(), torch.zeros(3))


def test_samples_are_scored_with_the_same_masks() -> None:
    """Two masks differ by far more than a step of length 0.001 does."""
    model = net(dropout=0.5)
    balancer = balancer_for(model, loss="slgrad")
    found: list[Tensor] = []
    scores = balancer.loss_weighting._scores
    balancer.loss_weighting._scores = lambda step: found.append(scores(step)) or found[-1]  # type: ignore[assignment]
    balancer.backward(rows(model), closure=lambda: rows(model), held_out=lambda: rows(model))
    assert found[0].abs().max() < 50


def test_passes_of_methods_that_take_gradients_are_counted() -> None:
    model = net()
    report = balancer_for(model, loss="hydalearn").backward(*two(model), **closures(model))
    assert report.passes == 1 + len(TASKS)
    assert balancer_for(model, loss="uw").backward(task_losses(model)[1]).passes == 1


def test_events_of_all_groups_survive_a_resume() -> None:
    """Exactly opposed gradients make fairgrad regularise its solve in every group, at every step."""

    def make(model: nn.ModuleList) -> Balancer:
        everything = list(model.parameters())
        return Balancer(("a", "b"), gradient="fairgrad", shared=everything, groups=[[p] for p in everything])

    def step(model: nn.ModuleList, balancer: Balancer) -> None:
        total = torch.stack([layer(torch.ones(2)).sum() for layer in model]).sum()
        balancer.backward({"a": total, "b": 5 - total})

    model = nn.ModuleList([nn.Linear(2, 1, bias=False) for _ in range(4)])
    whole, first, second = make(model), make(model), make(model)
    for _ in range(2):
        step(model, whole)
    step(model, first)
    second.load_state_dict(first.state_dict())
    step(model, second)
    assert sum(whole.events.values()) >= 4
    assert second.events == whole.events


def test_mgda_moves_a_group_that_one_task_does_not_reach() -> None:
    p, q = (nn.Parameter(torch.tensor([1.0, -1.0])) for _ in range(2))
    balancer = Balancer(("a", "b", "c"), gradient="mgda", shared=[p, q], groups=[[p], [q]])
    target = torch.tensor([0.5, 2.0])
    balancer.backward([(p + q - target).square().sum(), (p - q + target).square().sum(), (2 * p).square().sum()])
    assert q.grad is not None
    assert q.grad.norm() > 0


def two(model: Net) -> tuple[dict[str, Tensor]]:
    return (task_losses(model)[1],)


def closures(model: Net) -> dict[str, Callable[[], dict[str, Tensor]]]:
    return {"closure": lambda: task_losses(model)[1], "held_out": lambda: task_losses(model, 5)[1]}


def rows(model: Net) -> Tensor:
    from test_balancer import sample_losses

    return torch.stack(list(sample_losses(model)[1].values()))


def test_a_parameter_frozen_later_is_noticed() -> None:
    model = net()
    balancer = balancer_for(model, gradient="pcgrad")
    balancer.backward(task_losses(model)[1])
    model.encoder[0].weight.requires_grad_(False)
    with pytest.raises(MtlError, match="frozen after the Balancer was made; make a new one"):
        balancer.backward(task_losses(model)[1])
