"""The encoder of tables whose numbers matter by where they lie, not by how large they are."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor, nn

from mtlcli.data.base import Inputs, TableFeatures
from mtlcli.models.encoders.mlp import Mlp, Stem, TableStem
from mtlcli.models.heads import Width
from mtlcli.registry import encoders


@encoders.register("mlp_plr")
class MlpPlr(Mlp):
    """`mlp` with periodic embeddings of the numeric columns beside their values.

    A dense layer bends a number at a few places; these tell apart many stretches of it, as trees do. A number x becomes
    ReLU(A [sin(2 pi c x), cos(2 pi c x)] + b), with frequencies c, weights A and b of its column's own, all learned; c
    begins at draws of N(0, sigma^2). Stage 0 gives (B, C * embedding + F + F * periodic).

    Source: Gorishniy, Rubachev & Babenko, On Embeddings for Numerical Features in Tabular Deep Learning, NeurIPS 2022,
    arXiv 2203.05556, "PLR", equations 3 and 4. There the numbers themselves are left out; here they stay, so that
    values beyond those of training still have an order.

    Raises MtlError for a table without columns.
    """

    class Options(Mlp.Options):
        """Those of `mlp`, and the embeddings of numbers."""

        periodic: Width = Field(8, description="features that each numeric column becomes, beside its value")
        frequencies: Width = Field(16, description="sines and cosines of a column that they are made of")
        sigma: float = Field(1.0, gt=0, description="of the frequencies at the start; columns have deviation 1")

    def __init__(self, options: Options, features: TableFeatures) -> None:
        super().__init__(options, features, PeriodicStem(features, options))


class PeriodicStem(Stem):
    """`numeric` (B, F) and `categorical` (B, C) -> (B, C * embedding + F + F * periodic)."""

    def __init__(self, features: TableFeatures, options: MlpPlr.Options) -> None:
        super().__init__()
        self.plain = TableStem(features, options.embedding)
        num, size, width = len(features.numeric), 2 * options.frequencies, options.periodic
        self.out_features = self.plain.out_features + num * width
        self.frequencies = nn.Parameter(options.sigma * torch.randn(num, options.frequencies))
        bound = 1 / math.sqrt(size)  # as nn.Linear begins
        self.weight = nn.Parameter(torch.empty(num, size, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(num, 1, width).uniform_(-bound, bound))

    def forward(self, inputs: Inputs) -> Tensor:
        """Embeddings of categories, numbers, embeddings of numbers, side by side."""
        plain: Tensor = self.plain(inputs)
        if not len(self.frequencies):
            return plain
        angles = 2 * math.pi * inputs["numeric"].T[:, :, None] * self.frequencies[:, None]  # (F, B, frequencies)
        waves = torch.cat([angles.sin(), angles.cos()], 2)
        embedded = torch.baddbmm(self.bias, waves, self.weight).relu()  # (F, B, periodic)
        return torch.cat([plain, embedded.transpose(0, 1).flatten(1)], 1)
