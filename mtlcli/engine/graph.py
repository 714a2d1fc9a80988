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
    ends = {(tensor.grad_fn, tensor.output_nr) for tensor in cut}
    waiting = [(root.grad_fn, root.output_nr) for root in roots]
    seen, parameters, normalised = set(), {}, False
    while waiting:
        node, output = waiting.pop()
        if node is None or node in seen or (node, output) in ends:
            continue
        seen.add(node)
        normalised |= "BatchNorm" in node.name()
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, nn.Parameter):
            parameters[id(leaf)] = leaf
        waiting += node.next_functions
    return Reached(tuple(parameters.values()), normalised)


def nested(cut: Sequence[Tensor]) -> bool:
    """Whether one of the tensors `cut` was computed from another."""
    ends = {(tensor.grad_fn, tensor.output_nr) for tensor in cut if tensor.grad_fn is not None}
    waiting = [edge for node, _ in ends if node is not None for edge in node.next_functions]
    seen = set()
    while waiting:
        node, output = waiting.pop()
        if (node, output) in ends:
            return True
        if node is not None and node not in seen:
            seen.add(node)
            waiting += node.next_functions
    return False
