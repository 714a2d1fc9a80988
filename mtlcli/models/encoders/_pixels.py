"""What every encoder of pictures begins with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mtlcli.data.base import ImageFeatures, Inputs


class Pixels(nn.Module):
    """`image` (B, C, H, W) uint8 -> (value / 255 - mean) / std, float32, channels last in memory."""

    scale: Tensor
    shift: Tensor

    def __init__(self, features: ImageFeatures) -> None:
        super().__init__()
        mean, std = (
            torch.tensor(values, dtype=torch.float32)[:, None, None] for values in (features.mean, features.std)
        )
        # Both follow from the data: a checkpoint need not repeat them.
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.register_buffer("shift", -mean / std, persistent=False)

    def forward(self, inputs: Inputs) -> Tensor:
        """One multiplication and one addition a value."""
        image = inputs["image"].contiguous(memory_format=torch.channels_last)
        return torch.addcmul(self.shift, image.to(self.scale.dtype), self.scale)
