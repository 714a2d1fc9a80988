"""The encoder of tables."""

from __future__ import annotations

from itertools import accumulate, pairwise

import torch
from pydantic import Field
from torch import Tensor, nn

from mtlcli.data.base import Inputs, TableFeatures
from mtlcli.errors import MtlError
from mtlcli.models.base import Encoder
from mtlcli.models.heads import Activation, Norm, Width, dense
from mtlcli.options import Options as AnyOptions
from mtlcli.registry import encoders


@encoders.register("mlp")
class Mlp(Encoder):
    """Embeddings of the categorical columns beside the numeric ones, then dense layers.

    Stage 0 gives (B, C * embedding + F); each width adds one stage: linear, norm, activation, dropout. Without widths
    the encoder is stage 0 alone, and a linear head makes the model a (multi-task) linear one.

    Raises MtlError for a table without columns.
    """

    reads = TableFeatures

    class Options(AnyOptions):
        """Widths and what stands between them."""

        widths: tuple[Width, ...] = Field((256, 128), description="features that each dense layer gives")
        embedding: int = Field(8, ge=1, description="features that each categorical column becomes")
        activation: Activation = Field("relu", description="after every dense layer")
        dropout: float = Field(0.0, ge=0, lt=1, description="after every activation")
        norm: Norm = Field("none", description="between linear and activation")

    def __init__(self, options: Options, features: TableFeatures, stem: Stem | None = None) -> None:
        super().__init__()
        stem = stem or TableStem(features, options.embedding)
        widths = (stem.out_features, *options.widths)
        layers = (dense(*pair, options.activation, options.dropout, options.norm) for pair in pairwise(widths))
        self.stages = nn.ModuleList([stem, *layers])
        self.stem_features, self.out_features = stem.out_features, widths[-1]


class Stem(nn.Module):
    """Stage 0: a table's inputs -> (B, out_features)."""

    out_features: int


class TableStem(Stem):
    """`numeric` (B, F) and `categorical` (B, C) -> (B, C * embedding + F).

    Code 0, a category that training has not or a missing value, is the mean of its column's categories, plus a row of
    its own that begins at zero. Where training rows have the code that row is learned; elsewhere it stays zero.
    """

    starts: Tensor
    cardinalities: Tensor
    share: Tensor

    def __init__(self, features: TableFeatures, embedding: int) -> None:
        super().__init__()
        cardinalities = list(features.categorical.values())
        self.out_features = len(cardinalities) * embedding + len(features.numeric)
        if not self.out_features:
            raise MtlError("encoder 'mlp': needs a table with at least one column; found none")
        self._numeric = bool(features.numeric)
        self.table: nn.Embedding | None = None
        if cardinalities:
            # All columns share one table, each with its own range of rows, so that a batch needs one gather.
            *starts, rows = accumulate(cardinalities, initial=0)
            self.table = nn.Embedding(rows, embedding)
            self.register_buffer("starts", torch.tensor(starts, dtype=torch.int32), persistent=False)
            self.register_buffer("cardinalities", torch.tensor(cardinalities), persistent=False)
            # Times these, the mean over a column's rows is that over its categories, without code 0.
            share = [factor for n in cardinalities for factor in (0.0, *[n / max(1, n - 1)] * (n - 1))]
            self.register_buffer("share", torch.tensor(share)[:, None], persistent=False)
            with torch.no_grad():
                self.table.weight[self.starts] = 0.0

    def forward(self, inputs: Inputs) -> Tensor:
        """The row of every code, side by side, then the numeric columns."""
        if self.table is None:
            return inputs["numeric"]
        # No gradient passes through the means: rows with code 0 teach their own row, and not every category a little.
        known = self.table.weight.detach() * self.share
        means = torch.segment_reduce(known, "mean", lengths=self.cardinalities, axis=0)
        rows = self.table.weight.index_add(0, self.starts, means)
        embedded = nn.functional.embedding(inputs["categorical"] + self.starts, rows).flatten(1)
        return torch.cat([embedded, inputs["numeric"]], dim=1) if self._numeric else embedded
