"""What losses were computed from, read off their graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn


class Reached(NamedTuple):
    """What the graph of some losses leads to."""

    parameters: tuple[nn.Parameter, ...]
    normalised: bool  # whether it passes through batch normalisation


def reached(roots: Sequence[Tensor], cut: Sequence[Tensor] = ()) -> Reached:
    """Follow the graph of `roots` to its leaves; what lies behind the tensors `cut` is left out."""
    seen = {tensor.grad_fn for tensor in cut}
    waiting = [root.grad_fn for root in roots]
    parameters, normalised = {}, False
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        normalised |= "BatchNorm" in node.name()
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, nn.Parameter):
            parameters[id(leaf)] = leaf
        waiting += [following for following, _ in node.next_functions]
    return Reached(tuple(parameters.values()), normalised)
