"""The encoder of objectives."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mtlcli.data.base import Inputs, PointFeatures
from mtlcli.models.base import Encoder
from mtlcli.options import Options
from mtlcli.registry import encoders


@encoders.register("point")
class Point(Encoder):
    """A point in space, which is all there is to learn: every row is represented by the point itself.

    For data whose losses are functions of a point; heads have no parameters then.
    """

    reads = PointFeatures

    def __init__(self, options: Options, features: PointFeatures) -> None:
        super().__init__()
        self.stages = nn.ModuleList([Position(features.start)])
        self.stem_features = self.out_features = len(features.start)


class Position(nn.Module):
    """Any inputs of B rows -> (B, D)."""

    def __init__(self, start: tuple[float, ...]) -> None:
        super().__init__()
        self.point = nn.Parameter(torch.tensor(start))

    def forward(self, inputs: Inputs) -> Tensor:
        """The point, once a row."""
        return self.point.expand(len(next(iter(inputs.values()))), -1)
