"""Multi-task learning with excess risks."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from mtlcli.options import Options as AnyOptions
from mtlcli.registry import gradient_weightings
from mtlcli.search import searched
from mtlcli.weighting.base import GradientWeighting
from mtlcli.weighting.gradients._state import Memory, check_finite

CHUNK = 1 << 18  # columns at a time: temporaries stay small next to the (K, P) Jacobian


@gradient_weightings.register("excess_mtl")
class ExcessMTL(GradientWeighting):
    """Weigh a task up by how far its loss still seems to be from its minimum, so that noisy labels do not count.

    Formula: excess_k = sum_i g_ki^2 / sqrt(S_ki), S_k = sum of g_k^2 over all steps so far (equations 6 and 7);
        w_k <- w_k exp(step_size excess_k / excess_k at the first step), rescaled to sum K (equation 9); direction =
        sum_k w_k g_k. The first step only measures, with w = 1.
    Reads: the Jacobian, entry by entry.
    Cost: K gradients held twice.
    Source: He et al., Robust Multi-Task Learning with Excess Risks, ICML 2024, arXiv 2402.02009; code
        yifei-he/ExcessMTL, and LibMTL's copy of it.
        Heads train on the weighted losses, as in that code.
    Deviations: the code adds 1e-7 under the root; here entries that were always zero contribute nothing, so that the
        scale of the losses does not matter. The paper suggests three epochs for the first measurement, its code takes
        one step; that is followed. A task whose gradient was zero so far gets its
        first measurement later. `step_size` is LibMTL's
        default (TorchJD: 1). The sum K follows the code; the paper and SimplexLab/TorchJD have 1.
    """

    class Options(AnyOptions):
        """Options of ExcessMTL."""

        step_size: float = Field(
            0.01,
            gt=0,
            description="Step size of the logs of the weights.",
            json_schema_extra=searched(1e-3, 1.0, log=True),
        )

    reads = "jacobian"
    returns = "weights"
    heads = "weighted"
    anchors = frozenset({"params", "last_shared"})
    first: Tensor  # (K,)  excess of the first step; 0 where the gradient was zero so far
    logits: Tensor  # (K,)  logs of the weights, up to a constant

    def __init__(self, options: Options, tasks: tuple[str, ...], rng: torch.Generator) -> None:
        super().__init__(options, tasks, rng)
        self.register_buffer("first", torch.zeros(len(tasks), dtype=torch.float64))
        self.register_buffer("logits", torch.zeros(len(tasks), dtype=torch.float64))
        self.squares = Memory()
        self.keep("squares", self.squares)

    def forward(self, statistic: Tensor, losses: Tensor) -> Tensor:
        """Weights (K,) that sum to K. Raises MtlError where the size of the gradients changes or one is not finite."""
        squares = self.squares.beside(statistic, self.name)
        excess = statistic.new_zeros(len(statistic))
        for start in range(0, statistic.shape[1], CHUNK):
            square = statistic[:, start : start + CHUNK].square()
            total = squares[:, start : start + CHUNK].add_(square)
            excess += torch.where(total > 0, square / total.sqrt(), 0).sum(1)
        check_finite(excess, self.name)
        excess = excess.to(self.first)
        known = self.first > 0
        self.first = torch.where(known, self.first, excess)
        moved = self.logits + self.options.step_size * torch.where(known, excess / self.first, 0)
        self.logits = moved - moved.max()
        return len(statistic) * self.logits.softmax(0)
