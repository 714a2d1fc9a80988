"""Gradient vaccine."""

from __future__ import annotations

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from mtlcli.options import Options as AnyOptions
from mtlcli.registry import gradient_weightings
from mtlcli.search import searched
from mtlcli.weighting.base import GradientWeighting
from mtlcli.weighting.gradients._state import random_orders
from mtlcli.weighting.solvers import ROUNDING, answer, checked, cosines

NARROWEST = 1e-4  # smallest sine of the angle that a gradient is turned towards: a correction of at most 1e4 its size


@gradient_weightings.register("gradvac")
class GradVac(GradientWeighting):
    """Turn each gradient towards the others until they agree as much as they usually do.

    Formula: for each task i, h_i = g_i; then for every other task j in random order, with phi = cos(h_i, g_j): where
        phi < t_ij, h_i <- h_i + ||h_i|| (t sqrt(1 - phi^2) - phi sqrt(1 - t^2)) / (||g_j|| sqrt(1 - t^2)) g_j, after
        which the cosine is t_ij; in any case t_ij <- (1 - beta) t_ij + beta phi; direction = sum_i h_i (Algorithm 1).
        t starts at 0.
    Reads: the Gramian; h_i stays a combination of the gradients. The weights have no fixed sum; without corrections
        they are 1 each.
    Cost: K gradients, K steps on K x K numbers; K x K numbers of state.
    Source: Wang et al., Gradient Vaccine: Investigating and Improving Multi-task Optimization in Massively Multilingual
        Models, ICLR 2021, arXiv 2010.05874; no code by the authors. LibMTL and SimplexLab/TorchJD were compared. Heads
        receive the gradient of the summed losses, as in both.
    Deviations: one target per pair of tasks for all shared parameters together; the paper also keeps one per layer.
        Targets move at every step, as in Algorithm 1 and in TorchJD; LibMTL moves them only where it corrected. beta is
        that of those implementations, far above what the paper's own runs are said to use (0.01). Targets are never
        nearer to a cosine of 1 than a sine of 1e-4, and pairs with a zero gradient, or one of which nothing is left,
        are left alone.
    """

    class Options(AnyOptions):
        """Options of GradVac."""

        beta: float = Field(
            0.5,
            ge=0,
            le=1,
            description="How fast the target cosines follow the cosines found.",
            json_schema_extra=searched(0.01, 1.0, log=True),
        )

    reads = "gramian"
    targets: Tensor  # (K, K)  running cosine of task i's turned gradient with task j's

    def __init__(self, options: Options, tasks: tuple[str, ...], rng: torch.Generator) -> None:
        super().__init__(options, tasks, rng)
        self.register_buffer("targets", torch.zeros(len(tasks), len(tasks), dtype=torch.float64))

    def forward(self, statistic: Tensor, losses: Tensor) -> Tensor:
        """Weights (K,). Raises MtlError where the Gramian is not finite."""
        cosine, lengths = cosines(checked(statistic, self.name))
        num, beta, present = len(lengths), self.options.beta, lengths > 0
        # One row per round: whom every task meets, and the index of that pair. Each pair meets once, and none itself.
        orders = random_orders(num, self.rng)
        rounds = orders[orders != np.arange(num)[:, None]].reshape(num, -1).T
        pairs = num * np.arange(num) + rounds
        known = self.targets.numpy(force=True)
        targets = known.take(pairs) * present[rounds]
        cotangents = targets / np.maximum(np.sqrt(1 - targets**2), NARROWEST)
        # In units of ||g_i||: o = <h_i, u_j>, ||h_i||^2, and what of u_j is added. With phi = o / ||h_i|| the addition
        # of the formula is t / sqrt(1 - t^2) sqrt(||h_i||^2 - o^2) - o, which is positive where phi < t.
        products, square = cosine.copy(), present.astype(np.float64)
        overlaps, rests, turns = np.empty((3, *rounds.shape))
        for others, pair, cotangent, overlap, rest, turn in zip(
            rounds, pairs, cotangents, overlaps, rests, turns, strict=True
        ):
            products.take(pair, out=overlap, mode="clip")
            np.abs(square - overlap * overlap, out=rest)  # only rounding takes it below zero
            np.maximum(cotangent * np.sqrt(rest) - overlap, 0.0, out=turn)
            products += turn[:, None] * cosine.take(others, 0)
            along = overlap + turn
            square = rest + along * along
        added, found = np.zeros(num * num), np.zeros(num * num)
        squares = rests + overlaps**2
        added[pairs], found[pairs] = turns, overlaps / np.maximum(np.sqrt(squares), 1e-150)
        met = np.outer(present, present)
        met[np.arange(num), rounds] &= squares > ROUNDING  # what is left of h_i is noise, and so are its cosines
        np.fill_diagonal(met, False)
        agreement = np.clip(found.reshape(num, num), -1, 1)
        moved = np.where(met, (1 - beta) * known + beta * agreement, known)
        self.targets = torch.from_numpy(moved).to(self.targets)
        lengths[~present] = 1
        return answer(1 + (lengths @ added.reshape(num, num)) / lengths, statistic)
