"""posekit's own detector: one graph, boxes out, nothing to suppress. Network: posekit.export.networks.anchor_free."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from posekit.export.networks.anchor_free import STRIDE_PX, AnchorFree
from posekit.export.systems import GraphSource, System
from posekit.runtime.crop import CropPreset
from posekit.runtime.tensor import TensorSpec

GAUSSIAN_REACH = 0.54  # of the box's sides (Liu et al., TTFNet, 2020, section 3.2)
FOCAL_POWER, NEAR_CENTRE_POWER = 2.0, 4.0  # alpha and beta of CenterNet's equation 1
BOX_WEIGHT = 2.0


@dataclass(frozen=True, eq=False)
class DetectionTarget:
    """boxes: (B, M, 4) edges in input pixels, padded.   labels: (B, M) int64, -1 for padding.
    ignored: (B, M) bool, things too hidden to ask for and too visible to punish.
    """

    boxes: Tensor
    labels: Tensor
    ignored: Tensor


def detection_losses(logits: Tensor, boxes: Tensor, target: DetectionTarget) -> dict[str, Tensor]:
    """logits: (B, C, h, w).   boxes: (B, 4, h, w), both of AnchorFree.maps."""
    grid_hw = (logits.shape[2], logits.shape[3])
    wanted = (target.labels >= 0) & ~target.ignored
    gaussians = box_gaussians(target.boxes, grid_hw) * wanted[..., None, None]
    heat = heat_maps(gaussians, target.labels, logits.shape[1])
    counted = heat.ge(1.0) | ~_inside(target.boxes, target.ignored, grid_hw)[:, None]
    return {
        "heat": focal_loss(logits, heat, counted) / wanted.sum().clamp(min=1),
        "box": BOX_WEIGHT * box_loss(boxes, gaussians, target.boxes),
    }


def box_gaussians(boxes: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """(B, M, 4) -> (B, M, h, w): 1 at the cell of the box's centre, falling to the reach along each side, 0 beyond."""
    centre = ((boxes[..., :2] + boxes[..., 2:]) / 2 / STRIDE_PX).floor()
    reach = (GAUSSIAN_REACH * (boxes[..., 2:] - boxes[..., :2]) / 2 / STRIDE_PX).floor()
    sigma = (2 * reach + 1) / 6
    parts = []
    for axis, cells in ((0, grid_hw[1]), (1, grid_hw[0])):
        distance = (torch.arange(cells, device=boxes.device) - centre[..., axis : axis + 1]).abs()
        bell = torch.exp(-0.5 * (distance / sigma[..., axis : axis + 1]) ** 2)
        parts.append(bell * (distance <= reach[..., axis : axis + 1]))
    return parts[1][..., :, None] * parts[0][..., None, :]


def heat_maps(gaussians: Tensor, labels: Tensor, classes: int) -> Tensor:
    """(B, M, h, w) and (B, M) -> (B, C, h, w): the highest Gaussian of each class."""
    of_class = labels[:, :, None] == torch.arange(classes, device=labels.device)
    return (gaussians[:, :, None] * of_class[..., None, None]).amax(dim=1)


def focal_loss(logits: Tensor, heat: Tensor, counted: Tensor) -> Tensor:
    """CenterNet, equation 1, summed: cells near a centre are punished less. counted: where the loss is asked for."""
    log_p, log_not_p = F.logsigmoid(logits), F.logsigmoid(-logits)
    at_centre = (1 - log_p.exp()) ** FOCAL_POWER * log_p
    elsewhere = (1 - heat) ** NEAR_CENTRE_POWER * log_p.exp() ** FOCAL_POWER * log_not_p
    return -(torch.where(heat >= 1.0, at_centre, elsewhere) * counted).sum()


def box_loss(boxes: Tensor, gaussians: Tensor, true_boxes: Tensor) -> Tensor:
    """1 - GIoU of each cell with its box, weighted by the Gaussian; the smallest box takes a cell that several claim."""
    area = (true_boxes[..., 2:] - true_boxes[..., :2]).clamp(min=0).prod(dim=-1)
    claims = torch.where(gaussians > 0, area[..., None, None], torch.inf)
    owner = claims.argmin(dim=1, keepdim=True)
    weight = gaussians.gather(1, owner)[:, 0].flatten(1)
    own_box = true_boxes.gather(1, owner.flatten(1)[..., None].expand(-1, -1, 4))
    loss = 1 - giou(boxes.flatten(2).transpose(1, 2), own_box)
    return (weight * loss).sum() / weight.sum().clamp(min=1e-6)


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU of boxes (..., 4), in -1..1 (Rezatofighi et al., 2019)."""
    area_a, area_b = ((x[..., 2:] - x[..., :2]).clamp(min=0).prod(dim=-1) for x in (a, b))
    sides = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(min=0).prod(dim=-1)
    intersection = sides.clamp(min=0).prod(dim=-1)
    union = area_a + area_b - intersection
    return intersection / union.clamp(min=1e-6) - (hull - union) / hull.clamp(min=1e-6)


def _inside(boxes: Tensor, chosen: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """(B, h, w): cells whose centre lies in a chosen box."""
    x = (torch.arange(grid_hw[1], device=boxes.device) + 0.5) * STRIDE_PX
    y = (torch.arange(grid_hw[0], device=boxes.device) + 0.5) * STRIDE_PX
    columns = (x > boxes[..., 0:1]) & (x < boxes[..., 2:3])
    rows = (y > boxes[..., 1:2]) & (y < boxes[..., 3:4])
    return (rows[..., :, None] & columns[..., None, :] & chosen[..., None, None]).any(dim=1)


# What is above float16's range or resolution stays out: the last layers (equal logits would make double peaks) and the boxes.
TRUNK = (
    *("fine", "coarse", "lateral", "joined", "add_coarse", "class_head", "side_head"),
    *("-class_head.1", "-side_head.1"),
)


def _graphs(network: AnchorFree, crop: CropPreset) -> dict[str, GraphSource]:
    height, width = (STRIDE_PX * cells for cells in network.grid_hw)
    image = TensorSpec("image", "uint8", (1, height, width, 3))
    return {"detector": GraphSource("detector", network, (image,), ("boxes", "scores", "labels"), TRUNK)}


SYSTEM = System(
    name="anchor-free",
    title="Anchor-free detector",
    source="posekit; after CenterNet (arXiv 1904.07850), FCOS (1904.01355) and TTFNet (1909.00700)",
    crop=CropPreset("full", 320),  # a detector sees the letterboxed image; nothing is cut
    network=AnchorFree,
    graphs=_graphs,
)
