"""Multi-objective gradient correction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from mtlcli.errors import MtlError
from mtlcli.options import Options as AnyOptions
from mtlcli.registry import gradient_weightings
from mtlcli.search import searched, searched_among
from mtlcli.weighting.base import GradientWeighting, Trait
from mtlcli.weighting.gradients._state import Memory, check_finite
from mtlcli.weighting.solvers import answer, onto_simplex

NEGATIVE = "normalise: loss multiplies by weighted losses, which can be negative there; use normalise: none"


@gradient_weightings.register("moco")
class MoCo(GradientWeighting):
    """Track each gradient over many steps, and move weights slowly towards the shortest combination of those.

    Formula: step n = 1, 2, ...: y_k <- y_k - beta n^-beta_sigma (y_k - g_k); w <- projection onto the simplex of
        w - gamma n^-gamma_sigma (Y Y' + rho I) w; direction = sum_k w_k y_k (Algorithm 1). y = 0, w = 1/K at first.
    Reads: the Jacobian, whose running average it keeps. The weights of the averages sum to 1.
    Cost: K gradients held twice, and K x K numbers.
    Source: Fernando et al., Mitigating Gradient Bias in Multi-objective Learning: A Provably Convergent Approach, ICLR
        2023; LibMTL, `MoCo`, after code shared by the authors. Heads keep their own gradients, as there.
    Deviations: w is projected, as in the paper; LibMTL takes a softmax of the same vector, which never leaves the
        neighbourhood of equal weights. LibMTL also rescales every gradient to the length of its loss, which
        `normalise: loss` does here. Step sizes and their decay are its defaults.
    """

    class Options(AnyOptions):
        """Options of MoCo."""

        beta: float = Field(
            0.5,
            gt=0,
            le=1,
            description="Step size of the tracked gradients.",
            json_schema_extra=searched(0.05, 1.0, log=True),
        )
        beta_sigma: float = Field(0.5, ge=0, description="Power of the step number that beta is divided by.")
        gamma: float = Field(
            0.1, gt=0, description="Step size of the weights.", json_schema_extra=searched(1e-3, 10.0, log=True)
        )
        gamma_sigma: float = Field(0.5, ge=0, description="Power of the step number that gamma is divided by.")
        rho: float = Field(
            0.0,
            ge=0,
            description="Pull of the weights towards equality.",
            json_schema_extra=searched_among(0.0, 0.01, 0.1),
        )
        normalise: Literal["none", "loss"] = Field(
            "none", description="`loss`: rescale each gradient to the length of its loss, which must not be negative."
        )

    reads = "jacobian"
    anchors = frozenset({"params"})
    step: Tensor  # ()  how many steps there were
    weights: Tensor  # (K,)  of the last step

    def __init__(self, options: Options, tasks: tuple[str, ...], rng: torch.Generator) -> None:
        super().__init__(options, tasks, rng)
        self.register_buffer("step", torch.zeros(()))
        self.register_buffer("weights", torch.full((len(tasks),), 1 / len(tasks), dtype=torch.float64))
        self.tracked = Memory()
        self.keep("tracked", self.tracked)

    @classmethod
    def refuses(cls, options: Any) -> Mapping[Trait, str]:
        """Negative weights, with `normalise: loss`."""
        return {"negative_weights": NEGATIVE} if options.normalise == "loss" else {}

    def forward(self, statistic: Tensor, losses: Tensor) -> Tensor:
        """Direction (P,). Raises MtlError where the size of the gradients changes or one is not finite."""
        options = self.options
        tracked = self.tracked.beside(statistic, self.name)
        self.step += 1
        beta = (options.beta / self.step**options.beta_sigma).to(tracked)
        for row, gradient, factor in zip(tracked, statistic, self._factors(statistic, losses), strict=True):
            row.lerp_(factor * gradient, beta)
        products = (tracked @ tracked.T).to(self.weights)
        check_finite(products.diagonal(), self.name)
        pull = products @ self.weights + options.rho * self.weights
        moved = self.weights - options.gamma / self.step**options.gamma_sigma * pull
        self.weights = answer(onto_simplex(moved.numpy(force=True)), self.weights)
        return self.weights.to(tracked) @ tracked

    def _factors(self, jacobian: Tensor, losses: Tensor) -> Tensor:
        if self.options.normalise == "none":
            return jacobian.new_ones(len(jacobian))
        if (losses < 0).any():
            raise MtlError(
                f"{self.name}: normalise: loss multiplies by the losses, which should not be negative; "
                f"found {losses.min():.4g}; choose none"
            )
        lengths = torch.stack([row.norm() for row in jacobian])
        return torch.where(lengths > 0, losses.to(lengths) / lengths, 0)
