"""GDR-Net's two heads: dense geometry maps, and Patch-PnP from maps to a pose (Wang et al., CVPR 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv_bn_relu(in_channels: int, out_channels: int, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class DenseHead(nn.Module):
    """Backbone features to dense maps, doubling the resolution `1 + upsamples` times.

    features: coarsest level last. The published head takes the coarsest level only (skip_channels empty); with
    skip_channels, finer levels are concatenated after each doubling, finest last in the tuple.
    Forward: list of (B, C_i, H_i, W_i), coarse to fine -> (B, out_channels, H, W).
    """

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        out_channels: int,
        skip_channels: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.rise = nn.Sequential(
            nn.ConvTranspose2d(in_channels, widths[0], 3, stride=2, padding=1, output_padding=1, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(inplace=True),
        )
        self.skips = len(skip_channels)
        stages, previous = [], widths[0]
        for i, width in enumerate(widths):
            joined = previous + (skip_channels[i] if i < self.skips else 0)
            stages.append(nn.Sequential(conv_bn_relu(joined, width), conv_bn_relu(width, width)))
            previous = width
        self.stages = nn.ModuleList(stages)
        self.out = nn.Conv2d(previous, out_channels, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.rise(features[0])
        for i, stage in enumerate(self.stages):
            if i > 0:
                x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
            if i < self.skips:
                x = torch.cat([x, features[i + 1]], dim=1)
            x = stage(x)
        out: Tensor = self.out(x)
        return out


class PatchPnP(nn.Module):
    """Correspondence maps to a 6D rotation and a scale-invariant translation (SITE).

    Forward: (B, in_channels, grid, grid) -> r6 (B, 6), site (B, 3). Three stride-2 convolutions with GroupNorm 32, then
    two fully connected layers.
    """

    def __init__(self, in_channels: int, grid: int = 64, width: int = 128, hidden: Sequence[int] = (1024, 256)) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for i in range(3):
            blocks += [
                nn.Conv2d(in_channels if i == 0 else width, width, 3, stride=2, padding=1, bias=False),
                nn.GroupNorm(min(32, width // 2), width),
                nn.ReLU(inplace=True),
            ]
        self.trunk = nn.Sequential(*blocks)
        self.fc1 = nn.Linear(width * (grid // 8) ** 2, hidden[0])
        self.fc2 = nn.Linear(hidden[0], hidden[1])
        self.rotation = nn.Linear(hidden[1], 6)
        self.site = nn.Linear(hidden[1], 3)
        # Start near the identity rotation and the box's own translation, where the decoder is well behaved.
        nn.init.normal_(self.rotation.weight, std=0.01)
        nn.init.normal_(self.site.weight, std=0.01)
        with torch.no_grad():
            self.rotation.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 0.0]))
            self.site.bias.zero_()

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        x = self.trunk(maps).flatten(1)
        x = F.leaky_relu(self.fc1(x), 0.1)
        x = F.leaky_relu(self.fc2(x), 0.1)
        return self.rotation(x), self.site(x)


def image_coordinates(warp: Tensor, image_wh: Tensor, crop_size_px: int, grid: int) -> Tensor:
    """GDR-Net's coord2d: full-image pixel coordinates, x / W and y / H, sampled at the cells of a crop's grid.

    warp: (B, 2, 3) crop_from_image without rotation.  image_wh: (B, 2).  -> (B, 2, grid, grid).
    """
    cells = (torch.arange(grid, dtype=torch.float32, device=warp.device) + 0.5) * (crop_size_px / grid) - 0.5
    x = (cells.view(1, 1, grid) - warp[:, 0, 2].view(-1, 1, 1)) / warp[:, 0, 0].view(-1, 1, 1)
    y = (cells.view(1, grid, 1) - warp[:, 1, 2].view(-1, 1, 1)) / warp[:, 1, 1].view(-1, 1, 1)
    x = (x / image_wh[:, 0].view(-1, 1, 1)).expand(-1, grid, grid)
    y = (y / image_wh[:, 1].view(-1, 1, 1)).expand(-1, grid, grid)
    return torch.stack([x, y], dim=1)


def of_label(maps: Tensor, label: Tensor | None, n_objects: int) -> Tensor:
    """Class-aware heads: pick each crop's own object. (B, n * C, H, W), label (B,) int64 -> (B, C, H, W).

    A one-hot product instead of a gather: every backend has it, and TensorRT fuses it.
    """
    if n_objects == 1 or label is None:
        return maps
    _, channels, height, width = maps.shape
    hot = (label.view(-1, 1) == torch.arange(n_objects, device=maps.device)).to(maps.dtype)
    split = maps.view(-1, n_objects, channels // n_objects, height, width)
    return (split * hot.view(-1, n_objects, 1, 1, 1)).sum(dim=1)


def score_of_mask(mask: Tensor) -> Tensor:
    """Mean probability over the cells that the mask claims; 0 where it claims none. (B, 1, h, w) -> (B,)."""
    claimed = (mask > 0.5).to(mask.dtype)
    return (mask * claimed).sum(dim=(1, 2, 3)) / claimed.sum(dim=(1, 2, 3)).clamp(min=1.0)
