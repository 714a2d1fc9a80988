"""Balance of gradient magnitudes around a main task."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from mtlcli.options import Options as AnyOptions
from mtlcli.registry import gradient_weightings
from mtlcli.search import searched
from mtlcli.weighting.base import GradientWeighting
from mtlcli.weighting.main_task import index_of
from mtlcli.weighting.solvers import answer, checked, cosines


@gradient_weightings.register("metabalance")
class MetaBalance(GradientWeighting):
    """Bring the gradients of all other tasks near the length of the main task's.

    Formula: m_k <- beta m_k + (1 - beta) ||g_k||, m = 0 at first; w_k = relax m_main / m_k + 1 - relax; direction =
        sum_k w_k g_k.
    Reads: the Gramian, of which the diagonal suffices. The weight of the main task is 1; the others have no fixed sum.
    Cost: K gradients; K numbers of state.
    Source: He et al., MetaBalance: Improving Multi-Task Recommendations via Adapting Gradient Magnitudes of Auxiliary
        Tasks, WWW 2022, arXiv 2203.06801; code facebookresearch/MetaBalance. Heads keep their own gradients.
    Deviations: one norm over all shared parameters; the paper and the code balance each parameter tensor by itself. The
        code divides by zero for a gradient that was always zero; it gets the weight 1 here. A gradient of zero, as
        without a label in the batch, leaves m as it was.
    """

    class Options(AnyOptions):
        """Options of MetaBalance."""

        main: str | None = Field(None, description="The main task's name; left out: the first task.")
        relax: float = Field(
            0.7,
            ge=0,
            le=1,
            description="How far towards the main task's length; 0: not at all.",
            json_schema_extra=searched(0.0, 1.0),
        )
        beta: float = Field(
            0.9,
            ge=0,
            lt=1,
            description="Share of the past in the running lengths.",
            json_schema_extra=searched(0.0, 0.99),
        )

    reads = "gramian"
    lengths: Tensor  # (K,)  running lengths of the gradients

    def __init__(self, options: Options, tasks: tuple[str, ...], rng: torch.Generator) -> None:
        super().__init__(options, tasks, rng)
        self.main = index_of(self.options.main, tasks, "main")
        self.register_buffer("lengths", torch.zeros(len(tasks), dtype=torch.float64))

    def forward(self, statistic: Tensor, losses: Tensor) -> Tensor:
        """Weights (K,). Raises MtlError where the Gramian is not finite."""
        found = answer(cosines(checked(statistic, self.name))[1], self.lengths)
        running = self.options.beta * self.lengths + (1 - self.options.beta) * found
        self.lengths = torch.where(found > 0, running, self.lengths)
        ratio = torch.where(self.lengths > 0, self.lengths[self.main] / self.lengths, 1)
        weights: Tensor = self.options.relax * ratio + 1 - self.options.relax
        return weights.to(statistic)
