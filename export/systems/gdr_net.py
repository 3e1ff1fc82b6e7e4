"""GDR-Net: dense geometry maps, then a learned PnP (Wang et al., CVPR 2021, arXiv 2102.12145).

Crop DZI 1.5 to 256 px, BGR in 0..1. ResNet-34, three map kinds at a quarter of the crop's side, Patch-PnP to an allocentric
6D rotation and SITE. Exports two graphs with one set of weights: "pose" (regressor) and "correspondence" (for PnP).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from posekit.export.networks.entrance import Entrance
from posekit.export.networks.gdr_heads import DenseHead, PatchPnP, image_coordinates, of_label, score_of_mask
from posekit.export.networks.geometry import pose_from_site
from posekit.export.networks.resnet import resnet
from posekit.export.systems import GraphSource, PathPlan, System
from posekit.runtime.crop import PRESETS, CropPreset
from posekit.runtime.manifest import SolverEntry
from posekit.runtime.tensor import TensorSpec

PNP = SolverEntry(reprojection_px=3.0)


DENSE_TRUNK = ("network.backbone", "network.head")
# The two last layers are small, and their rounding would be the pose's: 2^-11 of a translation.
POSE_TRUNK = (*DENSE_TRUNK, "network.pnp", "-network.pnp.rotation", "-network.pnp.site")


class Maps(NamedTuple):
    """mask_logit: (B, 1, h, w).  xyz: (B, 3, h, w), about 0..1 over the object's box.  region: (B, 1 + regions, h, w)
    logits, channel 0 is background; None without regions."""

    mask_logit: Tensor
    xyz: Tensor
    region: Tensor | None


class GdrNet(nn.Module):
    """The network behind both graphs; its state dict is the checkpoint.

    backbone: a name of posekit.export.networks.resnet.  skips: join finer backbone levels into the head (not published;
    the reference model's choice).  n_objects > 1: class-aware map channels (GDRNPP).
    """

    def __init__(
        self,
        backbone: str = "resnet34",
        crop_size_px: int = 256,
        n_objects: int = 1,
        regions: int = 64,
        head_widths: Sequence[int] = (256, 256, 256),
        skips: bool = False,
        pnp_width: int = 128,
        pnp_hidden: Sequence[int] = (1024, 256),
    ) -> None:
        super().__init__()
        self.n_objects, self.regions, self.crop_size_px = n_objects, regions, crop_size_px
        levels = len(head_widths)
        self.backbone = resnet(backbone)
        channels = list(self.backbone.channels)[::-1]  # coarse to fine
        skip_channels = channels[1 : 1 + levels] if skips else []
        self.head = DenseHead(channels[0], head_widths, n_objects * (4 + self._region_channels), skip_channels)
        self.grid = crop_size_px // 32 * 2**levels
        self.pnp = PatchPnP(5 + regions, self.grid, pnp_width, pnp_hidden)

    @property
    def _region_channels(self) -> int:
        return self.regions + 1 if self.regions else 0

    def maps(self, x: Tensor, label: Tensor | None) -> Maps:
        """x: (B, 3, S, S) normalised, label: (B,) int64 (None with one object) -> each crop's own object's maps."""
        features = list(self.backbone(x))[::-1]
        out = of_label(self.head(features), label, self.n_objects)
        return Maps(out[:, :1], out[:, 1:4], out[:, 4:] if self.regions else None)

    def regress(self, maps: Maps, coord2d: Tensor, extents_m: Tensor) -> tuple[Tensor, Tensor]:
        """Patch-PnP on the maps -> r6 (B, 6) allocentric, site (B, 3). extents_m: (B, 3)."""
        parts = [(maps.xyz - 0.5) * extents_m[:, :, None, None], coord2d]
        if maps.region is not None:
            parts.append(F.softmax(maps.region[:, 1:], dim=1))
        r6, site = self.pnp(torch.cat(parts, dim=1))
        return r6, site


class _Pose(nn.Module):
    """The "pose" graph: crops and geometry -> R, t (egocentric, metres), score."""

    def __init__(self, network: GdrNet) -> None:
        super().__init__()
        self.entrance, self.network = Entrance(mean=(0, 0, 0), std=(1, 1, 1), bgr=True), network

    def forward(
        self,
        crops: Tensor,
        box: Tensor,
        warp: Tensor,
        K: Tensor,
        image_wh: Tensor,
        bbox_m: Tensor,
        label: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        net = self.network
        maps = net.maps(self.entrance(crops), label)
        coord2d = image_coordinates(warp, image_wh, net.crop_size_px, net.grid)
        r6, site = net.regress(maps, coord2d, bbox_m[:, 1] - bbox_m[:, 0])
        R, t = pose_from_site(r6, site, box, warp, K, net.crop_size_px, net.grid)
        return R, t, score_of_mask(torch.sigmoid(maps.mask_logit))


class _Correspondence(nn.Module):
    """The "correspondence" graph: crops -> mask (B, h, w) probability, coords_m (B, h, w, 3) in the object frame."""

    def __init__(self, network: GdrNet) -> None:
        super().__init__()
        self.entrance, self.network = Entrance(mean=(0, 0, 0), std=(1, 1, 1), bgr=True), network

    def forward(self, crops: Tensor, bbox_m: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        maps = self.network.maps(self.entrance(crops), label)
        low, extents = bbox_m[:, 0], bbox_m[:, 1] - bbox_m[:, 0]
        coords = maps.xyz.permute(0, 2, 3, 1) * extents[:, None, None] + low[:, None, None]
        return torch.sigmoid(maps.mask_logit[:, 0]), coords


def _graphs(network: GdrNet, crop: CropPreset) -> dict[str, GraphSource]:
    size = crop.side_px
    feeds = {
        "crops": TensorSpec("crops", "uint8", ("batch", size, size, 3)),
        "box": TensorSpec("box", "float32", ("batch", 4)),
        "warp": TensorSpec("warp", "float32", ("batch", 2, 3)),
        "K": TensorSpec("K", "float32", ("batch", 3, 3)),
        "image_wh": TensorSpec("image_wh", "float32", ("batch", 2)),
        "bbox_m": TensorSpec("bbox_m", "float32", ("batch", 2, 3)),
    }
    if network.n_objects > 1:
        feeds["label"] = TensorSpec("label", "int64", ("batch",))
    dense = tuple(feeds[name] for name in ("crops", "bbox_m", "label") if name in feeds)
    pose, correspondence = _Pose(network), _Correspondence(network)
    return {
        "pose": GraphSource("pose", pose, tuple(feeds.values()), ("R", "t", "score"), POSE_TRUNK),
        "correspondence": GraphSource("correspondence", correspondence, dense, ("mask", "coords_m"), DENSE_TRUNK),
    }


SYSTEM = System(
    name="gdr-net",
    title="GDR-Net: geometry-guided direct regression",
    source="Wang, Manhardt, Tombari, Ji: GDR-Net, CVPR 2021, arXiv 2102.12145",
    crop=PRESETS["dzi-1.5-256"],
    network=GdrNet,
    graphs=_graphs,
    paths={
        "regressor": PathPlan("regressor", "pose"),
        "epnp": PathPlan("correspondence", "correspondence", solver=PNP),
    },
)


@dataclass(frozen=True)
class GdrTarget:
    """Truth of a batch. R: egocentric (B, 3, 3); already the symmetric equivalent to learn.  t: (B, 3) metres.
    mask: (B, h, w) visible, 0 or 1.  xyz: (B, 3, h, w) in 0..1 over the object's box.  points_m: (B, P, 3).
    region: (B, h, w) int64, 0 background, None without regions."""

    R: Tensor
    t: Tensor
    mask: Tensor
    xyz: Tensor
    points_m: Tensor
    region: Tensor | None = None


def gdr_losses(
    maps: Maps,
    R_allo: Tensor,
    site: Tensor,
    target: GdrTarget,
    R_allo_true: Tensor,
    site_true: Tensor,
    extents_m: Tensor,
) -> dict[str, Tensor]:
    """All terms of GDR-Net's loss, weight 1 each (paper, section 3.3; systems S5).

    L1 on coordinates inside the visible mask, L1 on the mask, cross entropy on regions inside the mask, 3 x mean
    point-matching L1 / largest extent for the rotation, L1 on the SITE offsets.
    """
    inside = target.mask[:, None]
    count = inside.sum().clamp(min=1.0)
    losses = {
        "xyz": ((maps.xyz - target.xyz).abs() * inside).sum() / count,
        "mask": (torch.sigmoid(maps.mask_logit) - inside).abs().mean(),
    }
    if maps.region is not None and target.region is not None:
        entropy = F.cross_entropy(maps.region, target.region, reduction="none")
        losses["region"] = (entropy * target.mask).sum() / count
    moved = target.points_m @ (R_allo - R_allo_true).transpose(1, 2)
    losses["rotation"] = 3 * (moved.abs().mean(dim=(1, 2)) / extents_m.amax(dim=1)).mean()
    losses["xy"] = (site[:, :2] - site_true[:, :2]).abs().mean()
    losses["z"] = (site[:, 2] - site_true[:, 2]).abs().mean()
    return losses
