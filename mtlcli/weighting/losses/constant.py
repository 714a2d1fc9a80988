"""Weights chosen by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from mtlcli.errors import OptionError, did_you_mean
from mtlcli.options import Options as AnyOptions
from mtlcli.registry import loss_weightings
from mtlcli.search import Search, declared, searched
from mtlcli.weighting.base import LossWeighting, StepView


@loss_weightings.register("constant")
class Constant(LossWeighting):
    """Multiply each loss by a number of your own that never changes.

    Formula: sum_k w_k L_k.
    Reads: the losses.
    Cost: none.
    Source: static linear scalarisation; a strong baseline when the numbers are tuned (Xin et al., Do Current Multi-Task
        Optimization Methods in Deep Learning Even Help?, NeurIPS 2022).
    Deviations: the numbers are used as given; they need not sum to K.
    """

    class Options(AnyOptions):
        """Options of constant weights."""

        weights: dict[str, Annotated[float, Field(ge=0)]] = Field(
            description="Weight of every task, by its name.", json_schema_extra=searched(0.1, 10.0, log=True)
        )

    honest_baseline = True
    weights: Tensor  # (K,)

    @classmethod
    def search_space(cls, tasks: Sequence[str]) -> Mapping[str, Search]:
        """Each task's weight, from equal ones on."""
        each = replace(declared(cls.Options)["weights"], start=1.0)
        return {f"weights.{task}": each for task in tasks}

    def __init__(self, options: AnyOptions, tasks: tuple[str, ...], rng: torch.Generator) -> None:
        super().__init__(options, tasks, rng)
        given: dict[str, float] = self.options.weights
        for name in given:
            if name not in tasks:
                raise OptionError("weights", f"no task '{name}'{did_you_mean(name, tasks)}; tasks: {', '.join(tasks)}")
        missing = [task for task in tasks if task not in given]
        if missing:
            raise OptionError("weights", f"should name every task; found no weight for {', '.join(missing)}")
        # Not part of the state: the options say it already, and a checkpoint must not contradict them.
        self.register_buffer("weights", torch.tensor([given[task] for task in tasks]), persistent=False)

    def forward(self, step: StepView) -> Tensor:
        """The losses (K,), each times its weight."""
        return self.weights * step.losses
