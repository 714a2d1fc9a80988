"""What a Balancer may be given: closures that draw or round, samples in any number, parameters of any kind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_balancer import TASKS, Net, balancer_for, net, sample_losses, task_losses
from test_balancer_use import closures, two
from torch import Tensor, nn

from mtlcli import gradient_weightings
from mtlcli.engine.balancer import Balancer
from mtlcli.errors import MtlError


def rows(model: Net) -> Tensor:
    return torch.stack(list(sample_losses(model)[1].values()))


def test_losses_measured_again_have_the_masks_of_those_they_are_compared_with() -> None:
    """With dropout, the loss given and that of a closure differ although nothing has moved."""
    model = net(dropout=0.5)
    balancer = balancer_for(model, loss="famo")
    for _ in range(2):
        balancer.backward(task_losses(model)[1], closure=lambda: task_losses(model)[1])
        balancer.after_step()
        torch.testing.assert_close(balancer.loss_weighting.logits, torch.zeros(3))


class Counting(nn.Module):
    """Makes a buffer in its first forward pass, and counts in it."""

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "calls"):
            self.register_buffer("calls", torch.zeros(()))
        self.calls += 1
        return x


@pytest.mark.parametrize("named", [True, False])
def test_buffers_that_the_first_forward_pass_made_are_put_back(named: bool) -> None:
    model = net()
    model.encoder.append(Counting())
    balancer = balancer_for(model, loss="famo", **({"model": model} if named else {}))
    for _ in range(2):
        balancer.backward(task_losses(model)[1], closure=lambda: task_losses(model)[1])
        balancer.after_step()
    assert model.encoder[-1].calls == (2 if named else 5)


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


@pytest.mark.parametrize("gradient", ["sum", "pcgrad"])
def test_tasks_may_have_rows_of_their_own_number(gradient: str) -> None:
    """One mean, and two tasks of which some rows have no label."""
    expected, model = net(), net()
    losses = {task: rows[: 8 * k + 8] for k, (task, rows) in enumerate(sample_losses(expected)[1].items())}
    balancer_for(expected, gradient=gradient).backward({task: rows.mean() for task, rows in losses.items()})
    losses = {task: rows[: 8 * k + 8] for k, (task, rows) in enumerate(sample_losses(model)[1].items())}
    balancer_for(model, gradient=gradient).backward({**losses, "seg": losses["seg"].mean()})
    for a, b in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_samples_are_weighed_where_tasks_have_rows_of_their_own_number() -> None:
    model = net()

    def some() -> dict[str, Tensor]:
        return {task: rows[: 8 * k + 8] for k, (task, rows) in enumerate(sample_losses(model)[1].items())}

    report = balancer_for(model, loss="slgrad").backward(some(), closure=some, held_out=some)
    assert report.weights.sum().item() == pytest.approx(1)


def test_pieces_of_one_tensor_are_a_cut() -> None:
    left, right, trunk = nn.Linear(3, 1), nn.Linear(3, 1), nn.Linear(4, 6)
    heads = {"a": left.parameters(), "b": right.parameters()}
    balancer = Balancer(
        ("a", "b"), gradient="imtl_g", wrt="representation", shared=trunk.parameters(), task_parameters=heads
    )
    a, b = trunk(torch.randn(8, 4)).chunk(2, 1)
    balancer.backward({"a": left(a).square().mean(), "b": right(b).square().mean()}, representation=[a, b])
    assert trunk.weight.grad is not None


@pytest.mark.parametrize("loss", ["igb_v1", "famo", "stch"])
def test_a_broken_loss_in_the_first_step_is_not_the_methods_fault(loss: str) -> None:
    model = net()
    balancer = balancer_for(model, loss=loss)
    losses = task_losses(model)[1]
    losses["depth"] = losses["depth"] * torch.nan
    balancer.backward(losses, closure=lambda: task_losses(model)[1])


def test_what_a_method_returns_outlives_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method may hand back a row of the Jacobian itself, which is overwritten in the next step."""
    method = gradient_weightings.get("graddrop")
    monkeypatch.setattr(method, "forward", lambda self, jacobian, losses: jacobian[0])
    monkeypatch.setattr(method, "reads", "jacobian")
    model = net()
    balancer = balancer_for(model, gradient="graddrop")
    found = []
    for _ in range(2):
        balancer.backward(task_losses(model)[1])
        found.append([p.grad.clone() for p in model.encoder.parameters() if p.grad is not None])
    for once, twice in zip(*found, strict=True):
        torch.testing.assert_close(twice, 2 * once)


def test_a_metric_may_be_undefined() -> None:
    model = net()
    options = {"loss": {"gain": "metric"}}
    balancer = balancer_for(model, loss="hydalearn", options=options)
    balancer.backward(task_losses(model)[1], metrics={"seg": lambda: None})
    assert sum(balancer.events.values()) == 1


@pytest.mark.parametrize(
    "options", [{"gradient": "mgda"}, {"gradient": "db_mtl"}, {"loss": "moml"}, {"loss": "slgrad"}]
)
def test_gradients_of_sparse_embeddings(options: dict[str, Any]) -> None:
    """They come as sparse tensors, and count like dense ones."""
    found = []
    for sparse in (False, True):
        torch.manual_seed(0)
        table = nn.Embedding(10, 4, sparse=sparse)
        heads = nn.ModuleDict({task: nn.Linear(4, 1) for task in TASKS})

        def losses(start: int = 0, table: nn.Module = table, heads: nn.ModuleDict = heads) -> dict[str, Tensor]:
            rows = table(torch.arange(start, start + 4))
            return {task: (head(rows) - 1).square().squeeze(1) for task, head in heads.items()}

        owners = {task: head.parameters() for task, head in heads.items()}
        balancer = Balancer(TASKS, shared=table.parameters(), task_parameters=owners, **options)
        balancer.backward(losses(), closure=losses, held_out=lambda losses=losses: losses(2))
        assert table.weight.grad is not None
        found.append(table.weight.grad.to_dense())
    torch.testing.assert_close(*found)


def test_sparse_embeddings_have_gradients_of_one_kind() -> None:
    """An optimiser takes either kind, not both in turn."""
    table = nn.Embedding(10, 4, sparse=True)
    heads = nn.ModuleDict({task: nn.Linear(4, 1) for task in TASKS})
    owners = {task: head.parameters() for task, head in heads.items()}
    balancer = Balancer(TASKS, gradient="mgda", every=2, shared=table.parameters(), task_parameters=owners)
    optimizer = torch.optim.Adam(table.parameters())
    for _ in range(4):
        optimizer.zero_grad()
        rows = table(torch.arange(4))
        balancer.backward({task: (head(rows) - 1).square().mean() for task, head in heads.items()})
        assert table.weight.grad is not None
        assert not table.weight.grad.is_sparse
        optimizer.step()


def test_complex_parameters_are_refused_where_gradients_are_compared() -> None:
    spectrum = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    with pytest.raises(MtlError, match=r"hold complex parameters as real ones.*view_as_complex"):
        Balancer(("a", "b"), gradient="mgda", shared=[spectrum])
    losses = {"a": (spectrum - 2).abs().sum(), "b": (spectrum + 2j).abs().sum()}
    Balancer(("a", "b"), loss="uw", shared=[spectrum]).backward(losses)
    assert spectrum.grad is not None
    Balancer(("a", "b"), gradient="mgda", shared=[spectrum], wrt="representation")


@pytest.mark.parametrize("around", ["forward", "everything"])
@pytest.mark.parametrize("loss", ["famo", "hydalearn", "slgrad", "auto_lambda", "moml"])
def test_autocast_does_not_disturb_what_is_measured_again(loss: str, around: str) -> None:
    """Autocast keeps 16-bit copies of the parameters: steps that are only tried would go unseen, and small differences
    would drown in rounding."""
    compute = sample_losses if loss == "slgrad" else task_losses
    found = []
    for where in ("nowhere", around):
        model = net()
        balancer = balancer_for(model, loss=loss)
        for step in range(3):
            model.zero_grad()
            whole = torch.autocast("cpu", torch.bfloat16, enabled=where == "everything")
            with whole:
                with torch.autocast("cpu", torch.bfloat16, enabled=where != "nowhere"):
                    losses = compute(model, step)[1]
                closure = {"closure": lambda step=step, model=model: compute(model, step)[1]}
                report = balancer.backward(losses, held_out=lambda model=model: compute(model, 9)[1], **closure)
                with torch.no_grad():
                    for p in model.parameters():
                        p -= 0.05 * p.grad if p.grad is not None else 0
                balancer.after_step()
        found.append(report.weights)
    torch.testing.assert_close(*found, rtol=0.05, atol=0.01)


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("gradient", ["mgda", "imtl_g", "nash_mtl", "gradnorm", "excess_mtl"])
def test_heads_are_weighted_over_the_groups_that_their_task_reaches(gradient: str, every: int) -> None:
    """However the layers that a task does not pass are cut into groups."""
    torch.manual_seed(0)
    front, back = nn.Linear(4, 4), nn.Linear(4, 4)
    heads = nn.ModuleDict({task: nn.Linear(4, 1) for task in "abc"})
    inputs, targets = torch.randn(32, 4), torch.randn(32)

    def losses() -> dict[str, Tensor]:
        early = torch.tanh(front(inputs))
        late = torch.tanh(back(early))
        read = {"a": late, "b": late, "c": early}
        scales = {"a": 1.0, "b": -1.0, "c": 2.0}
        return {t: (head(read[t])[:, 0] - scales[t] * targets).square().mean() for t, head in heads.items()}

    raw = torch.autograd.grad(losses()["c"], heads["c"].weight)[0]
    found = []
    cuts = [[list(back.parameters())], [[back.weight], [back.bias]]]
    for cut in cuts:
        balancer = Balancer(
            tuple("abc"),
            gradient=gradient,
            shared=[*front.parameters(), *back.parameters()],
            task_parameters={task: head.parameters() for task, head in heads.items()},
            groups=[list(front.parameters()), *cut],
            every=every,
        )
        for _ in range(every):
            for module in (front, back, heads):
                module.zero_grad()
            report = balancer.backward(losses())
        torch.testing.assert_close(heads["c"].weight.grad, report.weights[2] * raw)
        found.append(report.weights[2])
    torch.testing.assert_close(*found)
