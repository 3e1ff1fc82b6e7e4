"""SurfEmb queries regressed to a pose by a learned PnP (systems S6; queries: Haugaard & Buch, CVPR 2022).

Crop 1.2 x the longer side to 256 px, ImageNet normalisation. The query network's 12 channels at full resolution and the
full-image coordinates of every pixel pass the regressor; it gives an allocentric 6D rotation and SITE with the raw
detection box and the camera's own K. Where the published text and code disagree, posekit follows GDR-Net's conventions:
right-handed 6D rotation, OpenCV K, unpadded box, coordinates of the full image, nothing dropped at inference; crops are
upright in training too. Score: the mean mask probability inside the predicted mask, 0 where there is none.
Checkpoint layout: `queries.*`, where a SurfEmb query network's own names fit too, and `pnp.*`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from posekit.export.networks.entrance import Entrance
from posekit.export.networks.gdr_heads import image_coordinates, of_label, score_of_mask
from posekit.export.networks.geometry import pose_from_site
from posekit.export.networks.patch_pnp import TRUNK_WIDTHS, QueryPnP
from posekit.export.networks.unet import DECODER_WIDTHS, QueryNet
from posekit.export.systems import GraphSource, PathPlan, System
from posekit.runtime.crop import PRESETS, CropPreset
from posekit.runtime.errors import RecipeError
from posekit.runtime.tensor import TensorSpec

SITE_GRID_PX = 64  # r = 64 / s, whatever the resolution of the maps (systems P5)


class SurfEmbRegressor(nn.Module):
    """The query network and its regressor; the state dict is the checkpoint.

    n_objects > 1: class-indexed outputs of both.  decoder_index: of a SurfEmb checkpoint with a decoder per object.
    """

    def __init__(
        self,
        backbone: str = "resnet18",
        crop_size_px: int = 256,
        n_objects: int = 1,
        query_channels: int = 12,
        decoder_widths: Sequence[int] = DECODER_WIDTHS,
        decoder_index: int = 0,
        pnp_widths: Sequence[int] = TRUNK_WIDTHS,
        pnp_hidden: Sequence[int] = (1200, 256),
        z_hidden: int = 32,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if crop_size_px % 32:
            raise RecipeError(
                "crop_size_px", got=crop_size_px, expected="a multiple of 32", remedy="Use 256, the published size."
            )
        self.crop_size_px, self.n_objects = crop_size_px, n_objects
        self.queries = QueryNet(backbone, query_channels, n_objects, decoder_widths, decoder_index)
        self.pnp = QueryPnP(
            query_channels + 2, crop_size_px, pnp_widths, pnp_hidden, z_hidden, dropout, n_objects=n_objects
        )

    def forward(
        self, x: Tensor, warp: Tensor, image_wh: Tensor, label: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x: (B, 3, S, S) normalised -> mask logit (B, 1, S, S), queries (B, E, S, S), r6 (B, 6), site (B, 3)."""
        mask_logit, queries = self.queries(x, label)
        coords = image_coordinates(warp, image_wh, self.crop_size_px, self.crop_size_px)
        r6, site = self.pnp(torch.cat([queries, coords.to(queries.dtype)], dim=1))
        return mask_logit, queries, self._own(r6, label), self._own(site, label)

    def _own(self, numbers: Tensor, label: Tensor | None) -> Tensor:
        return of_label(numbers[:, :, None, None], label, self.n_objects).flatten(1)


class _Pose(nn.Module):
    """The "pose" graph: crops and geometry -> R, t (egocentric, metres), score."""

    def __init__(self, network: SurfEmbRegressor) -> None:
        super().__init__()
        self.entrance, self.network = Entrance(), network

    def forward(
        self, crops: Tensor, box: Tensor, warp: Tensor, K: Tensor, image_wh: Tensor, label: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        mask_logit, _, r6, site = self.network(self.entrance(crops), warp, image_wh, label)
        R, t = pose_from_site(r6, site, box, warp, K, self.network.crop_size_px, SITE_GRID_PX)
        return R, t, score_of_mask(torch.sigmoid(mask_logit.float()))


def _graphs(network: SurfEmbRegressor, crop: CropPreset) -> dict[str, GraphSource]:
    size = network.crop_size_px
    if crop.side_px != size:
        raise RecipeError(
            "crop size",
            got=crop.side_px,
            expected=f"{size}, the regressor's",
            remedy="Its fully connected layers fit one size: set options.crop_size_px, or correct the crop.",
        )
    feeds = [
        TensorSpec("crops", "uint8", ("batch", size, size, 3)),
        TensorSpec("box", "float32", ("batch", 4)),
        TensorSpec("warp", "float32", ("batch", 2, 3)),
        TensorSpec("K", "float32", ("batch", 3, 3)),
        TensorSpec("image_wh", "float32", ("batch", 2)),
    ]
    if network.n_objects > 1:
        feeds.append(TensorSpec("label", "int64", ("batch",)))
    # The heads' last layers are small, and their rounding would be the pose's: 2^-11 of a translation.
    heads = {"rotation": network.pnp.rotation, "xy": network.pnp.xy, "z": network.pnp.z}
    last = (f"-network.pnp.{name}.{len(head) - 1}" for name, head in heads.items())
    trunk = ("network.queries", "network.pnp", *last)
    return {"pose": GraphSource("pose", _Pose(network), tuple(feeds), ("R", "t", "score"), trunk)}


SYSTEM = System(
    name="surfemb-regressor",
    title="SurfEmb queries with a Patch-PnP regressor",
    source="Haugaard, Buch: SurfEmb, CVPR 2022, arXiv 2111.13489; the regressor: Gjertsen (thesis)",
    crop=PRESETS["1.2-max-256"],
    network=SurfEmbRegressor,
    graphs=_graphs,
    paths={"regressor": PathPlan("regressor", "pose")},
)
