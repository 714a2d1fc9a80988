"""HydaLearn on quadratics with closed forms, its edge cases, and its heads in a real step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from weighting_toys import Quadratics, QuadraticStep

from mtlcli import MtlError, loss_weightings
from mtlcli.engine.balancer import Balancer
from mtlcli.errors import OptionError
from mtlcli.weighting.losses.hydalearn import HydaLearn

TARGETS = torch.tensor([[1.0, 0.0], [0.8, 0.4], [-1.0, 0.3]], dtype=torch.float64)


def build(tasks: int | tuple[str, ...] = 3, **options: Any) -> Any:
    return loss_weightings.build("hydalearn", tasks=tasks, **options).double()


def weights(method: Any, step: QuadraticStep) -> Tensor:
    return torch.autograd.grad(method(step).sum(), step.losses)[0]


def test_simulated_gains_in_closed_form() -> None:
    # L_i = |x - t_i|^2 / 2 at x = 0: g_i = -t_i, so that a step of size e leaves main at |e t_i - t_0|^2 / 2
    step = QuadraticStep(Quadratics(TARGETS))
    gains = (TARGETS[0].square().sum() - (0.2 * TARGETS - TARGETS[0]).square().sum(1)) / 2
    assert gains[2] < 0
    expected = gains.clamp(min=0) / gains.clamp(min=0).sum()
    torch.testing.assert_close(weights(build(step=0.2), step), expected)
    torch.testing.assert_close(weights(build(step=0.2, normalise="sum_k"), step), 3 * expected)
    torch.testing.assert_close(weights(build(step=0.2, negative="keep"), step), gains / gains.abs().sum())
    torch.testing.assert_close(
        weights(build(step=0.2, normalise="anchored"), step), gains.clamp(min=0) / gains.clamp(min=0)[0]
    )


def test_linearised_is_the_limit_of_small_steps() -> None:
    step = QuadraticStep(Quadratics(TARGETS))
    products = (TARGETS @ TARGETS[0]).clamp(min=0)
    linearised = weights(build(mode="linearised"), step)
    torch.testing.assert_close(linearised, products / products.sum())
    torch.testing.assert_close(weights(build(step=1e-7), step), linearised, rtol=1e-5, atol=1e-6)


def test_gains_are_measured_on_held_out_rows() -> None:
    other = torch.tensor([[-1.0, 0.0], [1.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    quadratics = Quadratics(TARGETS, held_out=other)
    found = weights(build(mode="linearised", batch="held_out", negative="keep"), QuadraticStep(quadratics))
    assert found.tolist() == [1.0, 0.0, 0.0]  # main's own gradient does not help it there
    quadratics.held_out[0] = torch.tensor([0.1, 1.0])
    products = (TARGETS @ quadratics.held_out[0]).clamp(min=0)
    for options in ({"mode": "linearised"}, {"step": 1e-7}):
        found = weights(build(batch="held_out", **options), QuadraticStep(quadratics))
        torch.testing.assert_close(found, products / products.sum(), rtol=1e-5, atol=1e-6)


def test_a_negative_gain_that_is_kept_is_anchored_and_capped_as_well() -> None:
    options = {"mode": "linearised", "normalise": "anchored", "negative": "keep"}
    step = QuadraticStep(Quadratics(TARGETS))  # products with the main task's gradient: 1, 0.8, -1
    for max_ratio, others in ((10.0, [0.8, -1.0]), (0.5, [0.5, -0.5])):
        method = build(max_ratio=max_ratio, **options)
        assert weights(method, step).tolist() == pytest.approx([1.0, *others])
        assert method.events["a negative weight was used"] == 1


@pytest.mark.parametrize("mode", ["simulated", "linearised"])
def test_a_duplicate_of_the_main_task_gets_its_weight(mode: str) -> None:
    found = weights(build(mode=mode), QuadraticStep(Quadratics(TARGETS[[0, 0, 2]])))
    torch.testing.assert_close(found, torch.tensor([0.5, 0.5, 0], dtype=torch.float64))


@pytest.mark.parametrize("mode", ["simulated", "linearised"])
def test_the_opposite_of_the_main_task_gets_none(mode: str) -> None:
    quadratics = Quadratics(TARGETS[[0, 0]], signs=torch.tensor([1.0, -1.0], dtype=torch.float64))
    assert weights(build(2, mode=mode), QuadraticStep(quadratics)).tolist() == [1, 0]
    if mode == "linearised":
        method = build(2, mode=mode, negative="keep")
        assert weights(method, QuadraticStep(quadratics)).tolist() == [0.5, -0.5]
        assert method.events["a negative weight was used"] == 1


def test_a_badly_scaled_task_overshoots() -> None:
    quadratics = Quadratics(TARGETS[:2], signs=torch.tensor([1.0, 1000.0], dtype=torch.float64))
    assert weights(build(2), QuadraticStep(quadratics)).tolist() == [1, 0]
    assert weights(build(2, mode="linearised"), QuadraticStep(quadratics))[1] > 0.99


def test_the_main_task_goes_by_name() -> None:
    step = QuadraticStep(Quadratics(TARGETS))
    products = TARGETS @ TARGETS[1]
    found = weights(build(mode="linearised", main="task1", negative="keep"), step)
    torch.testing.assert_close(found, products / products.abs().sum())
    with pytest.raises(OptionError, match="did you mean 'task1'"):
        build(main="tsk1")


def test_a_metric_may_be_the_gain() -> None:
    step = QuadraticStep(Quadratics(TARGETS))
    by_loss = weights(build(step=0.2), step)
    torch.testing.assert_close(weights(build(step=0.2, gain="metric"), step), by_loss)
    with pytest.raises(OptionError, match="mode: simulated"):
        build(gain="metric", mode="linearised")


class Undefined(QuadraticStep):
    def score(self, task: str, at: Any = None, batch: Any = "train") -> float | None:
        return None


def test_edge_cases_of_the_gains() -> None:
    method: HydaLearn = build()
    nan = torch.nan

    def of(*gains: float) -> list[float]:
        return method._weights_of(torch.tensor(gains, dtype=torch.float64)).tolist()

    assert of(1.0, nan, 1.0) == [0.5, 0, 0.5]
    assert of(-1.0, 5.0, 1.0) == [1, 0, 0]
    assert of(-1.0, -5.0, -1.0) == [1, 0, 0]
    assert of(1e-300, 1e-300, 0.0) == [0.5, 0.5, 0]
    assert sum(method.events.values()) == 2
    step = Undefined(Quadratics(TARGETS))
    method = build(gain="metric")
    torch.testing.assert_close(weights(method, step), torch.full((3,), 1 / 3, dtype=torch.float64))
    assert sum(method.events.values()) == 1
    anchored = build(normalise="anchored", max_ratio=3)
    assert anchored._weights_of(torch.tensor([1.0, 50.0, 0.1])).tolist() == pytest.approx([1, 3, 0.1])
    capped = build(normalise="anchored", max_ratio=0.5)
    assert capped._weights_of(torch.tensor([1.0, 50.0, 0.1])).tolist() == pytest.approx([1, 0.5, 0.1])


def test_one_task_is_left_alone() -> None:
    assert weights(build(1), QuadraticStep(Quadratics(TARGETS[:1]))).tolist() == [1]


@pytest.mark.parametrize("heads", ["unweighted", "weighted"])
def test_only_shared_parameters_move_and_the_model_stays_as_it_was(heads: str) -> None:
    torch.manual_seed(3)
    encoder = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3))
    outputs = nn.ModuleDict({"a": nn.Linear(6, 1), "b": nn.Linear(6, 1)})
    model = nn.ModuleList([encoder, outputs])
    x = torch.randn(16, 4)

    def losses() -> dict[str, Tensor]:
        z = encoder(x)
        # the second task pulls against the first
        return {"a": (outputs["a"](z) - 1).square().mean(), "b": (outputs["a"](z) + 1).square().mean() + 0 * z.sum()}

    balancer = Balancer(
        ("a", "b"),
        loss="hydalearn",
        shared=[*encoder.parameters(), *outputs["a"].parameters()],
        task_parameters={"b": list(outputs["b"].parameters())},
        options={"loss": {"main": "a", "heads": heads}},
        model=model,
    )
    assert balancer.loss_weighting.heads == heads
    now = losses()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    report = balancer.backward(now, closure=losses)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert report.weights[0] > report.weights[1]


def test_a_head_of_weight_zero_still_trains() -> None:
    shared = nn.Parameter(torch.tensor([0.1, 0.2]))
    head = nn.Parameter(torch.tensor([1.0, -1.0]))
    gradients = {}
    for heads in ("unweighted", "weighted"):
        shared.grad = head.grad = None
        balancer = Balancer(
            ("a", "b"),
            loss="hydalearn",
            shared=[shared],
            task_parameters={"b": [head]},
            options={"loss": {"heads": heads}},
        )

        def losses() -> list[Tensor]:
            return [(shared - 1).square().sum(), (shared + 5 + 0 * head).square().sum() + head.square().sum()]

        report = balancer.backward(losses(), closure=losses)
        assert report.weights.tolist() == [1, 0]
        torch.testing.assert_close(shared.grad, 2 * (shared.detach() - 1))
        gradients[heads] = head.grad
    torch.testing.assert_close(gradients["unweighted"], torch.tensor([2.0, -2.0]))
    assert gradients["weighted"] is None or not gradients["weighted"].any()


def test_held_out_rows_are_asked_for() -> None:
    shared = nn.Parameter(torch.ones(2))
    balancer = Balancer(("a", "b"), loss="hydalearn", shared=[shared], options={"loss": {"batch": "held_out"}})
    losses = [shared.square().sum(), shared.sum()]
    with pytest.raises(MtlError, match="held_out"):
        balancer.backward(losses, closure=lambda: losses)
