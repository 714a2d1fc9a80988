"""What losses were computed from, read off their graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

SHORT = (torch.float16, torch.bfloat16)  # too coarse to weigh losses in


class Reached(NamedTuple):
    """What the graph of some losses leads to."""

    parameters: tuple[nn.Parameter, ...]
    normalised: bool  # whether it passes through batch normalisation in training, which moves its statistics
    rounded: bool  # whether anything in it was computed in 16 bits, as under autocast


def reached(roots: Sequence[Tensor], cut: Sequence[Tensor] = ()) -> Reached:
    """Follow the graph of `roots` to its leaves; what lies behind the tensors `cut` is left out."""
    ends = {(tensor.grad_fn, tensor.output_nr) for tensor in cut}
    waiting = [(root.grad_fn, root.output_nr) for root in roots]
    seen, parameters, normalised, rounded = set(), {}, False, False
    while waiting:
        node, number = waiting.pop()
        if node is None or node in seen or (node, number) in ends:
            continue
        seen.add(node)
        normalised |= "BatchNorm" in node.name() and getattr(node, "_saved_training", True)
        rounded |= any(output.dtype in SHORT for output in node._input_metadata)
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, nn.Parameter):
            parameters[id(leaf)] = leaf
        waiting += node.next_functions
    return Reached(tuple(parameters.values()), normalised, rounded)


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
