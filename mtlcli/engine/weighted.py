"""Weighted losses, before their backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


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
