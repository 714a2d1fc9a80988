"""Loss discrepancy control."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from mtlcli.options import Options as AnyOptions
from mtlcli.registry import loss_weightings
from mtlcli.search import searched, searched_among
from mtlcli.weighting.base import LossWeighting, StepView, Trait
from mtlcli.weighting.losses._agent import Nets
from mtlcli.weighting.losses._values import SMALLEST, Kept, count_unusable, softmax

TIE = 1e-6  # two losses whose gap is smaller than this part of the largest are even; at the first step, all of them are


@loss_weightings.register("ldc_mtl")
class LDCMTL(LossWeighting):
    """Learn the weights together with the model, with a price on differences between the weighted losses.

    Formula: sum_k w_k l_k / sum(w) + penalty * sum_k |w_k l_k - w_k+1 l_k+1|, with the sum of w detached. l = losses
        relative to the first step's: L_k min(L(0)) / L_k(0) (ratio), log(L_k / L_k(0)) (log), or L (none).
        w = sigmoid(learnable numbers), or of a small net of the logs of the relative losses (network).
    Reads: the losses; the learnable numbers are parameters and join the run's optimiser. A task whose weighted
        loss is below its neighbours' has a negative factor where the price outweighs its share, as with many tasks.
    Cost: K parameters, or a net of 64 x 64 hidden units; besides, K numbers of state.
    Source: Xiao, Dong, Zou & Ji, LDC-MTL: Balancing Multi-Task Learning through Scalable Loss Discrepancy Control,
        arXiv 2502.08585; code OptMN-Lab/LDC-MTL: one optimiser for model and weights, a bilevel problem in the paper.
        CelebA there: sigmoid of numbers that start at 1, none, 0.01. NYUv2: ratio, 0.05. QM9: log, 0.05.
        The defaults have the relative losses and the price of NYUv2 with the plain numbers of CelebA: none of its runs.
    Deviations: the sum of w is detached, as in the code's CelebA and QM9 runs; its NYUv2 run lets gradients
        through. The code's dense runs compute weights from the model's features, which a loss weighting does not see;
        `router: network` reads the losses in their place (inference). Neighbours are tasks next to each other in the
        order of their names, so that the order of a list of tasks does not matter. The first step's losses stay the
        base; in the code's QM9 run they are taken anew each epoch. A task whose loss is below 1e-12, as without a label
        in the batch, stays out of both sums in that step, and gets its base later if it has none; to the network it
        looks as at its base.
    """

    class Options(AnyOptions):
        """Options of loss discrepancy control."""

        penalty: float = Field(
            0.05,
            ge=0,
            description="Price of differences between neighbouring weighted losses.",
            json_schema_extra=searched(1e-3, 1.0, log=True),
        )
        normalise: Literal["ratio", "log", "none"] = Field(
            "ratio",
            description="What is made of the losses first.",
            json_schema_extra=searched_among("ratio", "log", "none"),
        )
        router: Literal["weights", "network"] = Field("weights", description="What the weights come from.")

    @classmethod
    def traits_with(cls, options: Any) -> frozenset[Trait]:
        """Negative weights where differences have a price."""
        return frozenset({"negative_weights"}) if options.penalty > 0 else frozenset()

    def __init__(self, options: AnyOptions, tasks: tuple[str, ...], rng: torch.Generator) -> None:
        super().__init__(options, tasks, rng)
        self.first = First(len(tasks))
        self.keep("first", self.first)
        self.by_name = sorted(range(len(tasks)), key=tasks.__getitem__)
        self.numbers = nn.Parameter(torch.ones(len(tasks))) if self.options.router == "weights" else None
        self.network = Nets(1, len(tasks), 64, len(tasks), rng) if self.options.router == "network" else None

    def forward(self, step: StepView) -> Tensor:
        """Shares (K,) of the objective: each task's loss times its factor, and the weights' part in equal parts."""
        losses = step.losses.tolist()
        count_unusable(losses, self)
        bases = self.first.bases(losses)
        order = [k for k in self.by_name if not losses[k] <= SMALLEST]
        if not order:
            return step.losses
        by_log = self.options.normalise == "log"
        units = [min(bases) / base for base in bases] if self.options.normalise == "ratio" else [1.0] * len(bases)
        to_base = [math.log(losses[k] / base) if k in order else 0.0 for k, base in enumerate(bases)]
        relative = to_base if by_log else [loss * unit for loss, unit in zip(losses, units, strict=True)]
        numbers = self._numbers(to_base, step.losses)
        factors, slopes = self._objective(numbers.tolist(), relative, order)

        own = numbers @ numbers.new_tensor(slopes)
        scales = step.losses.new_tensor([factor * unit for factor, unit in zip(factors, units, strict=True)])
        terms = step.losses
        if by_log:
            terms = terms.clamp(min=SMALLEST).log() - terms.new_tensor(bases).log()
        return scales * terms + (own - own.detach()).to(scales) / len(losses)

    def _numbers(self, to_base: Sequence[float], losses: Tensor) -> Tensor:
        """(K,) whose sigmoids are the weights, from the logs (K,) of the losses over their bases."""
        if self.numbers is not None:
            return self.numbers
        assert self.network is not None
        outputs, _ = self.network.forward(losses.new_tensor([to_base], dtype=next(self.parameters()).dtype))
        return outputs[0, 0]

    def _objective(
        self, numbers: Sequence[float], relative: Sequence[float], order: Sequence[int]
    ) -> tuple[list[float], list[float]]:
        """Derivatives (K,) of the objective by the relative losses and by the learnable numbers.

        `order`: the tasks that have a part in it, in which they are neighbours.
        """
        logs = [_log_sigmoid(number) for number in numbers]
        # Only ratios of the weights count in the first sum, so that it outlives weights that are all but 0.
        factors = softmax([log if k in order else None for k, log in enumerate(logs)])
        weights = [math.exp(log) for log in logs]
        weighted = [weight * loss for weight, loss in zip(weights, relative, strict=True)]
        even = TIE * max(abs(weighted[k]) for k in order)
        for one, other in pairwise(order):
            gap = weighted[one] - weighted[other]
            if abs(gap) > even:
                price = math.copysign(self.options.penalty, gap)
                factors[one] += price * weights[one]
                factors[other] -= price * weights[other]
        to_one = [math.exp(_log_sigmoid(-number)) for number in numbers]  # 1 - weight
        return factors, [f * rest * loss for f, rest, loss in zip(factors, to_one, relative, strict=True)]


class First(Kept):
    """The first loss of every task that is finite and positive."""

    def __init__(self, num_tasks: int) -> None:
        super().__init__(num_tasks)
        self.losses: list[float | None] = [None] * num_tasks

    def bases(self, losses: Sequence[float]) -> list[float]:
        """One (K,) for each task, with those of a step's losses (K,); the least there is for a task without one."""
        for k, loss in enumerate(losses):
            if self.losses[k] is None and SMALLEST < loss < math.inf:
                self.losses[k] = loss
        least = min((loss for loss in self.losses if loss is not None), default=1.0)
        return [least if loss is None else loss for loss in self.losses]


def _log_sigmoid(number: float) -> float:
    return -math.log1p(math.exp(-number)) if number >= 0 else number - math.log1p(math.exp(number))
