"""What a Balancer is told wrongly, and what it has to find out by itself."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_balancer import TASKS, Net, balancer_for, net, task_losses
from torch import Tensor, nn

from mtlcli import gradient_weightings, loss_weightings
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
        ({"seed": "one"}, "seed should be a whole number from 0 to 2147483647; found 'one'"),
        ({"seed": 2**64}, "seed should be a whole number from 0 to 2147483647"),
        ({"lr": float("inf")}, "lr should be a number of at least 0; found inf"),
        ({"options": {"loss": {"seed": 1}}}, "loss weighting 'ew': option seed: unknown"),
        ({"options": {"loss": {3: 1}}}, "loss weighting 'ew': option 3: unknown"),
        ({"options": "gradient"}, "options should be a dict; found str"),
        ({"options": {"gradient": "nash_mtl"}}, r"options\['gradient'\] should be a dict; found str"),
        ({"task_parameters": [1]}, "task_parameters should be a dict; found list"),
        ({"groups": 3}, "groups should be a list of lists of parameters; found int"),
        ({"model": 3}, "model should be an nn.Module; found int"),
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


@pytest.mark.parametrize(
    ("made", "other"),
    [
        ({"loss": "dwa"}, "dwa+sum on the tasks seg, depth, normal"),
        ({"gradient": "mgda"}, "uw+mgda on the tasks seg, depth, normal"),
        ({"tasks": ("depth", "seg", "normal")}, "uw+sum on the tasks depth, seg, normal"),
        ({"tasks": ("a", "b", "c")}, "uw+sum on the tasks a, b, c"),
    ],
)
def test_the_state_of_other_methods_and_tasks_is_refused(made: dict[str, Any], other: str) -> None:
    model = net()
    state = balancer_for(model, loss="uw").state_dict()
    settings = {"tasks": TASKS, "loss": "uw", "shared": model.encoder.parameters(), **made}
    balancer = Balancer(**settings)
    before = [p.detach().clone() for p in balancer.parameters()]
    with pytest.raises(MtlError) as caught:
        balancer.load_state_dict(state)
    mine = "uw+sum on the tasks seg, depth, normal"
    assert str(caught.value) == f"Balancer: not the state of {other}; it is that of {mine}"
    assert all(map(torch.equal, balancer.parameters(), before))


@pytest.mark.parametrize("state", [{}, None, {"made_for": None}, {"made_for": {"loss": "uw"}}])
def test_a_state_that_is_none_is_refused(state: Any) -> None:
    with pytest.raises(MtlError, match=r"not the state of uw\+sum on the tasks seg, depth, normal: "):
        balancer_for(net(), loss="uw").load_state_dict(state)


def test_options_are_those_of_the_balancer_that_takes_the_state() -> None:
    made, taking = (balancer_for(net(), loss="igb_v1", options={"loss": {"base_epoch": e}}) for e in (1, 3))
    taking.load_state_dict(made.state_dict())
    assert taking.loss_weighting.base.epoch == 3
    made, taking = (balancer_for(net(), loss="famo", options={"loss": {"lr": rate}}) for rate in (0.1, 0.5))
    taking.load_state_dict(made.state_dict())
    assert taking.loss_weighting.adam.lr == 0.5


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


class Donated(torch.autograd.Function):
    """Fails as a compiled part does, where it cannot be shown on every machine."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Tensor:
        raise RuntimeError("This backward function was compiled with non-empty donated buffers which requires ...")


def test_compiled_parts_that_allow_one_pass_are_explained() -> None:
    model = net()
    losses = {task: Donated.apply(loss) for task, loss in task_losses(model)[1].items()}
    with pytest.raises(MtlError, match=r"compiled part .*donated_buffer = False"):
        balancer_for(model, gradient="mgda").backward(losses)


def test_a_method_that_looks_back_asks_for_it() -> None:
    """Without after_step it would stay at equal weights in silence."""
    model = net()
    for loss, told in (("famo", 1), ("si", 0)):
        balancer = balancer_for(model, loss=loss)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(40):
                balancer.backward(**closures(model), losses=two(model)[0])
        assert len(caught) == told
        assert all("call after_step() after optimizer.step()" in str(warning.message) for warning in caught)
    balancer = balancer_for(model, loss="famo")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(40):
            balancer.backward(**closures(model), losses=two(model)[0])
            balancer.after_step()


def test_a_parameter_frozen_later_is_noticed() -> None:
    model = net()
    balancer = balancer_for(model, gradient="pcgrad")
    balancer.backward(task_losses(model)[1])
    model.encoder[0].weight.requires_grad_(False)
    with pytest.raises(MtlError, match="frozen after the Balancer was made; make a new one"):
        balancer.backward(task_losses(model)[1])


def test_a_parameter_unfrozen_later_is_noticed() -> None:
    """It would stay as it is, although it wants to be trained."""
    model = net()
    model.encoder[0].weight.requires_grad_(False)
    balancer = balancer_for(model, gradient="pcgrad", last_shared=model.encoder[0].parameters())
    plain = balancer_for(model)
    balancer.backward(task_losses(model)[1])
    model.encoder[0].weight.requires_grad_(True)
    with pytest.raises(MtlError, match="unfrozen after the Balancer was made; make a new one"):
        balancer.backward(task_losses(model)[1])
    plain.backward(task_losses(model)[1])
    assert model.encoder[0].weight.grad is not None


def test_frozen_parameters_may_stand_in_groups_and_in_the_last_layer() -> None:
    model = net()
    first, last = model.encoder[0], model.encoder[4]
    last.bias.requires_grad_(False)
    first.bias.requires_grad_(False)
    balancer_for(model, gradient="pcgrad", groups=[first.parameters(), last.parameters()])
    balancer = balancer_for(model, gradient="pcgrad", wrt="last_shared", last_shared=last.parameters())
    balancer.backward(task_losses(model)[1])
    assert first.weight.grad is not None


@pytest.mark.parametrize("tasks", ["abc", 3, [], ["a", "a"], [0, 1], {"a", "b"}])
def test_tasks_are_names_in_an_order(tasks: Any) -> None:
    with pytest.raises(MtlError, match="tasks should be a list of different names"):
        Balancer(tasks)


def test_weightings_of_ones_own_are_built_for_the_same_tasks() -> None:
    pcgrad = gradient_weightings.build("pcgrad", tasks=2)
    with pytest.raises(MtlError, match="gradient was built for the tasks task0, task1; found seg, depth, normal"):
        balancer_for(net(), gradient=pcgrad)
    igb = loss_weightings.build("igb_v1", tasks=TASKS[::-1])
    with pytest.raises(MtlError, match="loss was built for the tasks normal, depth, seg; found seg, depth, normal"):
        balancer_for(net(), loss=igb)
    balancer_for(net(), loss=loss_weightings.build("igb_v1", tasks=3))


@pytest.mark.parametrize(
    ("options", "given", "says"),
    [
        ({"loss": "famo"}, {"closure": torch.ones(3)}, "closure should be a function without arguments.* found Tensor"),
        ({"loss": "famo"}, {"closure": lambda: None}, "what closure gives should be a dict by task.* found NoneType"),
        ({"loss": "moml"}, {"held_out": torch.ones(3)}, "held_out should be a function .* found Tensor"),
        ({"gradient": "modo"}, {"extra": 2}, "extra should be a list of functions; found int"),
        ({"gradient": "modo"}, {"extra": [torch.ones(3)] * 2}, r"extra\[0\] should be a function .* found Tensor"),
        ({"loss": "hydalearn"}, {"metrics": 0.5}, "metrics should be a dict; found float"),
        ({"loss": "hydalearn"}, {"metrics": {"seg": 0.5}}, r"metrics\['seg'\] should be a function .* found float"),
        ({"gradient": "mgda", "wrt": "representation"}, {"representation": "z"}, "representation .* found str"),
        ({"gradient": "mgda", "wrt": "representation"}, {"representation": {"seg": 1}}, "representation .* found dict"),
    ],
)
def test_arguments_that_are_something_else(options: dict[str, Any], given: dict[str, Any], says: str) -> None:
    model = net()
    with pytest.raises(MtlError, match=says):
        balancer_for(model, **options).backward(task_losses(model)[1], **given)


@pytest.mark.parametrize(
    ("losses", "found"),
    [
        (None, "NoneType"),
        (3.0, "float"),
        ({"seg": 1.0, "depth": torch.ones(()), "normal": torch.ones(2, 2)}, r"dict of \(\), \(2, 2\), float"),
    ],
)
def test_losses_that_are_none(losses: Any, found: str) -> None:
    with pytest.raises(MtlError, match=rf"in the order seg, depth, normal; found {found}$"):
        balancer_for(net()).backward(losses)


def test_a_rate_that_is_set_to_something_else() -> None:
    model = net()
    balancer = balancer_for(model)
    balancer.lr = [0.1]  # type: ignore[assignment]
    with pytest.raises(MtlError, match=r"lr should be a number of at least 0; found \[0\.1\]"):
        balancer.backward(task_losses(model)[1])


@pytest.mark.parametrize("form", ["dict", "tensor"])
def test_parameters_of_one_task_that_others_reach_are_noticed(form: str) -> None:
    """A head that was given to another task, or a layer of the trunk, would be trained on a part of its gradient."""
    model = net()
    heads = heads_of(model)
    swapped = {"seg": heads["depth"], "depth": heads["seg"], "normal": heads["normal"]}
    encoder = list(model.encoder.parameters())
    stolen = {**heads, "normal": [*heads["normal"], *encoder[2:]]}
    losses = task_losses(model)[1]
    given = losses if form == "dict" else torch.stack(list(losses.values()))
    for shared, owners, owner in ((encoder, swapped, "seg"), (encoder[:2], stolen, "normal")):
        balancer = Balancer(TASKS, gradient="mgda", shared=shared, task_parameters=owners)
        with pytest.raises(MtlError, match=rf"task_parameters\['{owner}'\] holds parameters .* of other tasks reach"):
            balancer.backward(given)


def test_a_loss_that_is_not_finite_is_no_sign_of_wrong_owners() -> None:
    """Cut from one tensor, every loss sends zeros through all heads; times an infinite slope they are NaN."""
    model = net()
    losses = list(task_losses(model)[1].values())
    head = model.heads.seg.weight
    losses[0] = losses[0] + (head - head.detach()).abs().sum().sqrt()
    balancer_for(model, gradient="mgda").backward(torch.stack(losses))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.encoder.parameters())


class Deep(nn.Module):
    """One head reads the first layer, the other the second one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 4)
        self.early = nn.Sequential(nn.Tanh(), nn.Linear(5, 1))
        self.late = nn.Sequential(nn.Tanh(), nn.Linear(4, 1))

    def forward(self, x: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
        low = self.first(x)
        high = self.second(low.tanh())
        return [low, high], {"a": self.early(low).square().mean(), "b": self.late(high).square().mean()}


def test_a_representation_that_is_no_cut_is_noticed() -> None:
    """What passes through both tensors would be counted twice; what passes by would be lost."""
    torch.manual_seed(0)
    model = Deep()
    x = torch.randn(8, 6)
    shared = [*model.first.parameters(), *model.second.parameters()]
    heads = {"a": model.early.parameters(), "b": model.late.parameters()}
    balancer = Balancer(
        ("a", "b"), gradient="mgda", wrt="representation", shared=shared, task_parameters=heads, model=model
    )
    cut, losses = model(x)
    with pytest.raises(MtlError, match="cross the representation once; found one from one of its tensors through anot"):
        balancer.backward(losses, representation=cut)
    with pytest.raises(MtlError, match=r"found one past it from first\.(weight|bias)"):
        balancer.backward(losses, representation=cut[1])
    with pytest.raises(MtlError, match=r"found one past it from second\.(weight|bias)"):
        balancer.backward(losses, representation=cut[0])
    private = {"a": model.early.parameters(), "b": [*model.second.parameters(), *model.late.parameters()]}
    own = Balancer(
        ("a", "b"), gradient="mgda", wrt="representation", shared=model.first.parameters(), task_parameters=private
    )
    own.backward(losses, representation=cut[0])
