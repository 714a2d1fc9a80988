"""Dual-balancing multi-task learning."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from mtlcli.options import Options as AnyOptions
from mtlcli.registry import gradient_weightings
from mtlcli.search import searched, searched_among
from mtlcli.weighting.base import GradientWeighting
from mtlcli.weighting.gradients._state import Memory, check_finite


@gradient_weightings.register("db_mtl")
class DBMTL(GradientWeighting):
    """Average each gradient over steps and stretch them all to the length of the longest. Meant for logs of the losses.

    Formula: step n = 1, 2, ...: y_k <- g_k + beta n^-beta_sigma (y_k - g_k), y = 0 at first; direction =
        sum_k max_j ||y_j|| / ||y_k|| y_k (Algorithm 1). The paper's losses are log L_k: use the loss weighting `si`.
    Reads: the Jacobian, whose running average it keeps.
    Cost: K gradients held twice.
    Source: Lin et al., Dual-Balancing for Multi-Task Learning, 2023, arXiv 2308.12029; LibMTL, `DB_MTL`, by the same
        authors. Heads keep the gradients of their own (log) losses, as there.
    Deviations: the logs are the other slot's business. LibMTL adds 1e-8 to the norms; here a gradient of exactly zero
        stays zero. beta and beta_sigma are its defaults.
    """

    class Options(AnyOptions):
        """Options of DB-MTL."""

        beta: float = Field(
            0.9,
            ge=0,
            lt=1,
            description="Share of the past in the average. 0: no average.",
            json_schema_extra=searched(0.0, 0.99),
        )
        beta_sigma: float = Field(
            0.0,
            ge=0,
            description="Power of the step number that beta is divided by.",
            json_schema_extra=searched_among(0.0, 0.5),
        )

    reads = "jacobian"
    anchors = frozenset({"params"})
    step: Tensor  # ()  how many steps there were

    def __init__(self, options: Options, tasks: tuple[str, ...], rng: torch.Generator) -> None:
        super().__init__(options, tasks, rng)
        self.register_buffer("step", torch.zeros(()))
        self.average = Memory()
        self.keep("average", self.average)

    def forward(self, statistic: Tensor, losses: Tensor) -> Tensor:
        """Direction (P,). Raises MtlError where the size of the gradients changes or one is not finite."""
        average = self.average.beside(statistic, self.name)
        self.step += 1
        average.lerp_(statistic, (1 - self.options.beta / self.step**self.options.beta_sigma).to(average))
        lengths = torch.stack([row.norm() for row in average])
        check_finite(lengths, self.name)
        return torch.where(lengths > 0, lengths.max() / lengths, 0) @ average
