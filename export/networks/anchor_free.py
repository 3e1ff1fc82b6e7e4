"""A compact one-level detector without anchors or suppression: plain convolutions, decoded in the graph.

Class heat maps as in CenterNet (Zhou et al., Objects as Points, 2019), distances to the four sides as in FCOS (Tian et
al., 2019), on one level of stride 8 that a level of stride 16 is added to (Lin et al., FPN, 2017).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from posekit.export.networks.entrance import Entrance

STRIDE_PX = 8
PRIOR = 0.01  # probability of an object that an untrained head gives (Lin et al., Focal Loss, 2017)
NO_PEAK_LOGIT = -20.0


class AnchorFree(nn.Module):
    """image (B, H, W, 3) uint8 RGB -> boxes (B, K, 4), scores (B, K), labels (B, K) int64, best first.

    Boxes: x0, y0, x1, y1, edges in pixels of the input. The state dict is the checkpoint.
    input_wh_px: multiples of 16.   widths: channels at strides 2, 4, 8 and 16.   depth: residual blocks at strides 8, 16.
    """

    def __init__(
        self,
        classes: int,
        input_wh_px: Sequence[int] = (320, 240),
        widths: Sequence[int] = (16, 32, 48, 96),
        depth: Sequence[int] = (1, 2),
        detections: int = 32,
    ) -> None:
        super().__init__()
        self.classes, self.detections = classes, detections
        width, height = input_wh_px
        self.grid_hw = (height // STRIDE_PX, width // STRIDE_PX)
        self.entrance = Entrance()
        self.fine = nn.Sequential(
            *[_conv(a, b, stride=2) for a, b in zip((3, *widths[:2]), widths[:3], strict=True)],
            *[_Residual(widths[2]) for _ in range(depth[0])],
        )
        self.coarse = nn.Sequential(
            _conv(widths[2], widths[3], stride=2), *[_Residual(widths[3]) for _ in range(depth[1])]
        )
        self.lateral = nn.Conv2d(widths[3], widths[2], 1)
        self.add_coarse = _AddCoarse()
        self.joined = _conv(widths[2], widths[2])
        self.class_head = nn.Sequential(_conv(widths[2], widths[2]), nn.Conv2d(widths[2], classes, 1))
        self.side_head = nn.Sequential(_conv(widths[2], widths[2]), nn.Conv2d(widths[2], 4, 1))
        nn.init.constant_(_bias(self.class_head), -float(torch.logit(torch.tensor(1 - PRIOR))))
        self.register_buffer("cell_centres", _cell_centres(self.grid_hw), persistent=False)
        # Class and cell of every place in the flattened heat maps: a look-up where a graph would divide integers.
        cells = self.grid_hw[0] * self.grid_hw[1]
        self.register_buffer("label_of", torch.arange(classes).repeat_interleave(cells), persistent=False)
        self.register_buffer("cell_of", torch.arange(cells).repeat(classes), persistent=False)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.decoded(*self.maps(image))

    def maps(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """image as in `forward` -> class logits (B, C, h, w), boxes (B, 4, h, w)."""
        fine = self.fine(self.entrance(image))
        joined = self.joined(self.add_coarse(fine, self.lateral(self.coarse(fine))))
        return self.class_head(joined).float(), self._boxes(self.side_head(joined).float())

    def decoded(self, logits: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The best peaks of the heat maps: cells that no neighbour of their class outdoes."""
        peaks = logits >= F.max_pool2d(logits, 3, stride=1, padding=1)
        scored = torch.where(peaks, logits, NO_PEAK_LOGIT).flatten(1)
        best, index = scored.topk(self.detections, dim=1)
        cell = _looked_up(self.cell_of, index)[..., None].expand(-1, -1, 4)
        chosen = boxes.flatten(2).transpose(1, 2).gather(1, cell)
        return chosen, torch.sigmoid(best), _looked_up(self.label_of, index)

    def _boxes(self, raw: Tensor) -> Tensor:
        """Softplus keeps sides positive and, unlike exp, steady under INT8."""
        left_top, right_bottom = (2.0 * STRIDE_PX * F.softplus(raw)).chunk(2, dim=1)
        centres = self.cell_centres
        assert isinstance(centres, Tensor)
        return torch.cat([centres - left_top, centres + right_bottom], dim=1)


def _looked_up(table: Tensor | nn.Module, index: Tensor) -> Tensor:
    """table[index] as one plain Gather; indexing by a tensor would be traced to a GatherND."""
    assert isinstance(table, Tensor)
    return table.index_select(0, index.flatten()).view_as(index)


class _AddCoarse(nn.Module):
    """A level and the next coarser one, which is doubled. A module, so that a trunk in lower precision can name it."""

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        return fine + F.interpolate(coarse, scale_factor=2.0, mode="nearest")


class _Residual(nn.Module):
    """Two 3x3 convolutions beside the identity (He et al., 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _conv(channels, channels)
        self.second = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.first(x)))


def _conv(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU()
    )


def _bias(head: nn.Sequential) -> Tensor:
    bias = head[-1].bias
    assert isinstance(bias, Tensor)
    return bias


def _cell_centres(grid_hw: tuple[int, int]) -> Tensor:
    """(1, 2, h, w): x, y of each cell's centre as edges of the input's pixels are counted."""
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) + 0.5 for n in grid_hw), indexing="ij")
    return STRIDE_PX * torch.stack([columns, rows])[None]
