"""Multi-task learning as a bargaining game."""

from __future__ import annotations

import math

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from mtlcli.options import Options as AnyOptions
from mtlcli.registry import gradient_weightings
from mtlcli.search import searched
from mtlcli.weighting.base import GradientWeighting
from mtlcli.weighting.solvers import answer, checked, cosines, inverse_point


@gradient_weightings.register("nash_mtl")
class NashMTL(GradientWeighting):
    """Let the tasks bargain: the update that maximises the product of what each of them gains.

    Formula: a > 0 with G a = 1/a (Algorithm 1), then direction = sum_k a_k g_k, shortened to the norm `max_norm`.
        As a'Ga = K at the solution, every update has the norm min(sqrt(K), max_norm): the learning rate alone sets the
        size of a step. K = 2: a_k = 1 / (||g_k|| sqrt(1 + cos)).
    Reads: the Gramian.
    Cost: K gradients, and a handful of Newton steps on K x K numbers.
    Source: Navon et al., Multi-Task Learning as a Bargaining Game, ICML 2022, arXiv 2202.01017; code
        AvivNavon/nash-mtl. Heads train on the weighted losses, as in that code.
    Deviations: Newton's method on 1/2 a'Ga - sum(log a), solved to rounding, where the code runs up to 20 convex
        programs and keeps its last answer when one fails. The code divides G by its Frobenius norm, which alone would
        multiply a by the root of that norm, but its constraints multiply by the norm again, so that its solution obeys
        G a = 1/a for the undivided G: that is the scale returned here. `max_norm` shortens all weights alike; the code
        shortens the gradient of the shared parameters, and heads keep the full weights. Where gradients cancel (a
        convex combination of them is zero) no solution exists: the least multiple of the identity that gives one is
        added to the cosines, and the event is counted. A task with a zero gradient stays out of the bargain and gets
        the smallest weight of the others, or 1 where all are zero.
    """

    class Options(AnyOptions):
        """Options of Nash-MTL."""

        max_norm: float = Field(
            1.0,
            ge=0,
            description="Largest norm of the update; larger ones are shortened. 0: no limit.",
            json_schema_extra=searched(0.3, 3.0, log=True),
        )

    reads = "gramian"
    heads = "weighted"

    def forward(self, statistic: Tensor, losses: Tensor) -> Tensor:
        """Weights (K,) > 0. Raises MtlError where the Gramian is not finite."""
        cosine, lengths = cosines(checked(statistic, self.name))
        present = lengths > 0
        if not present.any():
            return torch.ones_like(statistic[0])
        cosine = cosine[present][:, present]
        shares, exact = inverse_point(cosine)
        if not exact:
            self.count("gradients cancel each other: bargained with a ridge added")
        norm = math.sqrt(max(float(shares @ cosine @ shares), 0.0))
        if 0 < self.options.max_norm < norm:
            shares = shares * (self.options.max_norm / norm)
        bargained = shares / lengths[present]
        weights = np.full(len(lengths), bargained.min())
        weights[present] = bargained
        return answer(weights, statistic)
