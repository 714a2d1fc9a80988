"""GO4Align: group optimisation for multi-task alignment."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from pydantic import Field
from torch import Tensor

from mtlcli.options import Options as AnyOptions
from mtlcli.registry import loss_weightings
from mtlcli.search import searched
from mtlcli.weighting.base import LossWeighting, StepView
from mtlcli.weighting.losses._values import SMALLEST, Kept, count_unusable, finite, softmax


@loss_weightings.register("go4align")
class GO4Align(LossWeighting):
    """Bring all losses to one size, turn down tasks whose losses have been large, and let similar tasks share a weight.

    Formula: w_k = mean of v over the group of task k, v_k = q_k sum_j L_j / L_k; q_k is proportional to
        exp(-step_size * the sum of L_k over all steps). Groups: K-means on the numbers v.
    Reads: the losses, which should be positive.
    Cost: 2 K numbers of state; one transfer of K numbers to the CPU a step.
    Source: Shen et al., GO4Align: Group Optimization for Multi-Task Alignment, NeurIPS 2024, arXiv 2404.06486; code
        autumn9999/GO4Align, `GO4ALIGN`, whose step size is followed.
    Deviations: K-means is solved exactly, for on a line groups are neighbours; the code starts it at random. The number
        of groups has no published default: the code's argument starts at 1, where all tasks share one weight and
        nothing is grouped, and 2 is the least that groups (inference). A task whose loss is below 1e-12 stays out and
        has no weight (counted unless it is 0). Steps with non-finite losses reuse the weights of the step before.
    """

    class Options(AnyOptions):
        """Options of GO4Align."""

        groups: int = Field(
            2, ge=1, description="How many different weights there may be.", json_schema_extra=searched(1, 4)
        )
        step_size: float = Field(
            1e-4,
            ge=0,
            description="How fast tasks with large losses are turned down.",
            json_schema_extra=searched(1e-5, 0.1, log=True),
        )

    weights: Tensor  # (K,)  of the last step

    def __init__(self, options: AnyOptions, tasks: tuple[str, ...], rng: torch.Generator) -> None:
        super().__init__(options, tasks, rng)
        self.register_buffer("weights", torch.ones(len(tasks)))
        self.sums = Sums(len(tasks))
        self.keep("sums", self.sums)

    def forward(self, step: StepView) -> Tensor:
        """The losses (K,), each times its group's weight."""
        losses = step.losses.tolist()
        if finite(losses):
            count_unusable(losses, self)
            self.sums.add(losses)
            there = [k for k, loss in enumerate(losses) if loss > SMALLEST]
            risks = softmax([-self.options.step_size * self.sums.losses[k] for k in there])
            whole = sum(losses[k] for k in there)
            wanted = [whole / losses[k] * risk for k, risk in zip(there, risks, strict=True)]
            weights = [0.0] * len(losses)
            for k, weight in zip(there, group_means(wanted, self.options.groups), strict=True):
                weights[k] = weight
            self.weights = step.losses.new_tensor(weights)
        else:
            self.count("non-finite losses: the last weights were used")
        return self.weights * step.losses


class Sums(Kept):
    """The losses of every task, added up over all steps."""

    def __init__(self, num_tasks: int) -> None:
        super().__init__(num_tasks)
        self.losses = [0.0] * num_tasks

    def add(self, losses: Sequence[float]) -> None:
        """Losses (K,) of a step."""
        self.losses = [total + loss for total, loss in zip(self.losses, losses, strict=True)]


def group_means(values: list[float], groups: int) -> list[float]:
    """Each value's mean over its group, for the at most `groups` groups with the least squared distances to the means.

    Groups are neighbours in the order of size, so the best split of the first n values into g groups ends in some last
    group and is best before it.
    """
    count = len(values)
    if count < 2:
        return list(values)
    order = sorted(range(count), key=values.__getitem__)
    total, squares = [0.0], [0.0]
    for i in order:
        total.append(total[-1] + values[i])
        squares.append(squares[-1] + values[i] ** 2)

    def spread(start: int, stop: int) -> float:
        return max(0.0, squares[stop] - squares[start] - (total[stop] - total[start]) ** 2 / (stop - start))

    best = [(0.0, [0])] + [(spread(0, stop), [0, stop]) for stop in range(1, count + 1)]
    for group in range(1, groups):
        before = list(best)
        for stop in range(2, count + 1) if group < groups - 1 else (count,):
            cost, at = min((before[at][0] + spread(at, stop), at) for at in range(1, stop))
            if cost < before[stop][0]:
                best[stop] = cost, [*before[at][1], stop]
    means = [0.0] * count
    for start, stop in pairwise(best[-1][1]):
        members = order[start:stop]
        mean = sum(values[i] for i in members) / len(members)
        for i in members:
            means[i] = mean
    return means
