"""A small model, a scripted stream of losses and ways to drive weightings: what the tests of this folder stand on."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from mtlcli import gradient_weightings, loss_weightings
from mtlcli.weighting.base import Clock, GradientWeighting, Losses, LossWeighting, Params

STEPS_PER_EPOCH = 4
EPOCHS = 4
# Options that have no default, by method: given the task names, what the laws build the method with.
REQUIRED: dict[str, Any] = {
    "constant": lambda tasks: {"weights": {task: 0.5 + int(task.removeprefix("task")) for task in tasks}},
    # Left out, the first task is the main one, and the laws change the order of the tasks.
    "hydalearn": lambda tasks: {"main": "task0"},
    "slgrad": lambda tasks: {"main": "task0"},
}


def task_names(num_tasks: int, order: Tensor | None = None) -> tuple[str, ...]:
    return tuple(f"task{k}" for k in (range(num_tasks) if order is None else order.tolist()))


def build_loss(name: str, tasks: tuple[str, ...], seed: int = 0) -> LossWeighting:
    options = REQUIRED.get(name, lambda _: {})(tasks)
    return loss_weightings.build(name, tasks=tasks, seed=seed, **options)


def build_gradient(name: str, num_tasks: int, seed: int = 0) -> GradientWeighting:
    tasks = task_names(num_tasks)
    options = REQUIRED.get(name, lambda _: {})(tasks)
    return gradient_weightings.build(name, tasks=tasks, seed=seed, **options)


class Toy:
    """K regressions on one shared vector. `order` permutes the tasks, `scales` multiplies their losses."""

    def __init__(self, num_tasks: int, scales: Tensor | None = None, order: Tensor | None = None) -> None:
        rng = torch.Generator().manual_seed(1)
        self.order = torch.arange(num_tasks) if order is None else order
        self.scales = torch.ones(num_tasks) if scales is None else scales
        self.tasks = task_names(num_tasks, self.order)
        self.params: Params = {
            "shared": torch.randn(5, generator=rng).requires_grad_(),
            "heads": torch.randn(num_tasks, 5, generator=rng).requires_grad_(),
        }

    def sample_losses(self, params: Params, seed: int) -> Tensor:
        rng = torch.Generator().manual_seed(seed)
        inputs = torch.randn(8, 5, generator=rng)
        targets = inputs[:, :1].T * 0.5 + 0.1 * torch.randn(len(self.order), 8, generator=rng)
        outputs = (params["heads"] * params["shared"]) @ inputs.T
        losses = self.scales[:, None] * (0.1 + (outputs - targets).square())
        return losses[self.order]


class ToyStep:
    """The step `number` of a toy's training, as a loss weighting sees it."""

    def __init__(self, toy: Toy, number: int, lr: float = 0.01) -> None:
        self.toy, self.lr, self.tasks = toy, lr, toy.tasks
        self.clock = Clock(number, number // STEPS_PER_EPOCH, STEPS_PER_EPOCH, EPOCHS)
        self.sample_losses = toy.sample_losses(toy.params, number)
        self.losses = self.sample_losses.mean(1)

    @cached_property
    def roots(self) -> tuple[Tensor, ...]:
        return self.losses.unbind()

    @property
    def params(self) -> Params:
        return self.toy.params

    @property
    def shared(self) -> Params:
        return {name: value for name, value in self.params.items() if name == "shared"}

    def gradient(self, loss: Tensor, at: Params | None = None) -> Params:
        params = self.params if at is None else at
        found = torch.autograd.grad(loss, list(params.values()), retain_graph=True, allow_unused=True)
        return {k: torch.zeros_like(p) if g is None else g for (k, p), g in zip(params.items(), found, strict=True)}

    def move(self, direction: Params, by: float) -> Params:
        zero = torch.zeros(())
        moved = {k: p.detach() + by * direction.get(k, zero) for k, p in self.params.items()}
        return {k: p.requires_grad_() for k, p in moved.items()}

    def probe(self, at: Params | None = None, batch: Literal["train", "held_out"] = "train") -> Losses:
        seed = self.clock.step + (1000 if batch == "held_out" else 0)
        per_sample = self.toy.sample_losses(self.params if at is None else at, seed)
        return Losses(per_sample.mean(1).unbind(), per_sample.unbind())

    def unmoved(self) -> Losses:
        samples = getattr(self, "sample_losses", self.losses[:, None])
        return Losses(self.roots, samples.unbind())

    def mean_over_ranks(self, value: Tensor) -> Tensor:
        return value

    def score(self, task: str, at: Params | None = None, batch: Literal["train", "held_out"] = "train") -> float | None:
        return -float(self.probe(at, batch).per_task[self.tasks.index(task)])


class ScriptedStep(ToyStep):
    """A step with the losses that a test wants, and after it the losses `after`."""

    def __init__(self, losses: Tensor, epoch: int = 0, after: Tensor | None = None) -> None:
        self.toy, self.lr, self.tasks = None, 0.01, task_names(len(losses))  # type: ignore[assignment]
        self.clock = Clock(0, epoch, STEPS_PER_EPOCH, EPOCHS)
        self.sample_losses = losses.clone()[:, None].requires_grad_()
        self.losses = self.sample_losses.mean(1)
        self.after = after

    @property
    def params(self) -> Params:
        return {"shared": torch.zeros(2, dtype=self.losses.dtype, requires_grad=True)}  # which no loss reaches

    def gradient(self, loss: Tensor, at: Params | None = None) -> Params:
        params = self.params if at is None else at
        return {name: torch.zeros_like(value) for name, value in params.items()}

    def probe(self, at: Params | None = None, batch: Literal["train", "held_out"] = "train") -> Losses:
        assert self.after is not None
        return Losses(self.after.unbind(), self.after[:, None].unbind())


def train(method: LossWeighting, toy: Toy, start: int, stop: int, lr: float = 0.01) -> list[Tensor]:
    """Steps `start` to `stop` of plain SGD on what `method` returns; its outputs."""
    outputs = []
    for number in range(start, stop):
        step = ToyStep(toy, number, lr)
        output = method(step)
        learnable = [*toy.params.values(), *method.parameters()]
        for parameter in learnable:
            parameter.grad = None
        output.sum().backward()
        with torch.no_grad():
            for parameter in learnable:
                if parameter.grad is not None:
                    parameter -= lr * parameter.grad
        method.after_step(step)
        outputs.append(output.detach())
    return outputs


def direction(method: GradientWeighting, jacobian: Tensor, losses: Tensor | None = None) -> Tensor:
    """The update (P,) that `method` makes of `jacobian`, fed as its `reads` asks."""
    losses = torch.ones(len(jacobian), dtype=jacobian.dtype) if losses is None else losses
    if method.reads == "nothing":
        return jacobian.sum(0)
    if method.reads != "gramian":
        found = method(jacobian, losses)
        return found.to(jacobian) @ jacobian if method.gives_weights() else found
    wide = jacobian.double()
    return (method(wide @ wide.T, losses) @ wide).to(jacobian)


def jacobian_of(num_tasks: int, size: int, seed: int = 0) -> Tensor:
    return torch.randn(num_tasks, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Quadratics:
    """K losses `signs_k |x - targets_k|^2 / 2` at x = 0, all of it shared; `held_out` are other targets."""

    def __init__(self, targets: Tensor, held_out: Tensor | None = None, signs: Tensor | None = None) -> None:
        self.targets = targets.clone()
        self.held_out = targets.clone() if held_out is None else held_out.clone()
        self.signs = torch.ones_like(targets[:, 0]) if signs is None else signs
        self.tasks = task_names(len(targets))
        self.params: Params = {"shared": torch.zeros_like(targets[0]).requires_grad_()}

    def losses(self, params: Params, targets: Tensor) -> Tensor:
        return self.signs * (params["shared"] - targets).square().sum(1) / 2


class QuadraticStep(ToyStep):
    """A step on quadratics, whose losses are exact."""

    def __init__(self, quadratics: Quadratics, lr: float = 0.01) -> None:
        self.toy, self.lr, self.tasks = quadratics, lr, quadratics.tasks  # type: ignore[assignment]
        self.clock = Clock(0, 0, STEPS_PER_EPOCH, EPOCHS)
        self.losses = quadratics.losses(quadratics.params, quadratics.targets)

    def probe(self, at: Params | None = None, batch: Literal["train", "held_out"] = "train") -> Losses:
        quadratics: Any = self.toy
        targets = quadratics.targets if batch == "train" else quadratics.held_out
        losses = quadratics.losses(self.params if at is None else at, targets)
        return Losses(losses.unbind(), losses[:, None].unbind())
