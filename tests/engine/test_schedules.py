"""Learning rates step by step, optimiser groups, and the choice of the best epoch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from mtlcli.engine.evaluate import TaskScore
from mtlcli.engine.selection import Selection
from mtlcli.errors import MtlError
from mtlcli.metrics import Score
from mtlcli.options import parse
from mtlcli.registry import optimizers, schedules


def rates(name: str, steps: int = 100, per_epoch: int = 10, **options: Any) -> list[float]:
    cls = schedules.get(name)
    schedule = cls(parse(cls.Options, options, name), steps, per_epoch)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    return [schedule.apply(optimizer, step) for step in range(steps)]


def test_constant() -> None:
    assert set(rates("constant")) == {2.0}


def test_step_halves_every_so_many_epochs() -> None:
    found = rates("step", every_epochs=3, gamma=0.5)
    assert found[29] == 2.0
    assert found[30] == 1.0
    assert found[60] == 0.5


def test_cosine_against_torch() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100, eta_min=0.2)
    expected = []
    for _ in range(100):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert rates("cosine", final=0.1) == pytest.approx(expected)


def test_one_cycle_peaks_at_the_rate_and_ends_low() -> None:
    found = rates("one_cycle", rise=0.3)
    assert found[0] == pytest.approx(0.08)
    assert found[30] == pytest.approx(2.0)
    assert found[-1] == pytest.approx(8e-6)
    assert found.index(max(found)) == 30
    assert found[:31] == sorted(found[:31])
    assert found[30:] == sorted(found[30:], reverse=True)


def test_warm_up_rises_linearly_then_follows_the_schedule() -> None:
    found = rates("constant", warmup_steps=4)
    assert found[:5] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])
    cosine = rates("cosine", warmup_steps=20)
    assert cosine[20] == pytest.approx(2.0)
    assert cosine[60] == pytest.approx(2.0 * 0.5 * (1 + math.cos(math.pi * 0.5)))


def test_plateau_waits_then_decays_to_its_minimum() -> None:
    cls = schedules.get("plateau")
    schedule = cls(parse(cls.Options, {"gamma": 0.5, "patience": 1, "minimum": 0.2}, "plateau"), 100, 10)
    factors = []
    for score in (1.0, 0.9, 0.8, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, None):
        schedule.end_epoch(score)
        factors.append(schedule.factor(0))
    assert factors == [1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.2, 0.2, 0.2, 0.2]


@pytest.mark.parametrize("name", optimizers.names())
def test_learnable_weightings_have_a_group_of_their_own(name: str) -> None:
    cls = optimizers.get(name)
    options = parse(cls.Options, {"lr": 0.1, "weight_decay": 0.3, "weighting_lr": 0.02}, name)
    model, weighting = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(3))
    built = cls(options).build([model], [weighting])
    assert [(g["lr"], g["weight_decay"]) for g in built.param_groups] == [(0.1, 0.3), (0.02, 0.0)]
    model.grad, weighting.grad = torch.ones(2), torch.ones(3)
    built.step()
    assert not torch.equal(model.detach(), torch.ones(2))
    assert not torch.equal(weighting.detach(), torch.ones(3))


def test_nesterov_needs_momentum() -> None:
    with pytest.raises(MtlError, match="momentum"):
        parse(optimizers.get("sgd").Options, {"nesterov": True}, "sgd")


def val(auroc: float | None, mae: float) -> dict[str, TaskScore]:
    return {
        "a": TaskScore(0.5, {"auroc": Score(auroc, "fraction", True, None if auroc else "one class")}),
        "b": TaskScore(2.0 * mae, {"mae": Score(mae, "weeks", False)}),
    }


def test_delta_weighs_metrics_alike_whatever_their_unit() -> None:
    selection = Selection("delta")
    assert selection.score(val(0.8, 10.0), 0) == 0
    assert selection.score(val(0.9, 10.0), 1) == pytest.approx(0.05)
    assert selection.score(val(0.8, 9.0), 2) == pytest.approx(0.05)
    resumed = Selection("delta")
    resumed.load_state_dict(selection.state_dict())
    assert resumed.score(val(0.9, 9.0), 4) == pytest.approx(0.1)


def test_delta_does_not_see_units() -> None:
    """Errors of a regression weigh alike whatever its labels are measured in, whether that unit has a name or not."""
    for unit in ("", "EUR"):
        for scale in (1.0, 1e6):
            selection = Selection("delta")
            for mae, expected in ((4.0, 0.0), (3.0, 0.25), (5.0, -0.25)):
                scores = {"b": TaskScore(1.0, {"mae": Score(scale * mae, unit, False)})}
                assert selection.score(scores, 0) == pytest.approx(expected)


def test_delta_goes_by_the_loss_of_a_task_without_a_defined_metric() -> None:
    selection = Selection("delta")
    for epoch, (loss, expected) in enumerate([(2.0, 0.0), (1.0, 0.5), (math.nan, None)]):
        undefined = {"auroc": Score(None, "fraction", True, "only one class")}
        assert selection.score({"a": TaskScore(loss, undefined)}, epoch) == expected
    assert selection.score({"a": TaskScore(None, undefined)}, 3) is None


@pytest.mark.parametrize("by", ["delta", "loss"])
def test_an_epoch_that_broke_a_task_is_not_chosen(by: str) -> None:
    """The other tasks may be better than ever."""
    selection = Selection(by)
    assert selection.score(val(0.8, 10.0), 0) is not None
    broken = {**val(0.99, 10.0), "b": TaskScore(math.inf, {"mae": Score(None, "weeks", False, "not finite")})}
    assert selection.score(broken, 1) is None
    overflown = {**val(0.9, 10.0), "b": TaskScore(math.inf, {"mae": Score(9.0, "weeks", False)})}
    assert (selection.score(overflown, 2) is None) == (by == "loss")
    assert selection.score(val(0.9, 10.0), 3) is not None


def test_other_ways_to_select() -> None:
    by_loss = Selection("loss")
    assert by_loss.score(val(0.8, 10.0), 0) == -1
    assert by_loss.score(val(0.8, 5.0), 1) == pytest.approx(-0.75)
    assert Selection("b.mae").score(val(0.8, 10.0), 0) == -10
    assert Selection("a.auroc").score(val(0.8, 10.0), 0) == 0.8
    assert Selection("a.auroc").score(val(None, 10.0), 0) is None
    assert Selection("last").score(val(0.8, 10.0), 7) == 7
