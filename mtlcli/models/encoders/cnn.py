"""A small encoder of pictures."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from pydantic import Field
from torch import nn

from mtlcli.data.base import ImageFeatures
from mtlcli.errors import OptionError
from mtlcli.models.base import Encoder
from mtlcli.models.encoders._pixels import Pixels
from mtlcli.models.heads import Width, dense
from mtlcli.options import Options as AnyOptions
from mtlcli.registry import encoders

Norm = Literal["none", "batch", "group"]


@encoders.register("cnn")
class Cnn(Encoder):
    """Convolutions for small pictures: each block halves them, a dense layer reads what is left.

    Stage 0 normalises the pixels and is the first block, (B, channels[0], H / 2, W / 2); each further number of
    channels adds a stage. A block is a 3 x 3 convolution, 2 x 2 max-pooling, norm and ReLU. The last stage averages the
    maps over a `grid` of equal parts, so that it is still known where something was, and maps them to `hidden`
    features: (B, hidden).

    Raises OptionError where the picture is too small for so many blocks.
    """

    reads = ImageFeatures

    class Options(AnyOptions):
        """How many channels, and what reads them."""

        channels: tuple[Width, ...] = Field((16, 32, 64), min_length=1, description="channels that each block gives")
        hidden: Width = Field(128, description="features that the dense layer gives")
        grid: Width = Field(3, description="parts a side that the last maps are averaged over; 1: the whole")
        dropout: float = Field(0.0, ge=0, lt=1, description="after the dense layer")
        norm: Norm = Field("batch", description="between convolution and ReLU; group: 8 channels normalised together")

    def __init__(self, options: Options, features: ImageFeatures) -> None:
        super().__init__()
        side, blocks = min(features.height, features.width), len(options.channels)
        if side < options.grid * 2**blocks:
            raise OptionError(
                "channels",
                f"{blocks} blocks halve {features.height} x {features.width} pixels to less than the grid of "
                f"{options.grid} x {options.grid}; use at most {(side // options.grid).bit_length() - 1}",
            )
        widths = (features.channels, *options.channels)
        stem, *rest = [block(*pair, options.norm) for pair in pairwise(widths)]
        last = nn.Sequential(
            nn.AdaptiveAvgPool2d(options.grid),
            nn.Flatten(),
            dense(widths[-1] * options.grid**2, options.hidden, "relu", options.dropout),
        )
        self.stages = nn.ModuleList([nn.Sequential(Pixels(features), stem), *rest, last])
        self.stem_features, self.out_features = options.channels[0], options.hidden


def block(in_channels: int, out_channels: int, norm: Norm) -> nn.Sequential:
    """(B, in_channels, H, W) -> (B, out_channels, H / 2, W / 2)."""
    # Pooling comes first: what follows then has a quarter of the values to go through.
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=norm == "none"),
        nn.MaxPool2d(2),
    ]
    if norm == "batch":
        layers.append(nn.BatchNorm2d(out_channels))
    elif norm == "group":
        layers.append(nn.GroupNorm(out_channels // 8 if out_channels % 8 == 0 else 1, out_channels))
    return nn.Sequential(*layers, nn.ReLU())
