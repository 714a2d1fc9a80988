"""GO4Align: group optimisation for multi-task alignment."""

from __future__ import annotations

from itertools import pairwise

import torch
from pydantic import Field
from torch import Tensor

from mtlcli.options import Options as AnyOptions
from mtlcli.registry import loss_weightings
from mtlcli.search import searched
from mtlcli.weighting.base import LossWeighting, StepView
from mtlcli.weighting.losses._values import SMALLEST, finite


@loss_weightings.register("go4align")
class GO4Align(LossWeighting):
    """Bring all losses to one size, turn down tasks whose losses have been large, and let similar tasks share a weight.

    Formula: w_k = mean of v over the group of task k, v_k = q_k sum_j L_j / L_k; q_k is proportional to
        exp(-step_size * the sum of L_k over all steps). Groups: K-means on the numbers v.
    Reads: the losses, which should be positive.
    Cost: K numbers of state; one transfer of K numbers to the CPU a step.
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

    log_risk: Tensor  # (K,)  log q
    weights: Tensor  # (K,)  of the last step

    def __init__(self, options: AnyOptions, tasks: tuple[str, ...], rng: torch.Generator) -> None:
        super().__init__(options, tasks, rng)
        self.register_buffer("log_risk", torch.zeros(len(tasks)).log_softmax(0))
        self.register_buffer("weights", torch.ones(len(tasks)))

    def forward(self, step: StepView) -> Tensor:
        """The losses (K,), each times its group's weight."""
        losses = step.losses.detach().to(self.log_risk)
        if finite(losses.tolist()):
            self.log_risk = (self.log_risk - self.options.step_size * losses).log_softmax(0)
            positive = losses > SMALLEST
            if (losses[~positive] != 0).any():
                self.count("a loss was not positive: its task had no weight")
            there = losses[positive]
            wanted = (there.sum() / there * self.log_risk[positive].softmax(0)).tolist()
            self.weights = torch.zeros_like(losses)
            self.weights[positive] = torch.tensor(group_means(wanted, self.options.groups)).to(losses)
        else:
            self.count("non-finite losses: the last weights were used")
        return self.weights * step.losses


def group_means(values: list[float], groups: int) -> list[float]:
    """Each value's mean over its group, for the at most `groups` groups with the least squared distances to the means.

    Groups are neighbours in the order of size, so the best split of the first n values into g groups ends in some last
    group and is best before it.
    """
    order = sorted(range(len(values)), key=values.__getitem__)
    total, squares = [0.0], [0.0]
    for i in order:
        total.append(total[-1] + values[i])
        squares.append(squares[-1] + values[i] ** 2)

    def spread(start: int, stop: int) -> float:
        return max(0.0, squares[stop] - squares[start] - (total[stop] - total[start]) ** 2 / (stop - start))

    best = [(0.0, [0])] + [(spread(0, stop), [0, stop]) for stop in range(1, len(values) + 1)]
    for _ in range(groups - 1):
        best = best[:1] + [
            min(
                [best[stop], *((best[at][0] + spread(at, stop), [*best[at][1], stop]) for at in range(1, stop))],
                key=lambda split: split[0],
            )
            for stop in range(1, len(values) + 1)
        ]
    means = [0.0] * len(values)
    for start, stop in pairwise(best[-1][1]):
        members = order[start:stop]
        mean = sum(values[i] for i in members) / len(members)
        for i in members:
            means[i] = mean
    return means
