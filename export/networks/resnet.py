"""ResNet trunks (He et al., CVPR 2016), with the state-dict keys of torchvision so that its checkpoints fit.

Bottlenecks carry their stride on the 3 x 3 convolution, as torchvision and MoCo do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from posekit.runtime.errors import RecipeError


@dataclass(frozen=True)
class Layout:
    """blocks and widths: per stage.  bottleneck: three convolutions per block and four times the width out of it."""

    blocks: tuple[int, int, int, int]
    widths: tuple[int, int, int, int] = (64, 128, 256, 512)
    bottleneck: bool = False

    @property
    def channels(self) -> tuple[int, ...]:
        """Of the stem and the four stages."""
        return (self.widths[0], *(w * (4 if self.bottleneck else 1) for w in self.widths))


LAYOUTS: dict[str, Layout] = {
    "resnet18": Layout((2, 2, 2, 2)),
    "resnet34": Layout((3, 4, 6, 3)),
    "resnet50": Layout((3, 4, 6, 3), bottleneck=True),
    "nano": Layout((2, 2, 2, 1), (24, 48, 96, 160)),  # ours, for reference models of about a million parameters
}


class BasicBlock(nn.Module):
    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.downsample(x))


class Bottleneck(nn.Module):
    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = _shortcut(in_channels, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + self.downsample(x))


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
    )


class ResNet(nn.Module):
    """(B, 3, H, W) -> the features of `levels`, fine to coarse.

    strides: of the four stages.  max_pool: after the stem.  levels: 0 is the stem (half resolution, before pooling),
    1 to 4 the stages.  channels, reduction: of the returned levels.
    """

    def __init__(self, layout: Layout, strides: Sequence[int], max_pool: bool, levels: Sequence[int]) -> None:
        super().__init__()
        self.max_pool, self.levels = max_pool, tuple(levels)
        self.channels = tuple(layout.channels[level] for level in levels)
        pooled = 4 if max_pool else 2
        self.reduction = tuple(2 if level == 0 else pooled * prod(strides[:level]) for level in levels)
        self.conv1 = nn.Conv2d(3, layout.widths[0], 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(layout.widths[0])
        stages = [_stage(layout, i, stride) for i, stride in enumerate(strides)]
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.register_load_state_dict_pre_hook(_without_classifier)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> list[Tensor]:
        stem = F.relu(self.bn1(self.conv1(x.to(self.conv1.weight.dtype))))
        features = [stem]
        x = F.max_pool2d(stem, 3, stride=2, padding=1) if self.max_pool else stem
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            features.append(x)
        return [features[level] for level in self.levels]


def _stage(layout: Layout, index: int, stride: int) -> nn.Sequential:
    block = Bottleneck if layout.bottleneck else BasicBlock
    width, out_channels = layout.widths[index], layout.channels[index + 1]
    first = block(layout.channels[index], width, stride)
    return nn.Sequential(first, *(block(out_channels, width, 1) for _ in range(layout.blocks[index] - 1)))


def _without_classifier(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
    """ImageNet's classifier is in every published checkpoint and in no pose network."""
    for name in ("fc.weight", "fc.bias"):
        state_dict.pop(prefix + name, None)


def resnet(
    name: str,
    strides: Sequence[int] = (1, 2, 2, 2),
    max_pool: bool = True,
    levels: Sequence[int] = (1, 2, 3, 4),
) -> ResNet:
    """A row of LAYOUTS as a trunk. RecipeError lists the known ones."""
    if name not in LAYOUTS:
        raise RecipeError(
            "backbone", got=repr(name), expected=f"one of {', '.join(LAYOUTS)}", remedy="Correct the network's options."
        )
    return ResNet(LAYOUTS[name], strides, max_pool, levels)
