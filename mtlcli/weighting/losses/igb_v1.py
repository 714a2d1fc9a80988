"""Improvable gap balancing, version 1."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from mtlcli.options import Options as AnyOptions
from mtlcli.registry import loss_weightings
from mtlcli.search import searched
from mtlcli.weighting.base import LossWeighting, StepView
from mtlcli.weighting.losses._values import Base, finite, log_of, weights_of


@loss_weightings.register("igb_v1")
class IGBv1(LossWeighting):
    """Weigh a task up by how much it can still improve: its loss relative to what it was early in training.

    Formula: sum_k w_k log L_k, w = K softmax(L / D), D_k = mean training loss of task k over the epoch `base_epoch`,
        set once; w = 1 until that epoch is over.
    Reads: the losses, which should be positive, and the epoch.
    Cost: 3 K numbers of state.
    Source: Dai, Fei & Lu, Improvable Gap Balancing for Multi-Task Learning, UAI 2023, arXiv 2307.15429; code
        YanqiDai/IGB4MTL, `ImprovableGapBalancing_v1`, which is followed.
    Deviations: a loss below 1e-12, as without a label in the batch, stays out of D and of the softmax, and K is the
        number of the others then; it is counted unless it is 0, and the code returns infinities. Steps with non-finite
        losses are left out of D and reuse the weights of the step before.
    """

    scale_free = True

    class Options(AnyOptions):
        """Options of IGB v1."""

        base_epoch: int = Field(
            1,
            ge=0,
            description="The epoch whose mean losses are the base, counted from 0.",
            json_schema_extra=searched(0, 3),
        )

    weights: Tensor  # (K,)  of the last step

    @classmethod
    def begins(cls, options: Any) -> int:
        """The one after the base."""
        return int(options.base_epoch + 1)

    def __init__(self, options: AnyOptions, tasks: tuple[str, ...], rng: torch.Generator) -> None:
        super().__init__(options, tasks, rng)
        self.register_buffer("weights", torch.ones(len(tasks)))
        self.base = Base(len(tasks), self.options.base_epoch)
        self.keep("base", self.base)

    def forward(self, step: StepView) -> Tensor:
        """Logs (K,) of the losses, each times its weight."""
        losses = step.losses.tolist()
        if finite(losses):
            self.base.add(losses, step.clock.epoch)
            if step.clock.epoch > self.options.base_epoch:
                self.weights = step.losses.new_tensor(weights_of(self.base.over(losses, losses)))
        else:
            self.count("non-finite losses: the last weights were used")
        return self.weights * log_of(step.losses, self)
