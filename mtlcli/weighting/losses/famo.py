"""Fast adaptive multitask optimisation."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from mtlcli.errors import OptionError, did_you_mean
from mtlcli.options import Options as AnyOptions
from mtlcli.registry import loss_weightings
from mtlcli.search import searched
from mtlcli.weighting.base import LossWeighting, StepView


@loss_weightings.register("famo")
class FAMO(LossWeighting):
    """Lower all losses at the same relative rate by watching what each step does to them.

    Formula: sum_k (z_k / c) log D_k, z = softmax(logits), D_k = L_k - min_k + 1e-8, c = sum_k z_k / D_k, so that the
        factors on the losses' own gradients sum to 1; after the step, Adam moves the logits along
        J_softmax' (log D_before - log D_after), away from the tasks that improved most (Algorithm 1).
    Reads: the losses, and after the step the losses of the same batch again.
    Cost: one more forward pass per step, and another where the step's own losses cannot be compared with it (bfloat16;
        dropout in a closure); 3 K numbers of state.
    Source: Liu et al., FAMO: Fast Adaptive Multitask Optimization, NeurIPS 2023, arXiv 2306.03792; code
        Cranial-XIX/FAMO.
    Deviations: a loss that is not above its minimum, such as 0 where a batch has no labels of the task, has no gradient
        and no share in c (counted), and D = 1e-8 in the move of the logits; the code takes the log of whatever is left,
        and with D = 1e-8 in c no other task would train in that step. The code also shortens the shared gradient to the
        norm 1 by default: that belongs to the optimiser's clipping here.
    """

    class Options(AnyOptions):
        """Options of FAMO."""

        lr: float = Field(
            0.025, gt=0, description="Learning rate of the logits.", json_schema_extra=searched(1e-3, 0.1, log=True)
        )
        weight_decay: float = Field(
            1e-3,
            ge=0,
            description="Pull of the logits towards equal weights.",
            json_schema_extra=searched(1e-5, 0.1, log=True),
        )
        min_losses: dict[str, float] = Field({}, description="Lowest loss within reach, by task; 0 where not named.")

    min_losses: Tensor  # (K,)

    def __init__(self, options: AnyOptions, tasks: tuple[str, ...], rng: torch.Generator) -> None:
        super().__init__(options, tasks, rng)
        lowest: dict[str, float] = self.options.min_losses
        for name in lowest:
            if name not in tasks:
                where = f"no task '{name}'{did_you_mean(name, tasks)}; tasks: {', '.join(tasks)}"
                raise OptionError("min_losses", where)
        self.register_buffer("min_losses", torch.tensor([lowest.get(task, 0.0) for task in tasks]), persistent=False)
        self.logits = nn.Parameter(torch.zeros(len(tasks)))
        chosen = self.options
        self.adam = torch.optim.Adam([self.logits], lr=chosen.lr, weight_decay=chosen.weight_decay, fused=True)
        self.keep("adam", self.adam)
        self.before: Tensor | None = None

    def learnable(self) -> list[nn.Parameter]:
        """None: the logits have an Adam of their own."""
        return []

    def forward(self, step: StepView) -> Tensor:
        """Logs (K,) of the losses above their minima, each times its weight."""
        logs = self._log_gap(step.losses)
        now = step.unmoved()
        self.before = logs.detach() if now.roots is step.roots else self._log_gap(now.per_task.detach())
        # 1e-8 in the place of a gap would outweigh all others in the sum.
        share = self.logits.detach().softmax(0) * (step.losses.detach() > self.min_losses)
        return share / (share / logs.detach().exp()).sum().clamp(min=1e-30) * logs

    @torch.no_grad()
    def after_step(self, step: StepView) -> None:
        """Measure the losses again and move the logits."""
        assert self.before is not None
        gain = self.before - self._log_gap(step.probe().per_task)
        if not torch.isfinite(gain).all():
            self.count("non-finite losses after the step: the weights stayed")
            return
        share = self.logits.softmax(0)
        self.logits.grad = (share * (gain - share @ gain.to(share))).to(self.logits)
        self.adam.step()
        self.logits.grad = None

    def _log_gap(self, losses: Tensor) -> Tensor:
        gap = losses - self.min_losses
        if (gap <= 0).any():
            self.count("a loss was not above min_losses: no gradient through its log")
        return (gap.clamp(min=0) + 1e-8).log()
