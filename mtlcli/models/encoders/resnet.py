"""Residual networks for pictures, as torchvision builds them."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from mtlcli.data.base import ImageFeatures
from mtlcli.errors import OptionError
from mtlcli.models.base import Encoder
from mtlcli.models.encoders._pixels import Pixels
from mtlcli.options import Options as AnyOptions
from mtlcli.registry import encoders

CLASSIFIER = "fc."  # torchvision's own head, which heads of tasks take the place of
SHOWN = 3


class ResNetOptions(AnyOptions):
    """Initial values, and the first layers."""

    weights: Path | None = Field(
        None, description="file with torchvision's state_dict of this network; null: random values"
    )
    stem: Literal["large", "small"] = Field(
        "large",
        description="large: 7 x 7 convolution with stride 2 and max-pooling; small: 3 x 3 without either, for pictures "
        "below 64 pixels",
    )


class ResNet(Encoder):
    """What the networks have in common; a subclass names torchvision's function."""

    reads = ImageFeatures
    Options = ResNetOptions

    builder: ClassVar[str]

    def __init__(self, options: ResNetOptions, features: ImageFeatures) -> None:
        import torchvision

        super().__init__()
        net = getattr(torchvision.models, self.builder)(weights=None)
        width = net.conv1.out_channels
        if options.stem == "small":
            net.conv1 = nn.Conv2d(features.channels, width, 3, padding=1, bias=False)
            net.maxpool = nn.Identity()
        elif features.channels != net.conv1.in_channels:
            net.conv1 = nn.Conv2d(features.channels, width, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
        if options.weights is not None:
            _load(net, options.weights, self.builder)
        stem = nn.Sequential(Pixels(features), net.conv1, net.bn1, net.relu, net.maxpool)
        last = nn.Sequential(net.layer4, net.avgpool, nn.Flatten())
        self.stages = nn.ModuleList([stem, net.layer1, net.layer2, net.layer3, last])
        self.stem_features, self.out_features = width, net.fc.in_features


@encoders.register("resnet18")
class ResNet18(ResNet):
    """The residual network with 18 layers: 11.2 million parameters, 512 features.

    Stage 0 normalises the pixels and is the stem (B, 64, H / 4, W / 4), or (B, 64, H, W) with `stem: small`; then come
    the four groups of blocks, the last with the mean over positions: (B, 512). With `weights`, a file saved from
    torchvision's network is loaded, its classifier left out; nothing is ever downloaded.

    Source: He et al., Deep Residual Learning for Image Recognition, CVPR 2016, arXiv 1512.03385; torchvision.models.

    Raises OptionError naming the file where `weights` cannot be read or does not fit.
    """

    builder = "resnet18"


@encoders.register("resnet34")
class ResNet34(ResNet):
    """The residual network with 34 layers: 21.3 million parameters, 512 features; see resnet18."""

    builder = "resnet34"


@encoders.register("resnet50")
class ResNet50(ResNet):
    """The residual network with 50 layers and bottlenecks: 23.5 million parameters, 2,048 features; see resnet18."""

    builder = "resnet50"


def _load(net: nn.Module, path: Path, name: str) -> None:
    """Fill `net`, but for its classifier, from a state_dict. Raises OptionError naming what does not fit."""
    held = _read(path)
    wanted = {key: tensor for key, tensor in net.state_dict().items() if not key.startswith(CLASSIFIER)}
    given = {key: tensor for key, tensor in held.items() if not key.startswith(CLASSIFIER)}
    # Files from before this buffer existed lack it; it counts batches and changes no output.
    absent = [key for key in wanted if key not in given and not key.endswith("num_batches_tracked")]
    wrong = [f"lacks {key}" for key in absent]
    wrong += [f"has {key}, which the network has not" for key in given if key not in wanted]
    wrong += [
        f"{key} should be {tuple(tensor.shape)}; found {tuple(given[key].shape)}"
        for key, tensor in wanted.items()
        if key in given and given[key].shape != tensor.shape
    ]
    if wrong:
        more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise OptionError(
            "weights",
            f"{path} does not fit {name} with this `stem` and these data: {'; '.join(wrong[:SHOWN])}{more}; a file "
            "saved from torchvision's network fits `stem: large` and pictures with 3 channels",
        )
    net.load_state_dict(given, strict=False)


def _read(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise OptionError("weights", f"no such file: {path}")
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch raises many kinds for a damaged file, in words about itself
        raise OptionError(
            "weights", f"{path} cannot be read as a state_dict; save one with torch.save(net.state_dict(), file)"
        ) from None
    if not isinstance(held, dict) or not all(isinstance(value, torch.Tensor) for value in held.values()):
        raise OptionError("weights", f"{path} should hold a map of names to tensors, as net.state_dict() gives it")
    return held
