"""Heads: from a task's features to its prediction."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from mtlcli.options import Options
from mtlcli.tasks import Task

Activation = Literal["relu", "gelu", "silu", "tanh", "elu"]
Norm = Literal["none", "batch", "layer"]
Width = Annotated[int, Field(ge=1)]

_ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
}


class HeadOptions(Options):
    """Every task's head: hidden layers, then a linear layer to the prediction."""

    hidden: tuple[Width, ...] = Field((), description="widths of the hidden layers; none: one linear layer")
    activation: Activation = Field("relu", description="after every hidden layer")
    dropout: float = Field(0.0, ge=0, lt=1, description="after every hidden activation")


def build_head(task: Task, in_features: int, options: HeadOptions) -> nn.Module:
    """A head that maps (B, in_features) to logits (B,) or (B, C), or to the regression value (B,) in training units.

    For an objective it is the objective itself, without parameters.
    """
    if task.objective is not None:
        return Objective(task.objective)
    widths = (in_features, *options.hidden)
    layers: list[nn.Module] = [dense(*pair, options.activation, options.dropout) for pair in pairwise(widths)]
    layers.append(nn.Linear(widths[-1], task.num_outputs))
    if task.kind != "multiclass":
        layers.append(nn.Flatten(0))
    return nn.Sequential(*layers)


class Objective(nn.Module):
    """A function of the representation."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) -> (B,)."""
        return self.function(features)


def dense(
    in_features: int, out_features: int, activation: Activation, dropout: float = 0.0, norm: Norm = "none"
) -> nn.Sequential:
    """(B, in_features) -> (B, out_features): linear, norm, activation, dropout, without those that do nothing."""
    # Batch normalisation subtracts any bias again: a bias before it would never learn.
    layers: list[nn.Module] = [nn.Linear(in_features, out_features, bias=norm != "batch")]
    if norm != "none":
        layers.append((nn.BatchNorm1d if norm == "batch" else nn.LayerNorm)(out_features))
    layers.append(_ACTIVATIONS[activation]())
    if dropout:
        layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers)
