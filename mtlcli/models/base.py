"""The model: a trunk that tasks share in some way, and a head per task; which parameter belongs to whom."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from typing import ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mtlcli.data.base import Batch, Inputs
from mtlcli.data.base import Features as AnyFeatures
from mtlcli.options import Options as AnyOptions


class Encoder(nn.Module, ABC):
    """inputs -> representation (B, out_features), as a chain of stages between which a trunk may branch.

    `stages[0]` reads the inputs (a dict of tensors) and gives the tensor that every later stage chain starts from.
    """

    name: ClassVar[str]
    reads: ClassVar[type[AnyFeatures]] = AnyFeatures  # the kind of inputs that it is made for

    Options: ClassVar[type[AnyOptions]] = AnyOptions

    stages: nn.ModuleList
    stem_features: int  # width of what stages[0] gives: features (B, D), or channels of maps (B, C, H, W)
    out_features: int

    @staticmethod
    def summary(stem: Tensor) -> Tensor:
        """(B, stem_features) of what stages[0] gives, for gates: features themselves, maps averaged over positions."""
        return stem.mean((2, 3)) if stem.dim() == 4 else stem

    def forward(self, inputs: Inputs) -> Tensor:
        """Run every stage in turn."""
        hidden = inputs
        for stage in self.stages:
            hidden = stage(hidden)
        return hidden  # type: ignore[return-value]


class Features(NamedTuple):
    """What a trunk gives for one batch."""

    per_task: dict[str, Tensor]  # what each head reads
    # Tensors that every path from a shared parameter to any loss crosses, with no shared parameter behind them;
    # () where the architecture has none, and then `wrt: representation` is refused.
    cut: tuple[Tensor, ...]


class Trunk(nn.Module, ABC):
    """inputs -> Features: one way for tasks to share a network. Register with `@trunks.register("name")`.

    `make_encoder` builds a fresh encoder each time it is called; `tasks` are the task names.
    """

    name: ClassVar[str]
    has_cut: ClassVar[bool]  # whether `Features.cut` is ever non-empty; the recipe is checked against it

    Options: ClassVar[type[AnyOptions]] = AnyOptions

    out_features: int  # width of every head's input

    def __init__(self, options: AnyOptions, make_encoder: Callable[[], Encoder], tasks: tuple[str, ...]) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, inputs: Inputs) -> Features:
        """Features for every task."""

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """The trunk's parameters that only `task`'s loss reaches, such as its gate."""
        return []

    def last_shared_parameters(self) -> list[nn.Parameter]:
        """The shared parameters nearest to the heads, for methods that look at those alone; none where unknown."""
        return []


@runtime_checkable
class Owner(Protocol):
    """A trunk, or a module inside of one, with parameters that only one task's loss reaches."""

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """Those of `task`."""


Predicted = tuple[dict[str, Tensor], tuple[Tensor, ...]]


class MTLModel(nn.Module):
    """A trunk and one head per task."""

    def __init__(self, trunk: Trunk, heads: dict[str, nn.Module]) -> None:
        super().__init__()
        self.trunk = trunk
        self.heads = nn.ModuleDict(heads)

    def forward(self, inputs: Inputs, only: Collection[str] | None = None) -> Predicted:
        """Predictions per task, or of the tasks `only`, and the trunk's cut."""
        features = self.trunk(inputs)
        wanted = [(task, head) for task, head in self.heads.items() if only is None or task in only]
        return {task: head(features.per_task[task]) for task, head in wanted}, features.cut

    def task_parameters(self) -> dict[str, list[nn.Parameter]]:
        """Per task, the trainable parameters that its loss alone reaches: its part of the trunk and its head."""
        owners = [module for module in self.trunk.modules() if isinstance(module, Owner)]
        return {
            task: [
                p
                for parameters in (*(owner.task_parameters(task) for owner in owners), head.parameters())
                for p in parameters
                if p.requires_grad
            ]
            for task, head in self.heads.items()
        }

    def shared_parameters(self) -> list[nn.Parameter]:
        """Every other trainable parameter: reached by two tasks or more (or by whichever there are, with one task)."""
        private = {id(p) for parameters in self.task_parameters().values() for p in parameters}
        return [p for p in self.parameters() if p.requires_grad and id(p) not in private]

    def parameter_groups(self, by: Literal["all", "module", "tensor"]) -> list[list[nn.Parameter]]:
        """The shared parameters in one group, a group per module, or a group per tensor."""
        shared = {id(p) for p in self.shared_parameters()}
        groups: dict[str, list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if id(parameter) in shared:
                key = {"all": "", "module": name.rpartition(".")[0], "tensor": name}[by]
                groups.setdefault(key, []).append(parameter)
        return list(groups.values())


def run(
    model: MTLModel, batch: Batch, autocast: torch.dtype | None = None, state: Mapping[str, Tensor] | None = None
) -> Predicted:
    """Predictions per task for one batch, and the trunk's cut, which is empty where tasks have inputs of their own.

    Parts of a batch pass through the model one after the other, so that a normalisation over the batch sees one kind
    of input at a time.

    Args:
        autocast: dtype of the forward pass, or None for full precision.
        state: values by name in place of the model's parameters and buffers.
    """

    def call(inputs: Inputs, *only: Collection[str]) -> Predicted:
        found: Predicted = functional_call(model, dict(state), (inputs, *only)) if state else model(inputs, *only)
        return found

    # Entering autocast costs more than a small layer, so full precision does without.
    with nullcontext() if autocast is None else torch.autocast(batch.device.type, dtype=autocast):
        if not batch.parts:
            return call(batch.inputs)
        predictions: dict[str, Tensor] = {}
        for part in batch.parts:
            predictions |= call(part.inputs, tuple(part.targets))[0]
        return predictions, ()
