"""Loss discrepancy control."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from mtlcli.options import Options as AnyOptions
from mtlcli.registry import loss_weightings
from mtlcli.search import searched, searched_among
from mtlcli.weighting.base import LossWeighting, StepView, Trait
from mtlcli.weighting.losses._agent import Nets
from mtlcli.weighting.losses._values import SMALLEST, log_of

TIE = 1e-6  # two losses whose gap is smaller than this part of the largest are even; at the first step, all of them are


@loss_weightings.register("ldc_mtl")
class LDCMTL(LossWeighting):
    """Learn the weights together with the model, with a price on differences between the weighted losses.

    Formula: sum_k w_k l_k / sum(w) + penalty * sum_k |w_k l_k - w_k+1 l_k+1|, with the sum of w detached. l = losses
        relative to the first step's: L_k min(L(0)) / L_k(0) (ratio), log(L_k / L_k(0)) (log), or L (none).
        w = sigmoid(learnable numbers), or of a small net of the logs of the relative losses (network).
    Reads: the losses; the learnable numbers are parameters and join the run's optimiser. A task whose weighted
        loss is below its neighbours' has a negative factor where the price outweighs its share, as with many tasks.
    Cost: K parameters, or a net of 64 x 64 hidden units; 2 K numbers of state.
    Source: Xiao, Dong, Zou & Ji, LDC-MTL: Balancing Multi-Task Learning through Scalable Loss Discrepancy Control,
        arXiv 2502.08585; code OptMN-Lab/LDC-MTL: one optimiser for model and weights, a bilevel problem in the paper.
        CelebA there: sigmoid of numbers that start at 1, none, 0.01. NYUv2: ratio, 0.05. QM9: log, 0.05.
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

    first: Tensor  # (K,)  first positive loss of each task; nan before it
    by_name: Tensor  # (K,)  the order of the tasks' names

    @classmethod
    def traits_with(cls, options: Any) -> frozenset[Trait]:
        """Negative weights where differences have a price."""
        return frozenset({"negative_weights"}) if options.penalty > 0 else frozenset()

    def __init__(self, options: AnyOptions, tasks: tuple[str, ...], rng: torch.Generator) -> None:
        super().__init__(options, tasks, rng)
        self.register_buffer("first", torch.full((len(tasks),), torch.nan))
        by_name = sorted(range(len(tasks)), key=tasks.__getitem__)
        self.register_buffer("by_name", torch.tensor(by_name), persistent=False)
        self.numbers = nn.Parameter(torch.ones(len(tasks))) if self.options.router == "weights" else None
        self.network = Nets(1, len(tasks), 64, len(tasks), rng) if self.options.router == "network" else None

    def forward(self, step: StepView) -> Tensor:
        """Shares (K,) of the objective: each task's loss times its factor, and the weights' part in equal parts."""
        losses = step.losses.detach()
        usable = losses.isfinite() & (losses > SMALLEST)
        self.first = torch.where(self.first.isnan() & usable, losses.to(self.first), self.first)
        least = self.first.nan_to_num(torch.inf).min()
        base = torch.where(self.first.isnan(), torch.where(least.isinf(), 1, least), self.first).to(losses)
        if self.options.normalise == "log":
            relative = log_of(step.losses, self) - base.log()
        else:
            relative = step.losses * (base.min() / base) if self.options.normalise == "ratio" else step.losses

        there = ~(losses <= SMALLEST)
        logs = self._log_weights(torch.where(there, losses / base, 1).log())
        order = self.by_name[there[self.by_name]]
        if not len(order):
            return step.losses
        # Only ratios of the weights count in the first sum, so that it outlives weights that are all but 0.
        parts = (logs[order] - logs.detach()[order].logsumexp(0)).exp()
        weights = logs.exp()
        weighted = (weights * relative.detach())[order]
        gaps = weighted[:-1] - weighted[1:]
        gaps = torch.where(gaps.abs() > TIE * weighted.detach().abs().max(), gaps, 0)
        objective = (parts * relative.detach()[order]).sum() + self.options.penalty * gaps.abs().sum()

        signs = torch.zeros_like(losses)
        signs[order[:-1]] += gaps.detach().sign()
        signs[order[1:]] -= gaps.detach().sign()
        factors = torch.where(there, self.options.penalty * signs * weights.detach(), 0)
        factors[order] += parts.detach()
        shares: Tensor = factors * relative + (objective - objective.detach()) / len(losses)
        return shares

    def _log_weights(self, relative: Tensor) -> Tensor:
        """Logs (K,) of weights in (0, 1), with a graph to the parameters, from the logs (K,) of relative losses."""
        numbers: Tensor | None = self.numbers
        if numbers is None:
            assert self.network is not None
            outputs, _ = self.network.forward(relative[None].to(self.first))
            numbers = outputs[0, 0]
        return nn.functional.logsigmoid(numbers).to(relative)
