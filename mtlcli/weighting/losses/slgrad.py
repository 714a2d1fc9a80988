"""SLGrad: sample-level weighting by gradients."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from mtlcli.options import Options as AnyOptions
from mtlcli.registry import loss_weightings
from mtlcli.search import searched_among
from mtlcli.weighting.base import LossWeighting, Params, StepView
from mtlcli.weighting.main_task import index_of, norm, restricted


@loss_weightings.register("slgrad")
class SLGrad(LossWeighting):
    """Weigh each sample of each task by how well its gradient serves the main task on held-out data.

    Formula: sum_k sum_e w_ke l_ke, w = s+ / sum(s+) over all tasks and samples, s+ = max(s, 0),
        s_ke = <grad l_ke, v>, v = gradient of the main task's held-out loss, both over the shared parameters. The K B
        inner products come from one more forward pass: s_ke = |v| (l_ke(theta) - l_ke(theta - e v / |v|)) / e, with
        e = `distance`.
    Reads: per-sample losses, the main task's loss on a held-out batch (`data.held_out`) and its gradient.
    Cost: two forward passes (one of them held out) and a backward pass over the shared part; with `look_ahead` one more
        of each; without, one more where the step's own losses cannot be compared with them
        (bfloat16; dropout in a closure).
    Source: Grégoire, Verboven, Guerry & Ginis, Sample-Level Weighting for Multi-Task Learning with Auxiliary Tasks,
        Applied Intelligence 2024, arXiv 2306.04519; code vub-dl/SLGrad.
    Deviations: the code takes each sample's gradient; a finite difference of all losses is the same up to the curvature
        along a step of length `distance` (inference), and BatchNorm adds how samples move each other. The code divides
        by the batch size although the weights sum to 1 already; here they just do. It measures after a look-ahead step
        of the optimiser that it does not undo, so that each batch steps twice; here scores are taken where the step
        starts, or with `look_ahead` after a plain gradient step of the learning rate's size, which leaves no trace.
        That step uses the weights of the code's last batch, sample by sample, which belong to other samples; here each
        task's share of them (inference). A sample whose loss or score is not finite has weight 0, like one without a
        label. The loss's own derivative times 0 is still NaN where that is not finite, as it is for a label that is
        NaN: such labels must be masked before the loss, as the trainer does. Losses that are not finite are counted.
        Where no sample serves the main task, nothing is learned in that step (counted).
    """

    class Options(AnyOptions):
        """Options of SLGrad."""

        main: str | None = Field(None, description="Name of the task to serve; the first one if left out.")
        distance: float = Field(
            1e-3,
            gt=0,
            description="Length of the step that scores are measured by.",
        )
        look_ahead: bool = Field(
            False,
            description="Measure after a gradient step that is not taken.",
            json_schema_extra=searched_among(False, True),
        )
        normalise: Literal["simplex", "sum_k"] = Field(
            "simplex",
            description="Weights of a batch sum to 1, or to the number of tasks.",
            json_schema_extra=searched_among("simplex", "sum_k"),
        )
        heads: Literal["weighted", "unweighted"] = Field("weighted", description="What the task heads learn from.")

    needs = frozenset({"held_out"})
    takes_gradients = True
    traits = frozenset({"sample_weights"})
    shares: Tensor  # (K,)  each task's part of the last weights

    def __init__(self, options: AnyOptions, tasks: tuple[str, ...], rng: torch.Generator) -> None:
        super().__init__(options, tasks, rng)
        self.main = index_of(self.options.main, tasks, "main")
        self.heads = self.options.heads
        self.register_buffer("shares", torch.full((len(tasks),), 1 / len(tasks)))

    def forward(self, step: StepView) -> Tensor:
        """The sums (K,) of each task's weighted samples."""
        losses = step.sample_losses
        known = losses.detach().isfinite()
        if not known.all():
            self.count("a sample's loss is not finite: it has weight 0, but NaN labels must be masked before the loss")
        scores = torch.where(known, self._scores(step), 0).nan_to_num(0, 0, 0).clamp(min=0)
        total = step.mean_over_ranks(scores.sum())  # so that the mean of the ranks' gradients is the batch's
        if total > 0:
            weights = scores / total
            if self.options.look_ahead:
                self.shares = torch.stack([step.mean_over_ranks(part) for part in weights.sum(1)]).to(self.shares)
            if self.options.normalise == "sum_k":
                weights = len(weights) * weights
        else:
            self.count("no sample served the main task: nothing was learned")
            weights = torch.zeros_like(scores)
        return (weights.to(losses) * torch.where(known, losses, 0)).sum(1)

    def _scores(self, step: StepView) -> Tensor:
        """Inner products (K, B) in float64, divided by |v|."""
        start: Params = {}
        there = None
        if self.options.look_ahead:
            start = {name: -step.lr * value for name, value in step.gradient((self.shares * step.losses).sum()).items()}
            there = step.move(start, 1)
        target = step.probe(there, "held_out").per_task[self.main]
        v = restricted(step.gradient(target, at=there or step.shared), step.shared)
        length = norm(v)
        if not (length > 0 and length.isfinite()):
            return torch.zeros_like(step.sample_losses, dtype=torch.float64)
        unit = {name: (value / length).to(value) for name, value in v.items()}
        distance: float = self.options.distance
        back = {**start, **{name: start.get(name, 0) - distance * value for name, value in unit.items()}}
        with torch.no_grad():
            after = step.probe(step.move(back, 1)).per_sample
            before = step.unmoved().per_sample if there is None else step.probe(there).per_sample
            return (before.double() - after.double()) / distance
