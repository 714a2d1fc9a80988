"""Gradient sign dropout."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from mtlcli.options import Options as AnyOptions
from mtlcli.registry import gradient_weightings
from mtlcli.search import searched
from mtlcli.weighting.base import GradientWeighting


@gradient_weightings.register("graddrop")
class GradDrop(GradientWeighting):
    """Pick a sign for every entry of the update at random and drop what the tasks pull the other way.

    Formula: purity p = 1/2 (1 + sum_k g_k / sum_k |g_k|) (equation 1), u ~ U[0, 1) per entry; entries g_k > 0 are kept
        where p > u, entries g_k < 0 where not; direction = sum_k (leak + (1 - leak) keep_k) g_k (Algorithm 1).
    Reads: the Jacobian, column by column.
    Cost: K gradients, one pass over them.
    Source: Chen et al., Just Pick a Sign: Optimizing Deep Multitask Models with Gradient Sign Dropout, NeurIPS 2020,
        arXiv 2010.06808; code tensorflow/lingvo, lingvo/core/graddrop.py. Heads keep their own gradients.
    Deviations: the paper works on the gradient of an activation, multiplied by the activation's sign and summed over
        the batch; here the signs are those of whatever gradients are handed in, as in SimplexLab/TorchJD. One `leak`
        serves all tasks; the paper has one per task. Lingvo's default rescaling of the result is left out: it
        multiplies by the new norm over the old, which does not keep the norm that it is named after.
    """

    class Options(AnyOptions):
        """Options of GradDrop."""

        leak: float = Field(
            0.0,
            ge=0,
            le=1,
            description="Share of the dropped entries that passes nevertheless.",
            json_schema_extra=searched(0.0, 0.9),
        )

    reads = "columns"

    def forward(self, statistic: Tensor, losses: Tensor) -> Tensor:
        """Direction (P,)."""
        total, rise = statistic.sum(0), statistic.clamp(min=0).sum(0)
        fall = total - rise
        draw = torch.rand(rise.shape, generator=self.rng, device=self.rng.device).to(rise.device)
        up = rise > draw * (rise - fall)  # p > u without the division
        # Mixing by 0 and 1, since selecting by a random mask stalls a CPU.
        return torch.lerp(fall, rise, up.to(rise)).lerp_(total, self.options.leak)
