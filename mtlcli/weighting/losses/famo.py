"""Fast adaptive multitask optimisation."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from mtlcli.errors import OptionError, did_you_mean
from mtlcli.options import Options as AnyOptions
from mtlcli.registry import loss_weightings
from mtlcli.search import searched
from mtlcli.weighting.base import LossWeighting, StepView
from mtlcli.weighting.losses._values import Kept, finite, softmax

NEAREST = 1e-8  # what a loss is at least above its minimum


@loss_weightings.register("famo")
class FAMO(LossWeighting):
    """Lower all losses at the same relative rate by watching what each step does to them.

    Formula: sum_k (z_k / c) log D_k, z = softmax(logits), D_k = L_k - min_k + 1e-8, c = sum_k z_k / D_k, so that the
        factors on the losses' own gradients sum to 1; after the step, Adam moves the logits along
        J_softmax' (log D_before - log D_after), away from the tasks that improved most (Algorithm 1).
    Reads: the losses, and after the step the losses of the same batch again.
    Cost: one more forward pass per step, and another where the step's own losses cannot be compared with it (bfloat16;
        dropout in a closure); 3 K numbers of state.
    Source: Liu et al., FAMO: Fast Adaptive Multitask Optimization, NeurIPS 2023, arXiv 2306.03792; code
        Cranial-XIX/FAMO.
    Deviations: a loss that is not above its minimum, such as 0 where a batch has no labels of the task, stays out of z
        in that step (counted unless it is 0); the code takes the log of whatever is left, and with D = 1e-8 in c no
        other task would train in that step. The code also shortens the shared gradient to the
        norm 1 by default: that belongs to the optimiser's clipping here.
    """

    class Options(AnyOptions):
        """Options of FAMO."""

        lr: float = Field(
            0.025, gt=0, description="Learning rate of the logits.", json_schema_extra=searched(1e-3, 0.1, log=True)
        )
        weight_decay: float = Field(
            1e-3,
            ge=0,
            description="Pull of the logits towards equal weights.",
            json_schema_extra=searched(1e-5, 0.1, log=True),
        )
        min_losses: dict[str, float] = Field({}, description="Lowest loss within reach, by task; 0 where not named.")

    def __init__(self, options: AnyOptions, tasks: tuple[str, ...], rng: torch.Generator) -> None:
        super().__init__(options, tasks, rng)
        lowest: dict[str, float] = self.options.min_losses
        for name in lowest:
            if name not in tasks:
                where = f"no task '{name}'{did_you_mean(name, tasks)}; tasks: {', '.join(tasks)}"
                raise OptionError("min_losses", where)
        self.min_losses = [lowest.get(task, 0.0) for task in tasks]
        self.adam = Adam(len(tasks), self.options.lr, self.options.weight_decay)
        self.keep("adam", self.adam)
        self.before = self.share = [0.0] * len(tasks)  # gaps before the step; softmax of the logits

    @property
    def logits(self) -> Tensor:
        """(K,)"""
        return torch.tensor(self.adam.values)

    def forward(self, step: StepView) -> Tensor:
        """Logs (K,) of the losses above their minima, each times its weight."""
        losses, now = step.losses.tolist(), step.unmoved()
        gaps = self._gaps(losses)
        if any(gap <= NEAREST for gap, loss in zip(gaps, losses, strict=True) if loss):
            self.count("a loss was not above min_losses: its task sat the step out")
        self.before = gaps if now.roots is step.roots else self._gaps(now.per_task.tolist())
        # 1e-8 in the place of a gap would outweigh all others in the sum.
        known = [value if gap > NEAREST else None for value, gap in zip(self.adam.values, gaps, strict=True)]
        self.share = softmax(known)
        total = max(sum(share / gap for share, gap in zip(self.share, gaps, strict=True)), 1e-30)
        above = step.losses
        if any(self.min_losses):
            above = above - above.new_tensor(self.min_losses)
        if not all(self.share):
            above = above.clamp(min=0)
        return above.new_tensor([share / total for share in self.share]) * (above + NEAREST).log()

    @torch.no_grad()
    def after_step(self, step: StepView) -> None:
        """Measure the losses again and move the logits."""
        after = self._gaps(step.probe().per_task.tolist())
        gains = [math.log(a) - math.log(b) for a, b in zip(self.before, after, strict=True)]
        if finite(gains):
            mean = sum(share * gain for share, gain in zip(self.share, gains, strict=True))
            self.adam.step([share * (gain - mean) for share, gain in zip(self.share, gains, strict=True)])
        else:
            self.count("non-finite losses after the step: the weights stayed")

    def _gaps(self, losses: list[float]) -> list[float]:
        return [max(loss - low, 0.0) + NEAREST for loss, low in zip(losses, self.min_losses, strict=True)]


class Adam(Kept):
    """Adam on K numbers, with weight decay as a part of the gradient, like torch.optim.Adam."""

    from_options = frozenset({"lr", "weight_decay"})

    def __init__(self, num_tasks: int, lr: float, weight_decay: float) -> None:
        super().__init__(num_tasks)
        self.lr, self.weight_decay, self.steps = lr, weight_decay, 0
        self.values, self.mean, self.square = [0.0] * num_tasks, [0.0] * num_tasks, [0.0] * num_tasks

    def step(self, gradient: list[float]) -> None:
        """Move the values against `gradient` (K,)."""
        self.steps += 1
        rate, corrected = self.lr / (1 - 0.9**self.steps), 1 - 0.999**self.steps
        for k, slope in enumerate(gradient):
            slope += self.weight_decay * self.values[k]
            self.mean[k] = 0.9 * self.mean[k] + 0.1 * slope
            self.square[k] = 0.999 * self.square[k] + 0.001 * slope * slope
            self.values[k] -= rate * self.mean[k] / (math.sqrt(self.square[k] / corrected) + 1e-8)
