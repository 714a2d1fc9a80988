"""Stochastic direction-oriented multi-objective gradient descent."""

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


@gradient_weightings.register("sdmgrad")
class SDMGrad(GradientWeighting):
    """Seek the shortest combination of the gradients, drawn towards their mean, by estimates without bias.

    Formula: A = G1 G2' / s^2 with the gradients G1 and G2 of two batches that do not depend on each other and
        s = mean_k sqrt(max(<g1_k, g2_k>, 0)); `iterations` steps of projected gradient descent with momentum on
        v <- projection onto the simplex of v - lr A (v + pull / K); w = (v + pull / K) / (1 + pull);
        direction = sum_k w_k g_k with the gradients of a third batch. v = 1/K at first, and goes on from step to step.
    Reads: the inner products of one further batch's gradients with another's. The weights sum to 1.
    Cost: two further batches (`data.extra_batches: 2`): two forward and 2 K backward passes, 2 K gradients held at
        once, and one backward pass of the weighted losses; K numbers of state.
    Source: Xiao, Ban & Ji, Direction-oriented Multi-objective Learning: Simple and Provable Stochastic Algorithms,
        NeurIPS 2023, arXiv 2305.18409 (the preference is for equal weights, as in its experiments); code
        OptMN-Lab/sdmgrad, with values that its experiments use (lr there 5 to 10). Heads keep their own gradients, of
        the batch that is trained on; in median-research-group/LibMTL they add up over all three.
    Deviations: with lr 10, the code's, the descent jumps between corners of the simplex unless the gradients have much
        in common; 0.1 lets it descend. The code adds 1e-8 to s^2; here the scale of the losses does not matter. Where
        no task's gradients agree over the two batches, s is 0 and v stays (counted). A task without a label in one of
        the batches keeps its part of v, and the others share what they have together as though it was not there.
    """

    class Options(AnyOptions):
        """Options of SDMGrad."""

        pull: float = Field(
            0.3,
            ge=0,
            description="How much the direction is drawn towards the mean gradient.",
            json_schema_extra=searched(0.03, 3.0, log=True),
        )
        iterations: int = Field(20, ge=1, description="Steps of descent on the weights.")
        lr: float = Field(
            10.0, gt=0, description="Size of those steps.", json_schema_extra=searched(0.03, 30.0, log=True)
        )
        momentum: float = Field(
            0.5,
            ge=0,
            lt=1,
            description="Their momentum, which each training step starts anew.",
            json_schema_extra=searched(0.0, 0.9),
        )

    reads = "gramian"
    anchors = frozenset({"params", "last_shared"})
    extra_batches = 2
    shares: Tensor  # (K,)  v

    def __init__(self, options: AnyOptions, tasks: tuple[str, ...], rng: torch.Generator) -> None:
        super().__init__(options, tasks, rng)
        self.register_buffer("shares", torch.full((len(tasks),), 1 / len(tasks), dtype=torch.float64))

    @classmethod
    def refuses(cls, options: AnyOptions) -> Mapping[Trait, str]:
        """Weights of samples, which the samples of other batches do not have."""
        return {"sample_weights": "its further batches have no sample weights"}

    def forward(self, statistic: Tensor, losses: Tensor) -> Tensor:
        """Weights (K,) on the simplex. Raises MtlError where an inner product is not finite."""
        options, matrix = self.options, checked(statistic, self.name)
        kept = self.shares.numpy(force=True)
        there = labelled(matrix, losses)
        matrix = matrix[np.ix_(there, there)]
        shares, mass = conditional(kept, there)
        even = options.pull / max(len(shares), 1)
        length = float(np.sqrt(np.maximum(matrix.diagonal(), 0)).mean()) if there.any() else 0
        if length == 0:
            self.count("no gradient agreed with itself over two batches: the weights stayed")
        else:
            matrix = matrix / length / length
            velocity = np.zeros_like(shares)
            for _ in range(options.iterations):
                velocity = options.momentum * velocity + matrix @ (shares + even)
                shares = onto_simplex(shares - options.lr * velocity)
            moved = kept.copy()
            moved[there] = mass * shares
            self.shares = answer(moved, self.shares)
        weights = np.zeros_like(kept)
        weights[there] = (shares + even) / (1 + options.pull)
        return answer(weights, statistic)
