"""Task gradients at the representation as products of small matrices, where heads begin with a linear layer.

Such a layer makes Z W' of the representation Z (B, D). The gradient of its task at Z is D_k W_k: of the gradient D_k
(B, O) at what the layer puts out, and its weight W_k (O, D). Inner products of tasks follow from these factors,

    <D_i W_i, D_j W_j> = sum over all entries of (D_i' D_j) * (W_i W_j'),

and so does their weighted sum. The K gradients themselves are never written down: a step passes back through all heads
once and through the trunk once, like plain training.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from mtlcli.engine.rows import ENTRIES
from mtlcli.weighting.base import Reads

# Linear layers with a bias and without: which of the tensors that they were computed from is their input.
_INPUT = {"AddmmBackward0": 1, "MmBackward0": 0}


@dataclass
class Layers:
    """The linear layers that read one tensor of the representation."""

    anchor: Tensor  # (B, D)
    nodes: list[Any] = field(default_factory=list)  # of the graph
    tasks: list[int] = field(default_factory=list)  # one for each layer
    weights: list[Tensor] = field(default_factory=list)  # (D, O), transposed
    gradients: Tensor = field(init=False)  # (B, sum of O)  at what they put out

    @property
    def widths(self) -> list[int]:
        """Of what each layer puts out."""
        return [weight.shape[1] for weight in self.weights]

    @cached_property
    def owners(self) -> Tensor:
        """(sum of O,) the task of every output."""
        return torch.tensor(self.tasks).repeat_interleave(torch.tensor(self.widths)).to(self.anchor.device)

    def pays(self, num_tasks: int) -> bool:
        """Whether inner products by factors take fewer operations than by the gradients (B, D) of all tasks."""
        batch, features = self.anchor.shape
        return sum(self.widths) ** 2 * (batch + features) <= num_tasks**2 * batch * features

    def by_columns(self, direction: Callable[[Tensor], Tensor], num_tasks: int) -> Tensor:
        """(B, D) what `direction` makes of the tasks' gradients (K, n), which exist for a few rows at a time."""
        batch, features = self.anchor.shape
        outputs: list[list[int]] = [[] for _ in range(num_tasks)]
        for place, task in enumerate(self.owners.tolist()):
            outputs[task].append(place)
        rows = min(batch, max(1, ENTRIES // (num_tasks * features)))
        jacobian = self.anchor.new_empty(num_tasks, rows, features)
        outer, inner = self.gradients.T.to(self.anchor), torch.cat(self.weights, 1).T.to(self.anchor)
        products = []
        for _, neighbours in itertools.groupby(range(num_tasks), key=lambda task: len(outputs[task])):
            tasks = list(neighbours)  # with as many outputs, or with none
            own = torch.tensor([outputs[task] for task in tasks], dtype=torch.long, device=outer.device)
            products.append((slice(tasks[0], tasks[-1] + 1), outer[own].mT.contiguous(), inner[own]))
        found = torch.empty_like(self.anchor)
        for start in range(0, batch, rows):
            stop = min(start + rows, batch)
            part = jacobian[:, : stop - start]
            for tasks_, left, right in products:
                torch.bmm(left[:, start:stop], right, out=part[tasks_])
            found[start:stop] = direction(part.flatten(1)).view(-1, features)
        return found


class Factors:
    """Task gradients at the representation, by their factors."""

    def __init__(self, layers: Sequence[Layers], num_tasks: int) -> None:
        self._layers, self._num_tasks = layers, num_tasks

    def take(self, roots: Sequence[Tensor], pull: Sequence[Tensor], along: Sequence[Tensor]) -> list[Tensor | None]:
        """Pass `roots`, weighted by `pull`, back to the layers. Returns gradients at `along`, parameters of heads."""
        edges: list[Any] = [GradientEdge(node, 0) for each in self._layers for node in each.nodes]
        found = torch.autograd.grad(roots, [*edges, *along], pull, retain_graph=True, allow_unused=True)
        start = 0
        for each in self._layers:
            stop = start + len(each.nodes)
            zeros = [each.anchor.new_zeros(len(each.anchor), width) for width in each.widths]
            each.gradients = torch.cat(
                [z if g is None else g for g, z in zip(found[start:stop], zeros, strict=True)], 1
            )
            start = stop
        return list(found[start:])

    def gramian(self) -> Tensor:
        """(K, K) inner products of the tasks' gradients, in float64."""
        size = self._num_tasks
        total = self._layers[0].anchor.new_zeros(size, size, dtype=torch.float64)
        for each in self._layers:
            outer, inner, owners = each.gradients.double(), torch.cat(each.weights, 1).double(), each.owners
            products = (outer.T @ outer) * (inner.T @ inner)
            total.index_add_(1, owners, total.new_zeros(size, len(owners)).index_add_(0, owners, products))
        return total

    def combine(self, weights: Tensor) -> list[Tensor]:
        """The sum of the tasks' gradients times `weights` (K,), at every tensor of the representation."""
        return [
            ((each.gradients * weights.to(each.gradients)[each.owners]) @ torch.cat(each.weights, 1).T).to(each.anchor)
            for each in self._layers
        ]

    def by_columns(self, direction: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """What `direction` makes of the tasks' gradients, at every tensor of the representation."""
        return [each.by_columns(direction, self._num_tasks) for each in self._layers]


def find_factors(roots: Sequence[Tensor], cut: Sequence[Tensor], reads: Reads) -> Factors | None:
    """The linear layers through which alone the losses `roots` reach the tensors `cut`, for a method that `reads`.

    None where one of them reaches `cut` in another way or not at all, where tasks share such a layer, where all of the
    gradients are asked for, or where layers are so wide that their inner products cost less without factors.
    """
    if reads == "jacobian" or any(tensor.ndim != 2 for tensor in cut):
        return None
    anchors = {
        (edge.node, edge.output_nr): Layers(tensor)
        for edge, tensor in zip(map(get_gradient_edge, cut), cut, strict=True)
    }
    owners: dict[Any, int] = {}
    for k, root in enumerate(roots):
        waiting: list[tuple[Any, int]] = [(root.grad_fn, 0)]
        while waiting:
            node, output = waiting.pop()
            if node is None or owners.get(node) == k:
                continue
            if node in owners or (node, output) in anchors:
                return None
            following = list(node.next_functions)
            place = _INPUT.get(node.name())
            if place is not None and getattr(node, "_saved_alpha", 1) == 1:
                layers = anchors.get(_uncast(following[place]))
                if layers is not None:
                    layers.nodes.append(node)
                    layers.tasks.append(k)
                    layers.weights.append(node._saved_mat2.detach())
                    following.pop(place)
            if following:  # leaves say nothing: tasks may share a parameter without sharing a layer
                owners[node] = k
            waiting += following
    found = list(anchors.values())
    complete = {k for layers in found for k in layers.tasks} == set(range(len(roots)))
    pays = all(layers.nodes and (reads == "columns" or layers.pays(len(roots))) for layers in found)
    return Factors(found, len(roots)) if complete and pays else None


def _uncast(edge: tuple[Any, int]) -> tuple[Any, int]:
    """Where an edge of the graph leads, past changes of type."""
    while edge[0] is not None and edge[0].name() == "ToCopyBackward0":
        edge = edge[0].next_functions[0]
    return edge
