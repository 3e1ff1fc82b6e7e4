"""The first nodes of every graph: uint8 RGB pixels to normalised float channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Entrance(nn.Module):
    """crops (B, S, S, 3) uint8 RGB -> (B, 3, S, S) float32, (x / 255 - mean) / std, in RGB or BGR order.

    mean, std: in RGB order, of pixels in 0..1.
    """

    gain: Tensor
    offset: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    bgr: bool

    def __init__(
        self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD, bgr: bool = False
    ) -> None:
        super().__init__()
        # Not in the state dict: they belong to the graph contract, not to the checkpoint.
        self.register_buffer("gain", torch.empty(1, 3, 1, 1), persistent=False)
        self.register_buffer("offset", torch.empty(1, 3, 1, 1), persistent=False)
        self.state(mean, std, bgr)

    def state(
        self, mean: Sequence[float] | None = None, std: Sequence[float] | None = None, bgr: bool | None = None
    ) -> None:
        """Take these numbers; what is None stays as it was."""
        self.mean = self.mean if mean is None else tuple(mean)
        self.std = self.std if std is None else tuple(std)
        self.bgr = self.bgr if bgr is None else bgr
        std_, mean_ = (torch.tensor(numbers).view(1, 3, 1, 1) for numbers in (self.std, self.mean))
        self.gain, self.offset = 1.0 / (255.0 * std_), -(mean_ / std_)

    @property
    def stated(self) -> dict[str, Any]:
        """The arguments that it was made of."""
        return {"mean": self.mean, "std": self.std, "bgr": self.bgr}

    def forward(self, crops: Tensor) -> Tensor:
        # Cast first: TensorRT takes uint8 inputs into a Cast and into nothing else.
        x = crops.float().permute(0, 3, 1, 2) * self.gain + self.offset
        return x.flip(1) if self.bgr else x
