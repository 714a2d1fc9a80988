"""The step against gradients taken by hand, for both slots, both anchors, and every way of taking rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
import toy
from torch import Tensor

import mtlcli
from mtlcli import recipe
from mtlcli.engine.prepare import Prepared, prepare
from mtlcli.engine.ranks import Ranks
from mtlcli.engine.step import Report, Step
from mtlcli.engine.view import ModelStep
from mtlcli.errors import MtlError
from mtlcli.options import Options
from mtlcli.weighting.base import Clock, GradientWeighting, LossWeighting, StepView

CPU = torch.device("cpu")
ALPHA = torch.tensor([0.5, 2.0, -1.0], dtype=torch.float64)


class FixedAlpha(GradientWeighting):
    """Weights chosen by the test."""

    name = "fixed"
    reads: ClassVar[Any] = "gramian"

    def forward(self, statistic: Tensor, losses: Tensor) -> Tensor:
        self.seen = statistic, losses
        return ALPHA[: len(losses)]


class FixedAlphaHeads(FixedAlpha):
    """The same, for heads too."""

    heads: ClassVar[Any] = "weighted"


class SumOfRows(GradientWeighting):
    """Plain sum by way of the Jacobian."""

    name = "sum_of_rows"
    reads: ClassVar[Any] = "jacobian"

    def forward(self, statistic: Tensor, losses: Tensor) -> Tensor:
        return statistic.sum(0)


class Weighted(LossWeighting):
    """Losses times 3, 1, 0.25."""

    name = "weighted"
    factors: ClassVar[Tensor] = torch.tensor([3.0, 1.0, 0.25], dtype=torch.float64)

    def forward(self, step: StepView) -> Tensor:
        return self.factors * step.losses


class RawHeads(Weighted):
    """The same for the trunk; heads learn from their own losses."""

    heads = "unweighted"


class BySample(LossWeighting):
    """The plain mean over labelled samples, by way of sample losses: must equal equal weights."""

    name = "by_sample"

    def forward(self, step: StepView) -> Tensor:
        count = (step.sample_losses != 0).sum(1)
        return step.sample_losses.sum(1) / count


def built(cls: Callable[..., Any], tasks: int = 3) -> Any:
    return cls(Options(), ("yes", "which", "amount")[:tasks], torch.Generator().manual_seed(0))


def prepared(trunk: str = "hps", **data: Any) -> Prepared:
    made = prepare(recipe.from_values(toy.values(model={"trunk": {"name": trunk}}, data=data), "toy"), CPU)
    made.model.double()
    return made


def view_of(made: Prepared) -> ModelStep:
    batch = made.data.splits["train"].rows(slice(0, 48))
    batch.inputs["numeric"] = batch.inputs["numeric"].double()
    batch.targets["amount"] = batch.targets["amount"].double()
    return ModelStep(made.model, made.data.tasks, batch, Clock(0, 0, 3, 4), 0.01, Ranks())


def run(made: Prepared, loss: LossWeighting, gradient: GradientWeighting, **how: Any) -> tuple[Report, Step]:
    made.model.zero_grad(set_to_none=True)
    step = Step(made.model.shared_parameters(), made.model.task_parameters(), loss, gradient, **how)
    view = view_of(made)
    return step.backward(view, view.cut), step


def by_hand(made: Prepared, trunk: Tensor, heads: Tensor) -> list[Tensor]:
    """Gradients of sum_k trunk_k L_k at shared parameters and of sum_k heads_k L_k at the others."""
    view = view_of(made)
    shared = {id(p) for p in made.model.shared_parameters()}
    wanted = [p for p in made.model.parameters() if p.requires_grad]
    at_trunk = torch.autograd.grad((trunk * view.losses).sum(), wanted, retain_graph=True)
    at_heads = torch.autograd.grad((heads * view.losses).sum(), wanted)
    return [t if id(p) in shared else h for p, t, h in zip(wanted, at_trunk, at_heads, strict=True)]


def gradients(made: Prepared) -> list[Tensor]:
    found = [p.grad for p in made.model.parameters() if p.requires_grad]
    assert all(g is not None for g in found)
    return found  # type: ignore[return-value]


def assert_equal(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


ONES = torch.ones(3, dtype=torch.float64)
TRUNKS = ["hps", "mmoe"]
HOW: list[dict[str, Any]] = [
    {"wrt": "params", "rows": "sequential"},
    {"wrt": "params", "rows": "batched"},
    {"wrt": "representation", "rows": "sequential"},
    {"wrt": "representation", "rows": "batched"},
]


@pytest.mark.parametrize("trunk", TRUNKS)
def test_nothing_read_is_the_plain_sum(trunk: str) -> None:
    made = prepared(trunk)
    report, _ = run(made, mtlcli.loss_weightings.build("ew", 3), mtlcli.gradient_weightings.build("sum", 3))
    assert_equal(gradients(made), by_hand(made, ONES, ONES))
    assert report.passes == 1
    torch.testing.assert_close(report.weights, ONES)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("trunk", TRUNKS)
@pytest.mark.parametrize(
    ("loss", "gradient", "heads"),
    [
        (Weighted, FixedAlpha, Weighted.factors),
        (Weighted, FixedAlphaHeads, Weighted.factors * ALPHA),
        (RawHeads, FixedAlpha, ONES),
    ],
)
def test_weights_reach_trunk_and_heads(trunk: str, how: Any, loss: Any, gradient: Any, heads: Tensor) -> None:
    made = prepared(trunk)
    report, _ = run(made, built(loss), built(gradient), **how)
    assert_equal(gradients(made), by_hand(made, Weighted.factors * ALPHA, heads))
    torch.testing.assert_close(report.weights, Weighted.factors * ALPHA)
    assert report.passes == (3 if how["wrt"] == "params" else 1)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("trunk", TRUNKS)
def test_the_jacobian_holds_every_row(trunk: str, how: Any) -> None:
    made = prepared(trunk)
    run(made, built(Weighted), built(SumOfRows), **how)
    assert_equal(gradients(made), by_hand(made, Weighted.factors, Weighted.factors))


@pytest.mark.parametrize("how", HOW[:2])
def test_the_gramian_is_of_the_losses_that_are_trained_on(how: Any) -> None:
    made = prepared()
    method = built(FixedAlpha)
    run(made, built(Weighted), method, **how)
    view = view_of(made)
    shared = made.model.shared_parameters()
    rows = [torch.autograd.grad(loss, shared, retain_graph=True) for loss in Weighted.factors * view.losses]
    jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    gramian, losses = method.seen
    torch.testing.assert_close(gramian, jacobian @ jacobian.T)
    torch.testing.assert_close(losses, (Weighted.factors * view.losses).detach())


def test_heads_may_learn_from_raw_losses_without_a_gradient_method() -> None:
    made = prepared()
    run(made, built(RawHeads), mtlcli.gradient_weightings.build("sum", 3))
    assert_equal(gradients(made), by_hand(made, Weighted.factors, ONES))


@pytest.mark.parametrize("gradient", [SumOfRows, FixedAlpha])
@pytest.mark.parametrize("how", HOW)
def test_sample_weights_that_make_the_mean_equal_equal_weights(gradient: Any, how: Any) -> None:
    made = prepared()
    report, _ = run(made, built(BySample), built(gradient), **how)
    alpha = ALPHA if gradient is FixedAlpha else ONES
    assert_equal(gradients(made), by_hand(made, alpha, ONES))
    assert report.weights.shape == (3,)


def test_reused_weights_cost_one_pass_and_give_the_same_gradient() -> None:
    made = prepared()
    method = built(FixedAlpha)
    step = Step(made.model.shared_parameters(), made.model.task_parameters(), built(Weighted), method, every=3)
    passes = []
    for _ in range(6):
        made.model.zero_grad(set_to_none=True)
        view = view_of(made)
        passes.append(step.backward(view, view.cut).passes)
        assert_equal(gradients(made), by_hand(made, Weighted.factors * ALPHA, Weighted.factors))
    assert passes == [3, 1, 1, 3, 1, 1]


def test_gradients_add_to_what_is_there() -> None:
    made = prepared()
    loss, gradient = built(Weighted), built(FixedAlpha)
    run(made, loss, gradient)
    once = [g.clone() for g in gradients(made)]
    step = Step(made.model.shared_parameters(), made.model.task_parameters(), loss, gradient)
    view = view_of(made)
    step.backward(view, view.cut)
    assert_equal(gradients(made), [2 * g for g in once])


def test_frozen_and_unused_parameters_are_left_alone() -> None:
    made = prepared()
    first = made.model.shared_parameters()[0]
    first.requires_grad_(False)
    unused = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    made.model.register_parameter("unused", unused)
    run(made, built(Weighted), built(FixedAlpha))
    assert first.grad is None
    assert unused.grad is None
    assert all(p.grad is not None for p in made.model.shared_parameters() if p is not unused)


def test_own_parameters_learn_from_the_plain_sum() -> None:
    made = prepared()
    uw = mtlcli.loss_weightings.build("uw", 3).double()
    run(made, uw, built(FixedAlpha))
    (learned,) = list(uw.parameters())
    (expected,) = torch.autograd.grad(uw(view_of(made)).sum(), [learned])
    torch.testing.assert_close(learned.grad, expected)


class Leaky(LossWeighting):
    """Forgets to detach its weights."""

    name = "leaky"

    def forward(self, step: StepView) -> Tensor:
        return step.losses / step.losses.sum()


class WrongShape(LossWeighting):
    """Returns one number."""

    name = "wrong_shape"

    def forward(self, step: StepView) -> Tensor:
        return step.losses.sum()


@pytest.mark.parametrize(("loss", "says"), [(Leaky, "detach the weights"), (WrongShape, r"found shape \(\)")])
def test_a_broken_loss_weighting_is_named(loss: Any, says: str) -> None:
    with pytest.raises(MtlError, match=says):
        run(prepared(), built(loss), mtlcli.gradient_weightings.build("sum", 3))


def test_a_representation_without_a_gradient_is_refused() -> None:
    made = prepared()
    step = Step(
        made.model.shared_parameters(),
        made.model.task_parameters(),
        built(Weighted),
        built(FixedAlpha),
        "representation",
    )
    view = view_of(made)
    with pytest.raises(MtlError, match="representation"):
        step.backward(view, ())
    with pytest.raises(MtlError, match="task 'yes' does not reach the shared part"):
        step.backward(view_of(made), (torch.ones(3, requires_grad=True) * 2,))


def test_gradient_methods_need_shared_parameters() -> None:
    made = prepared()
    with pytest.raises(MtlError, match="shared"):
        Step([], made.model.task_parameters(), built(Weighted), built(FixedAlpha))


def test_one_task_alone() -> None:
    made = prepared(tasks=["amount"])
    loss = mtlcli.loss_weightings.build("ew", ["amount"])
    run(made, loss, built(FixedAlpha, 1))
    assert_equal(gradients(made), by_hand(made, ALPHA[:1], ONES[:1]))


class Logs(LossWeighting):
    """Logs of the losses."""

    name = "logs"

    def forward(self, step: StepView) -> Tensor:
        return Weighted.factors * step.losses.log()


def test_a_gradient_weighting_gets_losses_times_their_weights() -> None:
    """For logs too, whose own values can be negative: the weight of log L is 1 / L."""
    made = prepared()
    method = built(FixedAlpha)
    run(made, built(Logs), method)
    torch.testing.assert_close(method.seen[1], Weighted.factors)
    run(made, built(Weighted), method)
    torch.testing.assert_close(method.seen[1], Weighted.factors * view_of(made).losses.detach())
    run(made, built(BySample), method)
    torch.testing.assert_close(method.seen[1], view_of(made).losses.detach())


def test_weights_from_the_jacobian_reach_heads_too() -> None:
    made = prepared()

    class Doubled(GradientWeighting):
        name = "doubled"
        reads: ClassVar[Any] = "jacobian"
        returns: ClassVar[Any] = "weights"
        heads: ClassVar[Any] = "weighted"

        def forward(self, statistic: Tensor, losses: Tensor) -> Tensor:
            assert statistic.shape[0] == 3
            return ALPHA

    report, _ = run(made, built(Weighted), built(Doubled))
    assert_equal(gradients(made), by_hand(made, Weighted.factors * ALPHA, Weighted.factors * ALPHA))
    torch.testing.assert_close(report.weights, Weighted.factors * ALPHA)
