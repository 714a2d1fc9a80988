"""Random changes to pictures of a training batch, drawn for every picture, on the batch's device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from mtlcli.data.base import Inputs

Change = Literal["flip", "vertical_flip", "crop", "color", "trivial"]
DESCRIPTION = (
    "random changes to training pictures, in this order: flip (left to right), vertical_flip, crop (shifted by up to "
    "an eighth), color (brightness, contrast, saturation by up to 40 %), trivial (TrivialAugment, one draw a batch)"
)
SHIFT = 8  # the part of the shorter side that a crop moves by at most
STRENGTH = 0.4


def augmentation(changes: Sequence[Change]) -> Callable[[Inputs], Inputs]:
    """All of `changes`, one after the other, to `image` (B, C, H, W) uint8."""
    functions = [CHANGES[change] for change in changes]

    def augment(inputs: Inputs) -> Inputs:
        image = inputs["image"]
        for function in functions:
            image = function(image)
        return {**inputs, "image": image}

    return augment


def _flip(image: Tensor) -> Tensor:
    return torch.where(_coin(image), image.flip(3), image)


def _vertical_flip(image: Tensor) -> Tensor:
    return torch.where(_coin(image), image.flip(2), image)


def _crop(image: Tensor) -> Tensor:
    """Pad by repeating the border, then cut the old size out at a random place."""
    from torchvision.transforms.v2 import functional

    count, channels, height, width = image.shape
    by = max(1, min(height, width) // SHIFT)
    wide = functional.pad(image, [by], padding_mode="edge")
    top, left = torch.randint(0, 2 * by + 1, (2, count, 1), device=image.device)
    rows = (top + torch.arange(height, device=image.device))[:, None, :, None]
    columns = (left + torch.arange(width, device=image.device))[:, None, None, :]
    which = torch.arange(count, device=image.device)[:, None, None, None]
    cut: Tensor = wide[which, torch.arange(channels, device=image.device)[:, None, None], rows, columns]
    return cut


def _color(image: Tensor) -> Tensor:
    """v2's adjust_brightness, adjust_contrast and adjust_saturation, each a blend, with a factor for every picture."""
    from torchvision.transforms.v2 import functional

    def grey(values: Tensor) -> Tensor:
        return functional.rgb_to_grayscale(values) if values.shape[1] == 3 else values

    values = image.float()
    values = _blend(values, torch.zeros_like(values))
    values = _blend(values, grey(values).mean((1, 2, 3), keepdim=True))
    return _blend(values, grey(values)).round().to(torch.uint8)


def _blend(values: Tensor, other: Tensor) -> Tensor:
    factor = 1 + STRENGTH * (2 * torch.rand(len(values), 1, 1, 1, device=values.device) - 1)
    return (other + factor * (values - other)).clamp(0, 255)


def _trivial(image: Tensor) -> Tensor:
    from torchvision.transforms.v2 import TrivialAugmentWide

    changed: Tensor = TrivialAugmentWide()(image)
    return changed


def _coin(image: Tensor) -> Tensor:
    return torch.rand(len(image), 1, 1, 1, device=image.device) < 0.5


CHANGES: dict[Change, Callable[[Tensor], Tensor]] = {
    "flip": _flip,
    "vertical_flip": _vertical_flip,
    "crop": _crop,
    "color": _color,
    "trivial": _trivial,
}
