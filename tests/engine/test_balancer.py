"""The Balancer in plain PyTorch loops: the same gradients as the trainer, its state, and what wrong use is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mtlcli
from mtlcli.engine.balancer import Balancer
from mtlcli.errors import MtlError
from mtlcli.options import Options
from mtlcli.weighting.base import LossWeighting, Params, StepView

TASKS = ("seg", "depth", "normal")
WEIGHS_SAMPLES = {"slgrad"}
NEEDED: dict[str, dict[str, Any]] = {"constant": {"weights": {"seg": 1.0, "depth": 0.5, "normal": 2.0}}}


class Net(nn.Module):
    """A shared encoder and three heads."""

    def __init__(self, norm: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        layers = [nn.Linear(6, 16), nn.BatchNorm1d(16) if norm else nn.Identity(), nn.Tanh(), nn.Dropout(dropout)]
        self.encoder = nn.Sequential(*layers, nn.Linear(16, 8), nn.Tanh())
        self.heads = nn.ModuleDict({task: nn.Linear(8, 1) for task in TASKS})

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        z = self.encoder(x)
        return z, {task: head(z).squeeze(1) for task, head in self.heads.items()}


def net(**options: Any) -> Net:
    torch.manual_seed(1)
    return Net(**options)


def data(step: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    rng = torch.Generator().manual_seed(100 + step)
    x = torch.randn(32, 6, generator=rng)
    return x, {task: x[:, k] + 0.1 * torch.randn(32, generator=rng) for k, task in enumerate(TASKS)}


def sample_losses(model: Net, step: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    x, y = data(step)
    z, predictions = model(x)
    return z, {task: (predictions[task] - y[task]).square() for task in TASKS}


def task_losses(model: Net, step: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    z, by_sample = sample_losses(model, step)
    return z, {task: loss.mean() for task, loss in by_sample.items()}


def balancer_for(net: Net, /, **options: Any) -> Balancer:
    heads = {task: list(head.parameters()) for task, head in net.heads.items()}
    return Balancer(TASKS, shared=list(net.encoder.parameters()), task_parameters=heads, **options)


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def train(model: Net, balancer: Balancer, steps: range, lr: float = 0.05) -> list[Tensor]:
    optimizer = torch.optim.SGD([*model.parameters(), *balancer.parameters()], lr=lr)
    compute = sample_losses if balancer.loss_weighting.name in WEIGHS_SAMPLES else task_losses
    weights = []
    for step in steps:
        optimizer.zero_grad()
        z, losses = compute(model, step)
        representation = z if balancer._step.wrt == "representation" else None
        report = balancer.backward(
            losses,
            representation=representation,
            closure=lambda step=step: compute(model, step)[1],
            held_out=lambda step=step: compute(model, step + 1000)[1],
            extra=[lambda step=step, n=n: compute(model, step + n)[1] for n in (2000, 3000)],
        )
        optimizer.step()
        balancer.after_step()
        weights.append(report.weights)
        if step % 4 == 3:
            balancer.end_epoch()
    return weights


PAIRS = [(loss, "sum", "params") for loss in mtlcli.loss_weightings.names()]
PAIRS += [
    ("ew", gradient, wrt)
    for gradient in mtlcli.gradient_weightings.names()
    for wrt in ("params", "representation")
    if wrt in mtlcli.gradient_weightings.get(gradient).allowed_anchors()
]
PAIRS += [("igb_v1", "nash_mtl", "params"), ("uw", "mgda", "representation"), ("famo", "graddrop", "params")]


@pytest.mark.parametrize(("loss", "gradient", "wrt"), PAIRS)
def test_every_pair_trains_and_resumes(loss: str, gradient: str, wrt: str) -> None:
    options: dict[str, Any] = {
        "loss": loss,
        "gradient": gradient,
        "wrt": wrt,
        "options": {"loss": NEEDED.get(loss, {})},
    }
    whole = net()
    first = balancer_for(whole, **options)
    weights = train(whole, first, range(16))
    assert all(w.shape == (3,) and w.isfinite().all() for w in weights)

    parts = net()
    second = balancer_for(parts, **options)
    train(parts, second, range(7))
    third = balancer_for(parts, **options)
    third.load_state_dict(second.state_dict())
    for mine, theirs in zip(third.parameters(), second.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    train(parts, third, range(7, 16))
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


FORMS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "dict": lambda losses: losses,
    "reordered": lambda losses: dict(reversed(losses.items())),
    "list": lambda losses: list(losses.values()),
    "tensor": lambda losses: torch.stack(list(losses.values())),
}


@pytest.mark.parametrize("gradient", ["sum", "mgda"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_losses_gives_the_same_gradient(form: str, gradient: str) -> None:
    expected, model = net(), net()
    balancer_for(expected, gradient=gradient).backward(task_losses(expected)[1])
    report = balancer_for(model, gradient=gradient).backward(FORMS[form](task_losses(model)[1]))
    for a, b in zip(gradients(model), gradients(expected), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(report.losses, torch.stack(list(task_losses(model)[1].values())).detach())


def test_sample_losses_count_as_their_means() -> None:
    expected, model = net(), net()
    balancer_for(expected).backward(task_losses(expected)[1])
    balancer_for(model).backward(torch.stack(list(sample_losses(model)[1].values())))
    for a, b in zip(gradients(model), gradients(expected), strict=True):
        torch.testing.assert_close(a, b)


def test_equal_weights_are_a_plain_backward() -> None:
    expected, model = net(norm=True), net(norm=True)
    sum(task_losses(expected)[1].values()).backward()  # type: ignore[union-attr]
    report = balancer_for(model).backward(task_losses(model)[1])
    for a, b in zip(gradients(model), gradients(expected), strict=True):
        torch.testing.assert_close(a, b)
    assert report.weights.tolist() == [1, 1, 1]


def test_gradients_accumulate_over_calls() -> None:
    model = net()
    balancer = balancer_for(model, gradient="mgda")
    balancer.backward(task_losses(model)[1])
    once = gradients(model)
    balancer.backward(task_losses(model)[1])
    for a, b in zip(gradients(model), once, strict=True):
        torch.testing.assert_close(a, 2 * b)


class Curious(LossWeighting):
    """Asks everything that may be asked of a step."""

    name = "curious"

    def forward(self, step: StepView) -> Tensor:
        direction = step.gradient(step.losses[0])
        moved = step.move(direction, by=-0.3)
        self.there = step.probe(moved)
        self.slope = step.gradient(self.there.per_task[1], at=moved)
        self.again = [step.probe().per_task.detach() for _ in range(2)]
        self.moved: Params = moved
        return step.losses


def test_probes_see_other_parameters_and_put_everything_back() -> None:
    model = net(norm=True, dropout=0.4)
    curious = Curious(Options(), TASKS, torch.Generator())
    balancer = balancer_for(model, loss=curious, model=model)
    losses = task_losses(model)[1]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    randomness = torch.get_rng_state()
    balancer.backward(losses, closure=lambda: task_losses(model)[1])
    assert torch.equal(torch.get_rng_state(), randomness)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(*curious.again)
    assert not torch.equal(curious.there.per_task, curious.again[0])


def test_gradients_at_a_probe_are_those_of_the_moved_model() -> None:
    model = net()
    curious = Curious(Options(), TASKS, torch.Generator())
    balancer = balancer_for(model, loss=curious)
    balancer.backward(task_losses(model)[1], closure=lambda: task_losses(model)[1])
    moved = net()
    everything = [*moved.encoder.parameters(), *(p for head in moved.heads.values() for p in head.parameters())]
    with torch.no_grad():
        for parameter, value in zip(everything, curious.moved.values(), strict=True):
            parameter.copy_(value)
    expected = torch.autograd.grad(task_losses(moved)[1]["depth"], everything, allow_unused=True)
    for a, b in zip(curious.slope.values(), expected, strict=True):
        torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b)


def test_frozen_parameters_and_tasks_that_share_part_of_the_trunk() -> None:
    model = net()
    model.encoder[0].weight.requires_grad_(False)
    balancer = balancer_for(model, gradient="nash_mtl")
    x, y = data()
    hidden = model.encoder[0](x)
    z = model.encoder(x)
    losses = {task: (model.heads[task](z).squeeze(1) - y[task]).square().mean() for task in TASKS}
    losses["seg"] = (hidden.mean(1) - y["seg"]).square().mean()  # reaches the first layer alone
    report = balancer.backward(losses)
    assert model.encoder[0].weight.grad is None
    assert model.encoder[0].bias.grad is not None
    assert model.heads["seg"].weight.grad is None
    assert report.weights.isfinite().all()


def test_bfloat16_autocast() -> None:
    model = net()
    balancer = balancer_for(model, loss="igb_v1", gradient="mgda")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = task_losses(model)[1]
    report = balancer.backward(losses)
    assert report.losses.dtype == torch.float32
    assert all(g.dtype == torch.float32 for g in gradients(model))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own tracing asks for it
def test_compiled_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._functorch.config

    monkeypatch.setattr(torch._functorch.config, "donated_buffer", False)
    expected, model = net(), net()
    balancer_for(expected, gradient="nash_mtl").backward(task_losses(expected)[1])
    model.encoder.compile(backend="aot_eager")
    balancer_for(model, gradient="nash_mtl").backward(task_losses(model)[1])
    for a, b in zip(gradients(model), gradients(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def fresh(**options: Any) -> Callable[[], Any]:
    return lambda: balancer_for(net(), **options)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (fresh(loss="fmo"), "did you mean 'famo'"),
        (fresh(gradient="nash"), "no gradient weighting 'nash'.*nash_mtl"),
        (fresh(options={"gradent": {}}), "did you mean 'gradient'"),
        (fresh(gradient="nash_mtl", options={"gradient": {"max_nrm": 1}}), "max_norm"),
        (fresh(loss=nn.Linear(1, 1)), "a name or a LossWeighting; found Linear"),
        (fresh(gradient="graddrop", every=2), "every"),
        (lambda: Balancer("seg"), "list of different names"),
        (lambda: Balancer(TASKS, gradient="mgda"), "shared parameters"),
        (lambda: Balancer(TASKS, task_parameters={"sge": []}), "did you mean 'seg'"),
    ],
)
def test_wrong_construction_is_explained(wrong: Callable[[], Any], says: str) -> None:
    with pytest.raises(MtlError, match=says):
        wrong()


def losses_of(model: Net) -> dict[str, Tensor]:
    return task_losses(model)[1]


@pytest.mark.parametrize(
    ("options", "change", "says"),
    [
        ({}, lambda losses: {"seg": losses["seg"]}, "missing: depth, normal"),
        ({}, lambda losses: {**losses, "edge": losses["seg"]}, "unknown: edge"),
        ({}, lambda losses: torch.stack(list(losses.values()))[:2], r"shape \(3,\).*found \(2,\)"),
        ({}, lambda losses: sum(losses.values()), "dict by task"),
        ({}, lambda losses: {**losses, "depth": losses["depth"].detach()}, "loss of 'depth' has no gradient"),
        ({"gradient": "mgda", "wrt": "representation"}, lambda losses: losses, "representation=z"),
    ],
)
def test_wrong_losses_are_explained(options: Any, change: Callable[[Any], Any], says: str) -> None:
    model = net()
    with pytest.raises(MtlError, match=says):
        balancer_for(model, **options).backward(change(losses_of(model)))


def test_a_method_that_measures_again_asks_for_a_closure() -> None:
    model = net()
    balancer = balancer_for(model, loss="famo")
    with pytest.raises(MtlError, match="closure=f"):
        balancer.backward(losses_of(model))


def test_a_method_of_several_batches_says_what_it_needs() -> None:
    model = net()
    balancer = balancer_for(model, gradient="modo")
    with pytest.raises(MtlError, match=r"'modo' needs the losses of 2 further training batches: pass extra=\[f, g\]"):
        balancer.backward(task_losses(model, 0)[1], extra=[lambda: task_losses(model, 1)[1]])


def test_held_out_rows_are_asked_for_where_an_option_needs_them() -> None:
    model = net()
    balancer = balancer_for(model, loss="hydalearn", options={"loss": {"batch": "held_out"}})
    with pytest.raises(MtlError, match="'hydalearn' needs held-out data: pass held_out="):
        balancer.backward(task_losses(model, 0)[1], closure=lambda: task_losses(model, 0)[1])


@pytest.mark.parametrize(
    ("loss", "gradient", "options", "words"),
    [
        ("auto_lambda", "mgda", {"gradient": {"normalise": "loss+"}}, "'mgda' cannot go with 'auto_lambda'"),
        ("hydalearn", "emtl", {"loss": {"negative": "keep"}}, "'emtl' cannot go with 'hydalearn'"),
        ("slgrad", "sdmgrad", {}, "'sdmgrad' cannot go with 'slgrad': its further batches have no sample weights"),
    ],
)
def test_pairs_that_make_no_sense_are_refused(loss: str, gradient: str, options: Any, words: str) -> None:
    with pytest.raises(MtlError, match=words):
        balancer_for(net(), loss=loss, gradient=gradient, options=options)


@pytest.mark.parametrize("gradient", ["moco", "db_mtl", "excess_mtl", "modo"])
def test_methods_that_bring_batches_together_refuse_the_representation(gradient: str) -> None:
    with pytest.raises(MtlError, match=f"wrt: should be .* '{gradient}' .*; found representation"):
        balancer_for(net(), gradient=gradient, wrt="representation")
