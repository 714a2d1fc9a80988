"""Where the step takes weights, how often, for which parameters, and from which batches."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from test_step import (
    ALPHA,
    TRUNKS,
    FixedAlpha,
    FixedAlphaHeads,
    RawHeads,
    SumOfRows,
    Weighted,
    assert_equal,
    built,
    by_hand,
    gradients,
    prepared,
    run,
    view_of,
)
from torch import Tensor

import mtlcli
from mtlcli.engine.prepare import Prepared
from mtlcli.engine.ranks import Ranks
from mtlcli.engine.step import Step
from mtlcli.engine.view import ModelStep
from mtlcli.errors import MtlError
from mtlcli.weighting.base import Clock


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


class SquaredLengths(FixedAlphaHeads):
    """Weights that differ from group to group, for heads too."""

    def forward(self, statistic: Tensor, losses: Tensor) -> Tensor:
        self.weights = statistic.diagonal()
        return self.weights


def test_heads_and_the_report_get_the_mean_over_groups() -> None:
    made = prepared()
    shared, private = made.model.shared_parameters(), made.model.task_parameters()
    step = Step(shared, private, built(Weighted), built(SquaredLengths), groups=grouped(made), every=2)
    for _ in range(2):  # computed, then used again
        made.model.zero_grad(set_to_none=True)
        report = step.backward(view_of(made))
        by_group = torch.stack([method.weights for method in step._methods])  # type: ignore[misc]
        assert (by_group.std(0) > 0).all()
        mean = Weighted.factors * by_group.mean(0)
        torch.testing.assert_close(report.weights, mean)
        expected = by_hand(made, mean, mean)
        heads = {id(p) for parameters in private.values() for p in parameters}
        owned = [id(p) in heads for p in made.model.parameters() if p.requires_grad]
        assert any(owned)
        assert_equal(*([g for g, own in zip(of, owned, strict=True) if own] for of in (gradients(made), expected)))


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
        (
            {"groups": "fine", "wrt": "representation"},
            "groups: divide the gradients at parameters",
        ),
        ({"wrt": "last_shared"}, "last shared layer"),
        ({"every": 2, "method": SumOfRows}, "every: should be 1: .* no weights to reuse"),
        ({"smooth": 0.5, "method": SumOfRows}, "smooth: should be 0: .* no weights to reuse or to average"),
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
