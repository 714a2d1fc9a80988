"""Multi-objective gradient descent with double sampling."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from mtlcli.options import Options as AnyOptions
from mtlcli.registry import gradient_weightings
from mtlcli.search import searched
from mtlcli.weighting.base import GradientWeighting, Trait
from mtlcli.weighting.solvers import answer, checked, conditional, labelled, onto_simplex


@gradient_weightings.register("modo")
class MoDo(GradientWeighting):
    """Move the weights a little towards the shortest combination at every step, by an estimate without bias.

    Formula: w <- projection onto the simplex of w - gamma (G1 G2' + rho I) w, with the gradients G1 and G2 of two
        batches that do not depend on each other; direction = sum_k w_k g_k with the gradients of a third. w = 1/K at
        first.
    Reads: the inner products of one further batch's gradients with another's. The weights sum to 1.
    Cost: two further batches (`data.extra_batches: 2`): two forward and 2 K backward passes, 2 K gradients held at
        once, and one backward pass of the weighted losses; K numbers of state.
    Source: Chen, Fernando, Ying & Chen, Three-Way Trade-Off in Multi-Objective Learning: Optimization, Generalization
        and Conflict-Avoidance, NeurIPS 2023 and JMLR 2024, arXiv 2305.20057; code heshandevaka/Trade-Off-MOL, whose
        defaults inside of LibMTL are kept. Heads keep their own gradients, of the batch that is trained on; in LibMTL
        the mean over all three.
    Deviations: the paper's update follows the mean of the two batches; a third one is the code's `three_grads`, and
        what LibMTL does. gamma is not relative to the gradients' lengths, in the paper or here: where these are large,
        the weights move at once to a corner of the simplex. A task without a label in one of the batches keeps its
        weight, and the others share what they have together as though it was not there.
    """

    class Options(AnyOptions):
        """Options of MoDo."""

        gamma: float = Field(
            1e-3, gt=0, description="Step size of the weights.", json_schema_extra=searched(1e-5, 0.1, log=True)
        )
        rho: float = Field(
            0.1,
            ge=0,
            description="Pull of the weights towards equality.",
            json_schema_extra=searched(1e-3, 1.0, log=True),
        )

    reads = "gramian"
    anchors = frozenset({"params", "last_shared"})
    extra_batches = 2
    weights: Tensor  # (K,)

    def __init__(self, options: AnyOptions, tasks: tuple[str, ...], rng: torch.Generator) -> None:
        super().__init__(options, tasks, rng)
        self.register_buffer("weights", torch.full((len(tasks),), 1 / len(tasks), dtype=torch.float64))

    @classmethod
    def refuses(cls, options: AnyOptions) -> Mapping[Trait, str]:
        """Weights of samples, which the samples of other batches do not have."""
        return {"sample_weights": "its further batches have no sample weights"}

    def forward(self, statistic: Tensor, losses: Tensor) -> Tensor:
        """Weights (K,) on the simplex. Raises MtlError where an inner product is not finite."""
        matrix, weights = checked(statistic, self.name), self.weights.numpy(force=True)
        there = labelled(matrix, losses)
        before, mass = conditional(weights, there)
        pull = matrix[np.ix_(there, there)] @ before + self.options.rho * before
        found = np.zeros_like(weights)
        found[there] = onto_simplex(before - self.options.gamma * pull)
        self.weights = answer(np.where(there, mass * found, weights), self.weights)
        return answer(found, statistic)
