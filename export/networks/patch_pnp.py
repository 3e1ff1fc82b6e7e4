"""Query maps to a pose: the regressor of systems S6, a pooled convolutional trunk and three heads.

GDR-Net's stride-2 trunk of the same purpose is posekit.export.networks.gdr_heads.PatchPnP.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TRUNK_WIDTHS = (16, 32, 64, 128, 256)
DROP_BLOCKS = ((20, 0.5), (10, 0.5), (5, 0.4), (1, 0.4))  # side in cells, share dropped; after the first four stages


class DropBlock(nn.Module):
    """Drop squares of a map while training (Ghiasi et al., NeurIPS 2018); the identity at inference."""

    def __init__(self, side: int, share: float) -> None:
        super().__init__()
        self.side, self.share = side, share

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.share == 0:
            return x
        side = min(self.side, x.shape[2], x.shape[3])
        # Squares that overlap make the dropped share a little smaller.
        centres = (torch.rand_like(x[:, :1]) < self.share / side**2).to(x.dtype)
        low = side // 2
        dropped = F.max_pool2d(F.pad(centres, (low, side - 1 - low, low, side - 1 - low)), side, stride=1)
        kept = 1 - dropped
        return x * kept * (kept.numel() / kept.sum().clamp(min=1.0))


def _stage(in_channels: int, out_channels: int, kernel: int, before: bool, after: bool, leaky: bool) -> nn.Sequential:
    """[BatchNorm], convolution, [BatchNorm], activation, halving."""
    return nn.Sequential(
        *([nn.BatchNorm2d(in_channels)] if before else []),
        nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2),
        *([nn.BatchNorm2d(out_channels)] if after else []),
        nn.LeakyReLU() if leaky else nn.ReLU(),
        nn.MaxPool2d(2),
    )


def _head(features: int, hidden: Sequence[int], out: int, normed: bool, dropout: float) -> nn.Sequential:
    """Fully connected layers with LeakyReLU between, dropout after the first."""
    layers: list[nn.Module] = []
    for i, width in enumerate(hidden):
        layers += [nn.Linear(features, width), *([nn.BatchNorm1d(width)] if normed else []), nn.LeakyReLU()]
        layers += [nn.Dropout(dropout)] if i == 0 else []
        features = width
    return nn.Sequential(*layers, nn.Linear(features, out))


class QueryPnP(nn.Module):
    """(B, in_channels, S, S) queries and positions -> r6 (B, 6 n), site (B, 3 n), n = n_objects.

    Five stages that halve the map; S must be a multiple of 32 and fixes the size of the heads (256 -> 256 x 8 x 8).
    The published description leaves open the activation between fully connected layers and the dropout there:
    LeakyReLU and one half are ours.
    """

    def __init__(
        self,
        in_channels: int = 14,
        size_px: int = 256,
        widths: Sequence[int] = TRUNK_WIDTHS,
        hidden: Sequence[int] = (1200, 256),
        z_hidden: int = 32,
        dropout: float = 0.5,
        n_objects: int = 1,
    ) -> None:
        super().__init__()
        a, b, c, d, e = widths
        self.stages = nn.ModuleList(
            [
                _stage(in_channels, a, 7, before=True, after=False, leaky=False),
                _stage(a, b, 3, before=True, after=True, leaky=False),
                _stage(b, c, 3, before=False, after=False, leaky=False),
                _stage(c, d, 3, before=True, after=True, leaky=True),
                _stage(d, e, 3, before=False, after=True, leaky=True),
            ]
        )
        self.drops = nn.ModuleList(DropBlock(side, share) for side, share in DROP_BLOCKS)
        features = e * (size_px // 32) ** 2
        self.rotation = _head(features, hidden, 6 * n_objects, normed=False, dropout=dropout)
        self.xy = _head(features, hidden, 2 * n_objects, normed=True, dropout=dropout)
        self.z = _head(features, (*hidden, z_hidden), n_objects, normed=False, dropout=dropout)
        self.n_objects = n_objects
        self._start_at_identity()

    def _start_at_identity(self) -> None:
        """Near the identity rotation, where the 6D decoder is well behaved."""
        last = self.rotation[-1]
        assert isinstance(last, nn.Linear)
        nn.init.normal_(last.weight, std=0.01)
        with torch.no_grad():
            last.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 0.0]).repeat(self.n_objects))

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        x = maps
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i < len(self.drops):
                x = self.drops[i](x)
        x = x.flatten(1)
        xy = self.xy(x).unflatten(1, (self.n_objects, 2))
        site = torch.cat([xy, self.z(x).unsqueeze(2)], dim=2).flatten(1)
        return self.rotation(x), site
