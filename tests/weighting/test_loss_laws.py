"""Laws that every loss weighting obeys, whatever it does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from weighting_toys import EPOCHS, STEPS_PER_EPOCH, ScriptedStep, Toy, ToyStep, build_loss, train

from mtlcli import loss_weightings

NUM_STEPS = EPOCHS * STEPS_PER_EPOCH


@pytest.mark.parametrize("num_tasks", [1, 2, 9])
def test_shape_and_finite(loss_name: str, num_tasks: int) -> None:
    toy = Toy(num_tasks)
    outputs = train(build_loss(loss_name, toy.tasks), toy, 0, NUM_STEPS)
    assert all(output.shape == (num_tasks,) for output in outputs)
    assert torch.stack(outputs).isfinite().all()


@pytest.mark.parametrize(
    "scales", [(1e-10, 1.0, 1e10), (1e-10,) * 3, (1e10,) * 3, (0.0, 1.0, 1.0), (0.0, 0.0, 0.0)], ids=str
)
def test_finite_at_every_scale(loss_name: str, scales: tuple[float, ...]) -> None:
    toy = Toy(3, torch.tensor(scales))
    method = build_loss(loss_name, toy.tasks)
    for number in range(NUM_STEPS):
        step = ToyStep(toy, number)
        output = method(step)
        sources = [step.losses, step.sample_losses]
        gradients = torch.autograd.grad(output.sum(), sources, retain_graph=True, allow_unused=True)
        method.after_step(step)
        assert output.isfinite().all()
        assert gradients[1] is not None  # every loss is made of its samples'
        assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)


def test_same_seed_same_output(loss_name: str) -> None:
    first, second = (train(build_loss(loss_name, Toy(3).tasks, seed=7), Toy(3), 0, NUM_STEPS) for _ in range(2))
    assert torch.equal(torch.stack(first), torch.stack(second))


def test_resumed_is_uninterrupted(loss_name: str, tmp_path) -> None:
    toy = Toy(3)
    method = build_loss(loss_name, toy.tasks, seed=3)
    for half in range(1, NUM_STEPS, 3):  # in every epoch, at its ends and within
        toy, method = Toy(3), build_loss(loss_name, toy.tasks, seed=3)
        train(method, toy, 0, half)
        torch.save({"method": method.state_dict(), "params": toy.params}, tmp_path / "state.pt")
        expected = train(method, toy, half, NUM_STEPS)

        state = torch.load(tmp_path / "state.pt", weights_only=True)
        other = Toy(3)
        other.params = {name: value.detach().requires_grad_() for name, value in state["params"].items()}
        resumed = build_loss(loss_name, toy.tasks, seed=99)
        resumed.load_state_dict(state["method"])
        assert torch.equal(torch.stack(expected), torch.stack(train(resumed, other, half, NUM_STEPS)))
        assert resumed.events == method.events


def test_moving_the_module_changes_nothing(loss_name: str) -> None:
    still, moved = build_loss(loss_name, Toy(3).tasks), build_loss(loss_name, Toy(3).tasks)
    toy, other = Toy(3), Toy(3)
    train(still, toy, 0, 3)
    train(moved, other, 0, 3)
    moved.to(torch.float64).to(torch.float32)  # replaces every buffer, as moving to a device does
    assert torch.equal(torch.stack(train(still, toy, 3, NUM_STEPS)), torch.stack(train(moved, other, 3, NUM_STEPS)))


def test_task_order_does_not_matter(loss_name: str) -> None:
    order = torch.tensor([2, 0, 3, 1])
    plain, permuted = Toy(4), Toy(4, order=order)
    method = build_loss(loss_name, plain.tasks)
    state = method.rng.get_state()
    expected = torch.stack(train(method, plain, 0, NUM_STEPS))
    if not torch.equal(state, method.rng.get_state()):
        pytest.skip("draws random numbers")
    found = torch.stack(train(build_loss(loss_name, permuted.tasks), permuted, 0, NUM_STEPS))
    torch.testing.assert_close(found, expected[:, order], rtol=1e-4, atol=1e-5)


def test_each_entry_depends_on_its_own_loss(loss_name: str) -> None:
    toy = Toy(3)
    method = build_loss(loss_name, toy.tasks)
    for number in range(NUM_STEPS):
        step = ToyStep(toy, number)
        output = method(step)
        for k in range(3):
            others = [j for j in range(3) if j != k]
            slope = torch.autograd.grad(output[k], step.sample_losses, retain_graph=True)[0]
            assert (slope[others] == 0).all()
        method.after_step(step)


def test_leaves_the_step_alone(loss_name: str) -> None:
    toy = Toy(3)
    method = build_loss(loss_name, toy.tasks)
    before = {name: value.detach().clone() for name, value in toy.params.items()}
    for number in range(NUM_STEPS):
        step = ToyStep(toy, number)
        losses = step.losses.detach().clone()
        method(step)
        method.after_step(step)
        assert torch.equal(step.losses.detach(), losses)
    assert all(torch.equal(before[name], value) and value.grad is None for name, value in toy.params.items())


def test_a_method_that_takes_gradients_says_so(loss_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Balancer then has to know the parameters."""
    taken: list[Tensor] = []
    gradient = ToyStep.gradient
    monkeypatch.setattr(ToyStep, "gradient", lambda step, loss, at=None: taken.append(loss) or gradient(step, loss, at))
    toy = Toy(3)
    train(build_loss(loss_name, toy.tasks), toy, 0, NUM_STEPS)
    assert bool(taken) == loss_weightings.get(loss_name).takes_gradients


def test_a_method_that_says_so_does_not_mind_the_scale(loss_name: str) -> None:
    """What the model learns stays the same when one loss is multiplied by a thousand."""
    if not loss_weightings.get(loss_name).scale_free:
        pytest.skip("does not say so")
    plain, scaled = Toy(3), Toy(3, scales=torch.tensor([1.0, 1000.0, 1.0]))
    methods = [build_loss(loss_name, toy.tasks) for toy in (plain, scaled)]
    for method, toy in zip(methods, (plain, scaled), strict=True):
        train(method, toy, 0, NUM_STEPS)
    for name, value in plain.params.items():
        torch.testing.assert_close(scaled.params[name], value, rtol=1e-4, atol=1e-5)


def test_takes_float64_losses(loss_name: str) -> None:
    losses = torch.tensor([0.5, 2.0], dtype=torch.float64)
    method = build_loss(loss_name, ("task0", "task1"))
    for epoch in range(EPOCHS):
        step = ScriptedStep(losses, epoch, after=0.9 * losses)
        assert method(step).isfinite().all()
        method.after_step(step)
