"""What loss weightings that learn a point on the simplex from held-out losses have in common."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtlcli.options import Options as AnyOptions
from mtlcli.weighting.base import LossWeighting, Params, StepView


class Bilevel(LossWeighting):
    """Weights softmax(logits), whose logits have an Adam of their own with the learning rate `options.outer_lr`."""

    needs = frozenset({"held_out"})
    takes_gradients = True

    def __init__(self, options: AnyOptions, tasks: tuple[str, ...], rng: torch.Generator) -> None:
        super().__init__(options, tasks, rng)
        self.logits = nn.Parameter(torch.full((len(tasks),), 1 / len(tasks)))
        self.adam = torch.optim.Adam([self.logits], lr=self.options.outer_lr)
        self.keep("adam", self.adam)

    def learnable(self) -> list[nn.Parameter]:
        """None: the logits have an Adam of their own."""
        return []

    def shares(self) -> Tensor:
        """Weights (K,) that sum to 1."""
        return self.logits.detach().softmax(0)

    def descend(self, slope: Tensor) -> None:
        """Move the logits against `slope` (K,), the gradient of what they should lower with respect to the shares.

        A slope too large for Adam is counted and changes nothing.
        """
        shares = self.shares().to(slope)
        if not descend(self.logits, shares * (slope - shares @ slope), self.adam):
            self.count("a slope of the held-out losses was not finite: the weights stayed")


def descend(parameter: nn.Parameter, slope: Tensor, adam: torch.optim.Adam) -> bool:
    """One step of `adam` on `parameter` with the gradient `slope`; False, and no step, where its square overflows."""
    gradient = slope.to(parameter)
    if not torch.isfinite(gradient.square()).all():
        return False
    parameter.grad = gradient
    adam.step()
    parameter.grad = None
    return True


def gradients(step: StepView, roots: Sequence[Tensor], at: Params | None = None) -> Tensor:
    """Gradients (K, P) of the K losses `roots` with respect to all parameters."""
    rows = (step.gradient(root, at) for root in roots)
    return torch.stack([torch.cat([row[name].flatten() for name in step.params]) for row in rows])


def as_params(flat: Tensor, step: StepView) -> Params:
    """A direction (P,) by name."""
    parts = torch.split(flat, [p.numel() for p in step.params.values()])
    return {name: part.view_as(p) for (name, p), part in zip(step.params.items(), parts, strict=True)}
