"""From trunk features to local descriptors: one unit vector per place, (B, L, C), places row by row."""

from __future__ import annotations

from torch import Tensor, nn

from posekit.export.networks.geometry import unit
from posekit.export.networks.vit import EPSILON


class LocalHead(nn.Sequential):
    """1 x 1 convolutions without bias on a map, (B, in_channels, h, w) -> (B, out_channels, h, w).

    relu_first: of the published ResNet variants; it shifts the state-dict keys by one.
    """

    def __init__(self, in_channels: int, hidden: int, out_channels: int, relu_first: bool = True) -> None:
        super().__init__(
            *([nn.ReLU()] if relu_first else []),
            nn.Conv2d(in_channels, hidden, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
        )


class TokenHead(nn.Module):
    """TraM3D's head: BatchNorm over the channels of all tokens, Linear, LayerNorm. (B, T, dim) -> (B, T, channels)."""

    def __init__(self, dim: int, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(dim)
        self.linear = nn.Linear(dim, channels)
        self.norm = nn.LayerNorm(channels, eps=EPSILON)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.bn(tokens.transpose(1, 2)).transpose(1, 2)
        out: Tensor = self.norm(self.linear(x))
        return out


def places_of_map(maps: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h w, C)."""
    return maps.flatten(2).transpose(1, 2)


def unit_descriptors(places: Tensor) -> Tensor:
    """(B, L, C) -> unit length along C, in float32 whatever the trunk's precision."""
    return unit(places.float(), dim=2)
