"""Weighted losses, before their backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mtlcli.errors import MtlError
from mtlcli.weighting.base import LossWeighting


class Weighted(NamedTuple):
    """Where a backward pass starts, and with which weights."""

    roots: Sequence[Tensor]  # K losses (), or K tensors (B,) of per-sample losses
    pull: Sequence[Tensor]  # of the same shapes

    def times(self, weights: Tensor) -> Weighted:
        """Every task's part times its weight (K,)."""
        return Weighted(self.roots, [weight * cotangent for weight, cotangent in zip(weights, self.pull, strict=True)])

    def gradients(self, at: Sequence[Tensor], keep_graph: bool) -> tuple[Tensor | None, ...]:
        """Of the weighted sum, at every tensor of `at`; None where it is not reached."""
        return torch.autograd.grad(self.roots, at, self.pull, retain_graph=keep_graph, allow_unused=True)


def check_returned(weighting: LossWeighting, scaled: object, losses: Tensor) -> None:
    """Hold what a loss weighting made of `losses` (K,) to its contract. Raises MtlError where it breaks it."""
    name = weighting.name
    if not isinstance(scaled, Tensor) or scaled.shape != losses.shape or not scaled.requires_grad:
        found = type(scaled).__name__
        if isinstance(scaled, Tensor):
            found = f"shape {tuple(scaled.shape)}{'' if scaled.requires_grad else ' without a gradient'}"
        raise MtlError(
            f"loss weighting '{name}': forward should return {tuple(losses.shape)} differentiable losses; found {found}"
        )
    for j in range(len(losses)):
        (row,) = torch.autograd.grad(scaled[j], [losses], retain_graph=True, allow_unused=True)
        others = None if row is None else row.detach().clone().index_fill_(0, torch.tensor(j, device=row.device), 0)
        if others is not None and others.nan_to_num(0, 0, 0).any():  # a broken loss breaks the zeros, too
            raise MtlError(
                f"loss weighting '{name}': entry {j} of what forward returns should depend on losses[{j}] alone; "
                f"it also depends on losses[{int(others.abs().argmax())}]: detach the weights"
            )
