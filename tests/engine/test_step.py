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


def grouped(made: Prepared) -> list[list[torch.nn.Parameter]]:
    shared = made.model.shared_parameters()
    return [shared[3:], shared[:1], shared[1:3]]


@pytest.mark.parametrize("trunk", TRUNKS)
def test_weights_found_at_the_last_shared_layer_hold_for_all(trunk: str) -> None:
    made = prepared(trunk)
    last = made.model.trunk.last_shared_parameters()
    assert 0 < len(last) < len(made.model.shared_parameters())
    method = built(FixedAlpha)
    report, _ = run(made, built(Weighted), method, wrt="last_shared", last_shared=last)
    assert_equal(gradients(made), by_hand(made, Weighted.factors * ALPHA, Weighted.factors))
    assert report.passes == 1
    view = view_of(made)
    rows = [torch.autograd.grad(loss, last, retain_graph=True) for loss in Weighted.factors * view.losses]
    jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    torch.testing.assert_close(method.seen[0], jacobian @ jacobian.T)


def test_groups_decide_for_themselves() -> None:
    whole, parts = prepared(), prepared()
    method = mtlcli.gradient_weightings.build("mgda", 3)
    run(parts, built(Weighted), method, groups=grouped(parts))
    for group in grouped(whole):
        whole.model.zero_grad(set_to_none=True)
        view = view_of(whole)
        rows = [torch.autograd.grad(loss, group, retain_graph=True) for loss in Weighted.factors * view.losses]
        jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
        weights = method((jacobian @ jacobian.T).double(), view.losses.detach())
        expected = torch.autograd.grad((weights * Weighted.factors * view.losses).sum(), group)
        names = [n for n, p in whole.model.named_parameters() if any(p is q for q in group)]
        ours = [dict(parts.model.named_parameters())[name].grad for name in names]
        assert_equal(ours, list(expected))  # type: ignore[arg-type]


def test_groups_of_a_jacobian_method_cover_everything() -> None:
    made = prepared()
    run(made, built(Weighted), built(SumOfRows), groups=grouped(made))
    assert_equal(gradients(made), by_hand(made, Weighted.factors, Weighted.factors))


@pytest.mark.parametrize("loss", [Weighted, RawHeads])
def test_weights_of_groups_are_reused(loss: Any) -> None:
    """Every group keeps its own; a pass for each of them, and heads learn as they do at every step."""
    fresh, again = prepared(), prepared()
    shared, private = again.model.shared_parameters(), again.model.task_parameters()
    step = Step(shared, private, built(loss), built(Alternating), groups=grouped(again), every=2)
    step.backward(view_of(again))
    expected = gradients(again)
    again.model.zero_grad(set_to_none=True)
    report = step.backward(view_of(again))
    assert_equal(gradients(again), expected)
    assert report.passes == len(grouped(again)) == 3
    torch.testing.assert_close(report.weights, Weighted.factors * step._reused.mean(0))  # type: ignore[union-attr]
    assert len({id(method) for method in step._methods}) == 3
    run(fresh, built(loss), built(Alternating), groups=grouped(fresh))
    assert_equal(expected, gradients(fresh))


class Alternating(FixedAlpha):
    """Weights that change at every call."""

    calls = 0

    def forward(self, statistic: Tensor, losses: Tensor) -> Tensor:
        self.calls += 1
        return torch.full((3,), float(self.calls), dtype=torch.float64)


def test_smoothing_averages_the_weights_over_steps() -> None:
    made = prepared()
    shared, private = made.model.shared_parameters(), made.model.task_parameters()
    step = Step(shared, private, mtlcli.loss_weightings.build("ew", 3), built(Alternating), smooth=0.75)
    seen = []
    for _ in range(3):
        made.model.zero_grad(set_to_none=True)
        seen.append(float(step.backward(view_of(made)).weights[0]))
    assert seen == pytest.approx([1, 0.75 * 1 + 0.25 * 2, 0.75 * 1.25 + 0.25 * 3])


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"groups": "overlapping"}, "exactly one group"),
        ({"groups": "fine", "wrt": "representation"}, "groups need wrt: params"),
        ({"wrt": "last_shared"}, "last shared layer"),
        ({"every": 2, "method": SumOfRows}, "every above 1 needs weights"),
        ({"smooth": 0.5, "method": SumOfRows}, "smooth needs weights"),
    ],
)
def test_settings_that_make_no_sense_are_refused(how: Any, says: str) -> None:
    made = prepared()
    method = built(how.pop("method", FixedAlpha))
    if "groups" in how:
        groups = grouped(made)
        how = {**how, "groups": groups if how["groups"] == "fine" else [*groups, groups[0]]}
    with pytest.raises(MtlError, match=says):
        Step(made.model.shared_parameters(), made.model.task_parameters(), built(Weighted), method, **how)


class FixedAlphaOfOthers(FixedAlpha):
    """Weights chosen by the test, from two further batches."""

    name = "fixed_of_others"
    extra_batches: ClassVar[Any] = 2


@pytest.mark.parametrize(("wrt", "in_groups"), [("params", False), ("last_shared", False), ("params", True)])
def test_further_batches_give_the_gramian_and_none_of_the_direction(wrt: Any, in_groups: bool) -> None:
    """Rows from the first, columns from the second, both of the weighted losses; the step's own batch is trained on."""
    made = prepared()
    last = made.model.trunk.last_shared_parameters()
    anchor = last if wrt == "last_shared" else made.model.shared_parameters()
    train = made.data.splits["train"]
    train.inputs["numeric"] = train.inputs["numeric"].double()
    train.targets["amount"] = train.targets["amount"].double()
    parts = [train.rows(slice(0, 48)), train.rows(slice(48, 70)), train.rows(slice(70, 96))]
    method = built(FixedAlphaOfOthers)
    groups = grouped(made) if in_groups else [anchor]
    step = Step(
        made.model.shared_parameters(),
        made.model.task_parameters(),
        built(Weighted),
        method,
        wrt=wrt,
        last_shared=last,
        groups=groups if in_groups else (),
    )
    made.model.zero_grad(set_to_none=True)

    def view(number: int) -> ModelStep:
        return ModelStep(
            made.model,
            made.data.tasks,
            parts[number],
            Clock(0, 0, 3, 4),
            0.01,
            Ranks(),
            extra=lambda n: parts[n + 1],
        )

    report = step.backward(view(0))
    found = gradients(made)

    def jacobian(number: int, of: list[Any]) -> Tensor:
        losses = Weighted.factors * view(number).losses
        rows = [torch.autograd.grad(loss, of, retain_graph=True, allow_unused=True) for loss in losses]
        return torch.stack(
            [
                torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(row, of, strict=True)])
                for row in rows
            ]
        )

    for own, group in zip(step._methods, groups, strict=True):
        torch.testing.assert_close(own.seen[0], jacobian(1, group) @ jacobian(2, group).T)  # type: ignore[attr-defined]
    torch.testing.assert_close(method.seen[1], Weighted.factors * view(0).losses.detach())
    assert_equal(found, by_hand(made, Weighted.factors * ALPHA, Weighted.factors))
    assert report.passes == (1 if wrt == "last_shared" else 6 + len(groups))


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
