"""HydaLearn: highly dynamic task weighting."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from mtlcli.errors import OptionError
from mtlcli.options import Options as AnyOptions
from mtlcli.registry import loss_weightings
from mtlcli.search import searched, searched_among
from mtlcli.weighting.base import LossWeighting, Params, StepView, Trait
from mtlcli.weighting.main_task import index_of, inner, restricted


@loss_weightings.register("hydalearn")
class HydaLearn(LossWeighting):
    """Weigh each task by how much a step along its gradient alone would improve the main task.

    Formula: w_i / w_m = d_i / d_m, d_i = M(theta) - M(theta - step g_i) with the main task m's loss M and the gradient
        g_i of task i over the shared parameters (simulated), or d_i = step <grad M, g_i>, which is its limit for small
        steps (linearised). w = d+ / sum(d+) with d+ = max(d, 0) (simplex), K times that (sum_k), or w_m = 1 and w_i =
        d_i / d_m of at most max_ratio (anchored). With `negative: keep`, d takes the place of d+, and |d| in sums.
    Reads: the losses, their gradients over the shared parameters, and for simulated steps the main task's loss or
        metric at K + 1 points; with `batch: held_out` on held-out rows.
    Cost: K backward passes over the shared part and K gradients of it in memory; simulated, K + 1 forward passes a
        step; linearised with `batch: held_out`, one more forward and backward pass.
    Source: Verboven et al., HydaLearn: Highly Dynamic Task Weighting for Multitask Learning with Auxiliary Tasks,
        Applied Intelligence 2023, arXiv 2008.11643: the ratio rule, fake steps along single tasks, the main task's loss
        or metric as the gain, new weights for every batch. No code of the method is public.
    Deviations: what the source leaves open is inferred. Inference: plain gradient steps of the size `step`, whatever
        the optimiser, for Adam's learning rate would be too short for a step along a badly scaled task to fail; gains
        on the training batch; negative gains count as none (negative: keep lets them stay, divided by the sum of their
        sizes); where no gain of the main task's own step shows, the main task trains alone (counted); heads learn from
        their own raw losses, since a head of weight 0 would never train and its later gains would mean nothing. Gains
        that are not finite count as none, and where the main task's is not, or it has no label in the batch (its loss
        is 0), the weights of the step before stay (counted).
    """

    class Options(AnyOptions):
        """Options of HydaLearn."""

        main: str | None = Field(None, description="Name of the task to serve; the first one if left out.")
        mode: Literal["simulated", "linearised"] = Field("simulated", description="How gains are measured.")
        step: float = Field(
            0.1,
            gt=0,
            description="Size of the simulated steps, which are plain gradient descent.",
            json_schema_extra=searched(0.01, 1.0, log=True),
        )
        heads: Literal["unweighted", "weighted"] = Field("unweighted", description="What the task heads learn from.")
        normalise: Literal["simplex", "anchored", "sum_k"] = Field(
            "simplex",
            description="Weights sum to 1, the main task's is 1, or they sum to the number of tasks.",
            json_schema_extra=searched_among("simplex", "anchored", "sum_k"),
        )
        negative: Literal["clamp", "keep"] = Field(
            "clamp", description="Tasks that harm the main one: weight 0, or a negative one, which unlearns them."
        )
        gain: Literal["loss", "metric"] = Field("loss", description="What of the main task should improve.")
        batch: Literal["train", "held_out"] = Field("train", description="Where gains are measured.")
        max_ratio: float = Field(
            10.0, gt=0, description="`normalise: anchored`: largest weight of a task other than the main one."
        )

    takes_gradients = True
    weights: Tensor  # (K,)  of the last step

    @classmethod
    def needs_with(cls, options: Any) -> frozenset[Literal["held_out"]]:
        """Held-out rows where gains are measured on them."""
        return frozenset({"held_out"}) if options.batch == "held_out" else frozenset()

    @classmethod
    def traits_with(cls, options: Any) -> frozenset[Trait]:
        """Negative weights where they are kept."""
        return frozenset({"negative_weights"}) if options.negative == "keep" else frozenset()

    def __init__(self, options: AnyOptions, tasks: tuple[str, ...], rng: torch.Generator) -> None:
        super().__init__(options, tasks, rng)
        if self.options.gain == "metric" and self.options.mode == "linearised":
            raise OptionError("gain", "a metric has no gradient: metric needs mode: simulated")
        self.main = index_of(self.options.main, tasks, "main")
        self.heads = self.options.heads
        even = 1 / len(tasks) if self.options.normalise == "simplex" else 1.0
        self.register_buffer("weights", torch.full((len(tasks),), even))

    def forward(self, step: StepView) -> Tensor:
        """The losses (K,), each times its weight."""
        if len(self.tasks) > 1:
            gradients = [restricted(step.gradient(loss, at=step.shared), step.shared) for loss in step.roots]
            gains = (
                self._simulated(gradients, step) if self.options.mode == "simulated" else self._slopes(gradients, step)
            )
            if gains[self.main].isfinite() and float(step.losses[self.main].detach()) != 0:
                self.weights = self._weights_of(gains).to(self.weights)
            else:
                self.count("the main task's gain is not known: the last weights were used")
        else:
            self.weights = torch.ones_like(self.weights)
        return self.weights * step.losses

    @torch.no_grad()
    def _simulated(self, gradients: list[Params], step: StepView) -> Tensor:
        """Gains (K,) of a step along each of `gradients`."""
        before = self._main(step, None)
        if self.options.gain == "loss" and before == 0:  # no label of the main task in that batch
            before = torch.full_like(before, torch.nan)
        after = [self._main(step, step.move(gradient, -self.options.step)) for gradient in gradients]
        return torch.stack([before - there for there in after]).cpu()

    def _main(self, step: StepView, at: Params | None) -> Tensor:
        """What the main task has at `at`, the lower the better; nan where undefined."""
        batch = self.options.batch
        if self.options.gain == "loss":
            return step.probe(at, batch).per_task[self.main].double()
        score = step.score(self.tasks[self.main], at, batch)
        value = torch.tensor(torch.nan if score is None else -score, dtype=torch.float64)
        with torch.enable_grad():
            return step.mean_over_ranks(value).double()

    def _slopes(self, gradients: list[Params], step: StepView) -> Tensor:
        """First-order gains (K,)."""
        target = gradients[self.main]
        if self.options.batch == "held_out":
            loss = step.probe(batch="held_out").per_task[self.main]
            if loss == 0:  # no label of the main task in that batch
                loss = loss * torch.nan
            target = restricted(step.gradient(loss, at=step.shared), step.shared)
        size: float = self.options.step
        return size * torch.stack([inner(target, gradient) for gradient in gradients]).cpu()

    def _weights_of(self, gains: Tensor) -> Tensor:
        """Gains (K,) -> weights (K,)."""
        options, main = self.options, self.main
        gains = gains.nan_to_num(0, 0, 0)
        if options.negative == "clamp":
            gains = gains.clamp(min=0)
        total = float(len(gains)) if options.normalise == "sum_k" else 1.0
        if gains[main] <= 0:
            self.count("no gain along the main task's own gradient: it trained alone")
            return total * torch.eye(len(gains), dtype=gains.dtype)[main]
        if (gains < 0).any():
            self.count("a negative weight was used")
        gains = gains / gains.abs().max()  # ratios of very small gains must not vanish
        if options.normalise != "anchored":
            return total * gains / gains.abs().sum()
        ratios = (gains / gains[main]).clamp(-options.max_ratio, options.max_ratio)
        ratios[main] = 1
        return ratios
