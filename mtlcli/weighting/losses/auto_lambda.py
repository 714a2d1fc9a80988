"""Auto-Lambda: weights learned from held-out losses."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from mtlcli.options import Options as AnyOptions
from mtlcli.registry import loss_weightings
from mtlcli.search import searched
from mtlcli.weighting.base import LossWeighting, StepView
from mtlcli.weighting.losses._bilevel import descend
from mtlcli.weighting.main_task import index_of, norm


@loss_weightings.register("auto_lambda")
class AutoLambda(LossWeighting):
    """Move the weights so that a training step with them lowers the primary tasks' held-out losses.

    Formula: sum_k w_k L_k; before each step Adam moves w along the gradient of V(theta - lr grad sum_k w_k L_k), where
        V sums the primary tasks' losses on a held-out batch. With d = grad V there, it is -lr <grad L_k, d>, and
        <grad L_k, d> = |d| (L_k(theta + e d / |d|) - L_k(theta - e d / |d|)) / (2 e), e = `distance`.
    Reads: the losses, the learning rate, the losses at two more points and on a held-out batch
        (`data.held_out`).
    Cost: two backward passes and three forward passes (one of each on the held-out batch); 3 K numbers of state.
    Source: Liu, James, Davison & Johns, Auto-Lambda: Disentangling Dynamic Task Relationships, TMLR 2022,
        arXiv 2202.03091; code lorenmt/auto-lambda. Weights may become negative there too; such steps are counted.
    Deviations: the step that is differentiated is plain gradient descent of the run's learning rate, whatever optimiser
        the run has; the code adds SGD's momentum and weight decay. The code's NYUv2 run draws its second batch from the
        training rows; here it is held out, as in the paper. `distance` is the code's. Where the slope is not finite,
        the weights stay (counted).
    """

    class Options(AnyOptions):
        """Options of Auto-Lambda."""

        primary: str | Annotated[list[str], Field(min_length=1)] | None = Field(
            None, description="Name or names of the tasks to serve; all of them if left out."
        )
        init: float = Field(
            0.1, description="First value of every weight.", json_schema_extra=searched(0.01, 1.0, log=True)
        )
        lr: float = Field(
            1e-4, gt=0, description="Learning rate of the weights.", json_schema_extra=searched(1e-5, 1e-2, log=True)
        )
        distance: float = Field(0.01, gt=0, description="Length of the steps that slopes are measured by.")

    needs = frozenset({"held_out"})
    takes_gradients = True
    traits = frozenset({"negative_weights"})

    def __init__(self, options: AnyOptions, tasks: tuple[str, ...], rng: torch.Generator) -> None:
        super().__init__(options, tasks, rng)
        named = [self.options.primary] if isinstance(self.options.primary, str) else self.options.primary
        self.primary = sorted({index_of(name, tasks, "primary") for name in (tasks if named is None else named)})
        self.weights = nn.Parameter(torch.full((len(tasks),), float(self.options.init)))
        self.adam = torch.optim.Adam([self.weights], lr=self.options.lr)
        self.keep("adam", self.adam)

    def learnable(self) -> list[nn.Parameter]:
        """None: the weights have an Adam of their own."""
        return []

    def forward(self, step: StepView) -> Tensor:
        """The losses (K,), each times its weight."""
        if not descend(self.weights, self._slope(step), self.adam):
            self.count("the slope of the held-out losses was not finite: the weights stayed")
        if (self.weights < 0).any():
            self.count("a negative weight was used")
        return self.weights.detach() * step.losses

    def _slope(self, step: StepView) -> Tensor:
        """Gradient (K,) of the primary tasks' held-out losses with respect to the weights."""
        there = step.move(step.gradient((self.weights.detach() * step.losses).sum()), -step.lr)
        along = step.gradient(step.probe(there, "held_out").per_task[self.primary].sum(), at=there)
        length = norm(along)
        distance: float = self.options.distance
        if length == 0:
            return torch.zeros_like(self.weights)
        unit = {name: (value / length).to(value) for name, value in along.items()}
        with torch.no_grad():
            ahead, behind = (step.probe(step.move(unit, by)).per_task.double() for by in (distance, -distance))
            return -step.lr * length * (ahead - behind) / (2 * distance)
