"""Equitable multi-task learning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from mtlcli.options import Options as AnyOptions
from mtlcli.registry import gradient_weightings
from mtlcli.search import searched, searched_among
from mtlcli.weighting.base import GradientWeighting, Trait
from mtlcli.weighting.solvers import Array, answer, checked, chi_square_worst_case, cosines, entropy_tempered

SMALLEST_LOSS = 1e-12
LARGEST = 1e3  # a contribution counts as at most this many times the median one


@gradient_weightings.register("emtl")
class EMTL(GradientWeighting):
    """Even out the tasks' relative contributions, loss over gradient length, by regularising their variance.

    Formula: C_k = L_k / ||g_k||, V = variance of C over the tasks.
        chi2: p maximises sum_k p_k C_k over distributions with 1/2 ||K p - 1||^2 <= rho, which is the mean of C plus
        sqrt(2 rho V / K) while no p_k is zero; p_k = 1/K + sqrt(2 rho)/K (C_k - mean) / ||C - mean||.
        kl: p_k <- p_k exp(strength C_k), drawn back to a Kullback-Leibler divergence of rho from uniform.
        penalty: the gradient of sum_k L_k + strength V with lengths held fixed, q_k = max(0, 1 + 2 strength / K
        (C_k - mean) / ||g_k||); with `normalise` that of sum_k C_k + strength V, without the last division.
        With `ratio: norm_over_loss`, C_k = ||g_k|| / L_k takes its place in the formulas for p and q.
        direction = sum_k q_k s_k g_k with q = K p for chi2 and kl, and s_k = mean_j ||g_j|| / ||g_k|| (gradient),
        1 / L_k (loss) or 1 (none).
    Reads: the Gramian, of which the diagonal suffices, and the losses, which should not be negative. The weights sum to
        K for `normalise: none` with chi2 and kl, and else to nothing fixed.
    Cost: K gradients, and a sort of K numbers; 2 K numbers of state.
    Source: Yuan & Zhang, Equitable Multi-task Learning, 2023, arXiv 2306.09373; no code. From the paper's abstract: the
        relative contribution of a task is the value of its loss divided by its raw gradient norm, and it is evened out
        by variance regularisation. Everything else is inference, and an option where it could be otherwise: chi2 is the
        convex surrogate of variance of Namkoong & Duchi, NeurIPS 2017, arXiv 1610.02581; kl is the update of BanditMTL
        (Mao et al., ACL 2021) on C instead of L; penalty is the plainest reading.
    Deviations: inference: rho, strength, `ratio` (the phrase can be read either way; with norm_over_loss p and q still
        weigh up the tasks of large C, and are not a gradient of the objective), `normalise` and its rescaling by the
        mean length, which keeps the usual length of a step; heads keep their own gradients; a task with a zero gradient
        stays out, its weight 0; C is capped at 1000 times its median; a negative loss counts as 0, or under `loss` has
        no weight, and is counted. The defaults are those that did best over three data sets for chi2 (delta_m
        against equal weights, the less the better; 3 to 5 seeds; benchmarks/RESULTS.md has the rest):

                        census, 30,000 rows   QM9, 10,000 molecules   Multi-Fashion
            chi2, loss, rho 0.5    -0.7               0.0                 -3.5
            chi2, loss, rho 0.1    -0.8              +1.4                 -1.9
            chi2, gradient, 0.1    +0.1              -1.7                 +2.4
            si (no regulariser)    -0.6              +2.2                 +1.3

        0.5 is also the largest rho at which no task can lose all its weight, however many there are.
    """

    class Options(AnyOptions):
        """Options of EMTL."""

        form: Literal["chi2", "penalty", "kl"] = Field("chi2", description="How the variance is regularised.")
        rho: float = Field(
            0.5,
            ge=0,
            description="chi2, kl: how far weights may lie from uniform.",
            json_schema_extra=searched(0.01, 1.0, log=True),
        )
        strength: float = Field(
            0.5,
            ge=0,
            description="penalty: factor on the variance; kl: step size of the weights.",
            json_schema_extra=searched(0.05, 5.0, log=True),
        )
        ratio: Literal["loss_over_norm", "norm_over_loss"] = Field(
            "loss_over_norm", description="Which way the contribution is read: L / ||g|| or ||g|| / L."
        )
        normalise: Literal["gradient", "loss", "none"] = Field(
            "loss", description="What each gradient is divided by: its length, its loss, or nothing."
        )
        ema: float = Field(
            0.0,
            ge=0,
            lt=1,
            description="Share of the past in running gradient lengths. 0: none.",
            json_schema_extra=searched_among(0.0, 0.9, 0.99),
        )

    reads = "gramian"
    lengths: Tensor  # (K,)  running lengths of the gradients; 0 before the first that is not zero
    logits: Tensor  # (K,)  kl: logs of p, up to a constant

    def __init__(self, options: Options, tasks: tuple[str, ...], rng: torch.Generator) -> None:
        super().__init__(options, tasks, rng)
        self.register_buffer("lengths", torch.zeros(len(tasks), dtype=torch.float64))
        self.register_buffer("logits", torch.zeros(len(tasks), dtype=torch.float64))

    @classmethod
    def refuses(cls, options: AnyOptions) -> Mapping[Trait, str]:
        """Negative weights."""
        return {"negative_weights": "a relative contribution has no meaning for a task that is unlearned"}

    def forward(self, statistic: Tensor, losses: Tensor) -> Tensor:
        """Weights (K,) >= 0. Raises MtlError where the Gramian is not finite."""
        options = self.options
        _, found = cosines(checked(statistic, self.name))
        before = self.lengths.numpy(force=True)
        running = np.where(before > 0, options.ema * before + (1 - options.ema) * found, found)
        running = np.where(found > 0, running, before)
        self.lengths = answer(running, self.lengths)
        values = losses.numpy(force=True).astype(np.float64)
        usable = found > 0
        if options.normalise == "loss":
            if (usable & (values < SMALLEST_LOSS)).any():
                self.count("a loss was not positive: its task had no weight")
            usable &= values >= SMALLEST_LOSS
        elif (values < 0).any():
            self.count("a loss was negative: it counted as 0")
        tasks = np.flatnonzero(usable)
        weights = np.zeros(len(found))
        if len(found) == 1:
            weights[tasks] = 1
        elif len(tasks):
            weights[tasks] = self._weights(running[tasks], np.maximum(values[tasks], 0), tasks)
        return answer(weights, statistic)

    def _weights(self, lengths: Array, losses: Array, tasks: NDArray[np.int64]) -> Array:
        """Weights of the tasks whose gradients are not zero."""
        options, num = self.options, len(lengths)
        floored = np.maximum(losses, SMALLEST_LOSS)
        contribution = losses / lengths if options.ratio == "loss_over_norm" else lengths / floored
        median = float(np.median(contribution))
        if median > 0:
            contribution = np.minimum(contribution, LARGEST * median)
        if options.form == "penalty":
            gap = (contribution - contribution.mean()) / (lengths if options.normalise == "none" else 1)
            factors = np.maximum(1 + 2 * options.strength / num * gap, 0)
        elif options.form == "chi2":
            factors = num * chi_square_worst_case(contribution, options.rho)
        else:
            logits = self.logits.numpy(force=True).copy()
            found = entropy_tempered(logits[tasks] + options.strength * contribution, options.rho)
            factors = num * np.exp(found)
            logits[tasks] = found + np.logaddexp.reduce(logits[tasks])  # tasks that stay out keep their share
            self.logits = answer(logits, self.logits)
        scales = {"gradient": lengths.mean() / lengths, "loss": 1 / floored, "none": np.ones(num)}
        weights: Array = factors * scales[options.normalise]
        return weights
