"""A trained network that is not posekit's own: ALIKE's dense descriptors, pooled onto a coarse grid of places.

Zhao et al., ALIKE: Accurate and Lightweight Keypoint Detection and Descriptor Extraction, IEEE TMM 2022: four blocks at
full, 1/2, 1/8 and 1/32 resolution; each narrowed by a 1 x 1 convolution and enlarged to full resolution; one 1 x 1
convolution over all of them gives descriptors and, last, a score map. Names as in the published weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

POOLS = (2, 4, 4)  # before blocks 2, 3 and 4
COARSEST_PX = 32  # a picture's sides must be multiples of it


class Block(nn.Module):
    """Two 3 x 3 convolutions with BatchNorm and ReLU; with `residual`, past them a 1 x 1 convolution."""

    def __init__(self, before: int, after: int, residual: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.downsample = nn.Conv2d(before, after, 1) if residual else None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y if self.downsample is None else y + self.downsample(x))


class Alike(nn.Module):
    """RGB in 0..1, (B, 3, S, S) -> descriptors (B, C, places, places), means over square cells of the dense map."""

    def __init__(self, channels: Sequence[int], descriptor: int, places: int) -> None:
        super().__init__()
        c1, c2, c3, c4 = channels
        self.places = places
        self.block1 = Block(3, c1, residual=False)
        self.block2, self.block3, self.block4 = Block(c1, c2, True), Block(c2, c3, True), Block(c3, c4, True)
        narrow = descriptor // 4
        self.conv1, self.conv2 = nn.Conv2d(c1, narrow, 1, bias=False), nn.Conv2d(c2, narrow, 1, bias=False)
        self.conv3, self.conv4 = nn.Conv2d(c3, narrow, 1, bias=False), nn.Conv2d(c4, narrow, 1, bias=False)
        self.convhead2 = nn.Conv2d(descriptor, descriptor + 1, 1, bias=False)  # the last is the score

    def dense(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, H, W), unit length per pixel. H and W are multiples of COARSEST_PX."""
        x1 = self.block1(x)
        x2 = self.block2(F.max_pool2d(x1, POOLS[0]))
        x3 = self.block3(F.max_pool2d(x2, POOLS[1]))
        x4 = self.block4(F.max_pool2d(x3, POOLS[2]))
        scales = ((self.conv1, x1), (self.conv2, x2), (self.conv3, x3), (self.conv4, x4))
        size = (x.shape[2], x.shape[3])
        full = [F.interpolate(F.relu(conv(y)), size, mode="bilinear", align_corners=True) for conv, y in scales]
        head: Tensor = self.convhead2(torch.cat(full, dim=1))
        return F.normalize(head[:, :-1], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        cell_px = x.shape[2] // self.places
        return F.avg_pool2d(self.dense(x), cell_px)


def alike(channels: Sequence[int] = (8, 16, 32, 64), descriptor: int = 64, places: int = 16) -> Alike:
    """ALIKE-T by default. places: of the grid, a divisor of the crop's side."""
    return Alike(channels, descriptor, places)
