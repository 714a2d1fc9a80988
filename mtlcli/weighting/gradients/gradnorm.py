"""Gradient normalisation."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor, nn

from mtlcli.options import Options as AnyOptions
from mtlcli.registry import gradient_weightings
from mtlcli.search import searched
from mtlcli.weighting.base import GradientWeighting, Trait
from mtlcli.weighting.solvers import answer, checked, cosines

SMALLEST_WEIGHT = 1e-4
SMALLEST_LOSS = 1e-12


@gradient_weightings.register("gradnorm")
class GradNorm(GradientWeighting):
    """Learn weights that give every task a gradient of the same length, longer for tasks that train slowly.

    Formula: n_k = w_k ||g_k||, N = mean(n), r_k = (L_k / L_k at the first step) / the mean of these ratios; Adam lowers
        sum_k |n_k - N r_k^alpha| in w, with N r^alpha held fixed (equation 2); then w is rescaled to sum K;
        direction = sum_k w_k g_k with the weights from before that update.
    Reads: the Gramian, of which the diagonal suffices, and the losses, which should be positive.
    Cost: K gradients; 4 K numbers of state.
    Source: Chen et al., GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask Networks, ICML
        2018, arXiv 1711.02257; no code by the authors; LibMTL and SamsungLabs/MTL were compared. Heads train on the
        weighted losses, as in the paper.
    Deviations: gradients at whatever parameters `wrt` names; the paper takes the last shared layer's. The slope is
        divided by N, so that the scale of the losses does not matter to Adam, whose rate is inference: LibMTL trains
        the weights in the model's optimiser. Weights never fall below about 1e-4. A
        task whose loss is 0, as without a label in the batch, stays out of both means and gets its base later; a
        negative loss counts as 1e-12 and is counted. Losses are those that this slot receives: with logs of losses in
        the other slot, r follows the weights alone.
    """

    class Options(AnyOptions):
        """Options of GradNorm."""

        alpha: float = Field(
            1.5,
            ge=0,
            description="How much longer the gradients of slow tasks should be.",
            json_schema_extra=searched(0.1, 3.0),
        )
        lr: float = Field(
            0.025, gt=0, description="Learning rate of the weights.", json_schema_extra=searched(1e-3, 0.1, log=True)
        )

    reads = "gramian"
    heads = "weighted"
    first: Tensor  # (K,)  first positive loss of each task; 0 before it

    def __init__(self, options: Options, tasks: tuple[str, ...], rng: torch.Generator) -> None:
        super().__init__(options, tasks, rng)
        self.register_buffer("first", torch.zeros(len(tasks), dtype=torch.float64))
        self.weights = nn.Parameter(torch.ones(len(tasks), dtype=torch.float64))
        self.adam = torch.optim.Adam([self.weights], lr=self.options.lr)
        self.keep("adam", self.adam)

    @classmethod
    def refuses(cls, options: AnyOptions) -> Mapping[Trait, str]:
        """Negative weights."""
        return {"negative_weights": "a rate of training has no meaning for a task that is unlearned"}

    @torch.no_grad()
    def forward(self, statistic: Tensor, losses: Tensor) -> Tensor:
        """Weights (K,) > 0. Raises MtlError where the Gramian is not finite."""
        weights = self.weights.clone()
        lengths = answer(cosines(checked(statistic, self.name))[1], weights)
        if (losses < 0).any():
            self.count("a loss was negative: it counted as 1e-12")
        there = (losses != 0).to(weights.device)
        positive = losses.to(weights).clamp(min=SMALLEST_LOSS)
        self.first = torch.where((self.first == 0) & (losses.to(weights) > SMALLEST_LOSS), positive, self.first)
        ratio = torch.where(self.first > 0, positive / self.first, 1)
        sizes = weights * lengths
        mean = sizes[there].mean()
        if mean > 0:
            target = mean * (ratio / ratio[there].mean()) ** self.options.alpha
            self.weights.grad = (sizes - target).sign() * lengths / mean
            self.adam.step()
            self.weights.grad = None
            self.weights.clamp_(min=SMALLEST_WEIGHT)
            self.weights.mul_(len(weights) / self.weights.sum())
        return weights.to(statistic)
