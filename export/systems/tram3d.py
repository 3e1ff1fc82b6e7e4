"""TraM3D: self-supervised vision transformer features for template matching (Thalhammer et al., arXiv 2306.00129).

Square crop to 224 px, ImageNet normalisation. ViT-S/16, every patch token to 32 channels; matching as in template-pose, at 196
places. Checkpoint layout: `backbone.*` with DINO's names (cls_token, pos_embed, patch_embed.proj, blocks.0.attn.qkv, ...)
so that a DINO ViT-S/16 loads under that prefix; the head's names are ours: `head.bn`, `head.linear`, `head.norm`.
The patch embedding is frozen in the published fine-tuning.
"""

from __future__ import annotations

from torch import Tensor, nn

from posekit.export.networks.local_head import TokenHead, unit_descriptors
from posekit.export.networks.vit import VisionTransformer
from posekit.export.systems import GraphSource, System
from posekit.export.systems.template_pose import BANK_PATHS, bank_graphs
from posekit.runtime.crop import PRESETS, CropPreset
from posekit.runtime.errors import RecipeError

TRUNK = ("network.backbone", "network.head")


class TraM3D(nn.Module):
    """(B, 3, S, S) normalised -> descriptors (B, (S / patch)^2, channels), unit length. The CLS token is left out."""

    def __init__(
        self,
        image_px: int = 224,
        patch_px: int = 16,
        dim: int = 384,
        depth: int = 12,
        heads: int = 6,
        channels: int = 32,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.backbone = VisionTransformer(image_px, patch_px, dim, depth, heads)
        self.head = TokenHead(dim, channels)

    def forward(self, x: Tensor) -> Tensor:
        return unit_descriptors(self.head(self.backbone(x))[:, 1:])


def _graphs(network: TraM3D, crop: CropPreset) -> dict[str, GraphSource]:
    if crop.side_px != network.backbone.image_px:
        raise RecipeError(
            "crop size",
            got=crop.side_px,
            expected=f"{network.backbone.image_px}, the transformer's",
            remedy="Its positions are learned for one size: set options.image_px, or correct the crop.",
        )
    return bank_graphs(network, crop.side_px, network.backbone.grid**2, network.channels, TRUNK)


SYSTEM = System(
    name="tram3d",
    title="TraM3D: transformer template matching",
    source="Thalhammer, Weibel, Vincze, Garcia-Rodriguez: Self-supervised Vision Transformers for 3D Pose Estimation "
    "of Novel Objects, arXiv 2306.00129",
    crop=PRESETS["sq-pad-224"],
    network=TraM3D,
    graphs=_graphs,
    paths=BANK_PATHS,
)
