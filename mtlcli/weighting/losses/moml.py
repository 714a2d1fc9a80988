"""Multi-objective meta learning."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from mtlcli.options import Options as AnyOptions
from mtlcli.registry import loss_weightings
from mtlcli.search import searched
from mtlcli.weighting.base import StepView
from mtlcli.weighting.losses._bilevel import Bilevel, as_params, gradients
from mtlcli.weighting.solvers import min_norm_point


@loss_weightings.register("moml")
class MOML(Bilevel):
    """Learn the weights so that a training step with them lowers every task's held-out loss.

    Formula: K sum_k s_k L_k, s = softmax(a). Before each step theta' = theta - inner_lr sum_k s_k grad L_k(theta), and
        Adam moves a along J_softmax' sum_t c_t h_t, where h_tk = d V_t(theta') / d s_k = -inner_lr <grad V_t(theta'),
        grad L_k(theta)> with the held-out losses V. The c are those of the shortest convex combination of the slopes
        with respect to a (min_norm), or all 1 (even).
    Reads: the losses, their gradients over all parameters, and the same of the held-out losses
        (`data.held_out`) at theta'.
    Cost: K backward passes, and a forward and K backward passes on the held-out batch; 2 K gradients in memory.
    Source: Ye et al., Multi-Objective Meta Learning, NeurIPS 2021, arXiv 2102.07121; code Baijiong-Lin/MOML, and the
        faster form for one inner step in Baijiong-Lin/FORUM (`train_MOML`), which is followed.
    Deviations: the weights sum to K in the step that is taken, so that the learning rate means what it means for equal
        weights; in the code they sum to 1. That code trains the model on both batches, here on the training batch.
        The shortest combination is found exactly; held-out losses that are 0 for want of labels stay out of it. Where a
        slope is not finite, the weights stay (counted).
    """

    class Options(AnyOptions):
        """Options of multi-objective meta learning."""

        inner_lr: float = Field(
            0.1,
            gt=0,
            description="Size of the step whose held-out losses are lowered.",
            json_schema_extra=searched(0.01, 1.0, log=True),
        )
        outer_lr: float = Field(
            1e-3,
            gt=0,
            description="Learning rate of the logits of the weights.",
            json_schema_extra=searched(1e-4, 0.1, log=True),
        )
        aggregate: Literal["min_norm", "even"] = Field("min_norm", description="How held-out losses are combined.")

    def forward(self, step: StepView) -> Tensor:
        """The losses (K,), each times its weight."""
        size: float = self.options.inner_lr
        trained = gradients(step, step.roots)
        there = step.move(as_params(self.shares().to(trained) @ trained, step), -size)
        probed = step.probe(there, "held_out")
        held_out = gradients(step, probed.roots, there)[probed.per_task.detach() != 0]
        slopes = -size * held_out.double() @ trained.double().T
        self.descend(self._combined(slopes) if torch.isfinite(slopes).all() else self.logits * torch.nan)
        return len(self.tasks) * self.shares() * step.losses

    def _combined(self, slopes: Tensor) -> Tensor:
        """Slopes (T, K) of T held-out losses with respect to the shares -> one slope (K,)."""
        if self.options.aggregate == "even" or not len(slopes):
            return slopes.sum(0)
        shares = self.shares().to(slopes)
        rows = shares * (slopes - slopes @ shares[:, None])
        scale = rows.abs().max()
        if scale == 0:
            return slopes[0]
        rows = rows / scale
        weights, exact = min_norm_point((rows @ rows.T).cpu().numpy())
        if not exact:
            self.count("min-norm solve stopped early, its last point was used")
        return torch.from_numpy(weights).to(slopes) @ slopes
