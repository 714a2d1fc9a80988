"""Weights from the coefficient of variation."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from mtlcli.options import Options as AnyOptions
from mtlcli.registry import loss_weightings
from mtlcli.search import searched_among
from mtlcli.weighting.base import LossWeighting, StepView
from mtlcli.weighting.losses._values import Kept, finite


@loss_weightings.register("cov")
class CoV(LossWeighting):
    """Weigh a task up while its loss still varies, relative to its mean: then it has more to learn.

    Formula: w = K c / sum(c), c_k = std(l_k) / mean(l_k) over all steps before this one, of the ratios
        l_k(t) = L_k(t) / mean of L_k before t; w = 1 in the first two steps.
    Reads: the losses.
    Cost: 5 K numbers of state.
    Source: Groenendijk et al., Multi-Loss Weighting with Coefficient of Variations, WACV 2021, arXiv 2009.01717; code
        rickgroen/cov-weighting.
    Deviations: the weights sum to K, so that the learning rate means what it means for equal weights; in the code they
        sum to 1. Steps with non-finite losses reuse the weights of the step before. A loss of exactly 0, as without a
        label in the batch, is left out of the statistics; a task with fewer than two others has w = 1, and K is the
        number of the rest then.
    """

    class Options(AnyOptions):
        """Options of the coefficient of variation."""

        decay: float | None = Field(
            None,
            gt=0,
            lt=1,
            description="Share of the means kept in a step; without it all steps count alike.",
            json_schema_extra=searched_among(None, 0.9, 0.99, 0.999),
        )

    def __init__(self, options: AnyOptions, tasks: tuple[str, ...], rng: torch.Generator) -> None:
        super().__init__(options, tasks, rng)
        self.statistics = Statistics(len(tasks))
        self.keep("statistics", self.statistics)

    def forward(self, step: StepView) -> Tensor:
        """The losses (K,), each times its weight."""
        losses = step.losses.tolist()
        if finite(losses):
            self.statistics.add(losses, self.options.decay)
        else:
            self.count("non-finite losses: the last weights were used")
        return step.losses.new_tensor(self.statistics.weights) * step.losses


class Statistics(Kept):
    """Of the losses and of their ratios, over the steps so far."""

    def __init__(self, num_tasks: int) -> None:
        super().__init__(num_tasks)
        self.steps = [0] * num_tasks  # in which the task had labels
        self.mean_loss, self.mean_ratio = [0.0] * num_tasks, [1.0] * num_tasks
        self.squares = [0.0] * num_tasks  # Welford's sum of squared distances of the ratios from their mean
        self.weights = [1.0] * num_tasks  # of the last step

    def add(self, losses: list[float], decay: float | None) -> None:
        """Weights from the steps before this one, then this one's part in the statistics."""
        variation = {k: self._variation(k) for k, steps in enumerate(self.steps) if steps > 1}
        whole = sum(variation.values())
        for k, own in variation.items():
            self.weights[k] = len(variation) * own / whole
        for k, loss in enumerate(losses):
            if loss:
                self._take(k, loss, decay)

    def _variation(self, k: int) -> float:
        return math.sqrt(self.squares[k] / self.steps[k] + 1e-8) / max(abs(self.mean_ratio[k]), 1e-8)

    def _take(self, k: int, loss: float, decay: float | None) -> None:
        steps, base = self.steps[k], self.mean_loss[k]
        kept = (decay or steps / (steps + 1)) if steps else 0.0
        ratio = loss / base if base else 1.0
        mean = kept * self.mean_ratio[k] + (1 - kept) * ratio
        self.squares[k] += (ratio - self.mean_ratio[k]) * (ratio - mean)
        self.mean_ratio[k] = mean
        self.mean_loss[k] = kept * base + (1 - kept) * loss
        self.steps[k] += 1
