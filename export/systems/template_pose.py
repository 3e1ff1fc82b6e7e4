"""Template-pose: local descriptors against rendered templates (Nguyen et al., CVPR 2022, arXiv 2203.17234).

Square crop to 224 px, ImageNet normalisation. ResNet-50 at stride 8 without max-pool, 1 x 1 head to 16 channels; cosines at
784 places, those up to 0.2 ignored, averaged under the template's mask. Checkpoint layout: `backbone.*` with torchvision
names (a classifier is dropped), `projector.1.weight`, `projector.3.weight`; the base variant `backbone.0`, `backbone.2`,
`projector.0`, `projector.2`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from posekit.export.networks.entrance import Entrance
from posekit.export.networks.local_head import LocalHead, places_of_map, unit_descriptors
from posekit.export.networks.matcher import matcher_graph
from posekit.export.networks.resnet import resnet
from posekit.export.systems import GraphSource, PathPlan, System
from posekit.runtime.crop import PRESETS, CropPreset
from posekit.runtime.errors import RecipeError
from posekit.runtime.tensor import TensorSpec

THRESHOLD = 0.2
TRUNK = ("network.backbone", "network.projector")
BANK_PATHS = {"bank": PathPlan("bank", "embedder", matcher="matcher")}


class BaseBackbone(nn.ModuleList):
    """The small two-layer trunk of Wohlhart & Lepetit (CVPR 2015) in its local form: 64 px -> 7 x 25 x 25."""

    channels = (7,)

    def __init__(self) -> None:
        super().__init__([nn.Conv2d(3, 16, 8, stride=2), nn.ReLU(), nn.Conv2d(16, 7, 5), nn.ReLU()])

    def forward(self, x: Tensor) -> list[Tensor]:
        x = x.to(next(self.parameters()).dtype)
        for layer in self:
            x = layer(x)
        return [x]


class TemplatePose(nn.Module):
    """(B, 3, S, S) normalised -> descriptors (B, L, channels), unit length; L = `grid(S)` squared.

    backbone: "base", or a name of posekit.export.networks.resnet.  channels: 16 published, 8 in the universal model.
    max_pool: stride 16 instead of the published 8, for small crops.
    """

    def __init__(
        self, backbone: str = "resnet50", channels: int = 16, hidden: int = 256, max_pool: bool = False
    ) -> None:
        super().__init__()
        self.channels, self.base = channels, backbone == "base"
        strides = (1, 2, 2, 1)
        self.stride_px = 16 if max_pool else 8
        self.backbone = BaseBackbone() if self.base else resnet(backbone, strides, max_pool, levels=(4,))
        self.projector = LocalHead(self.backbone.channels[-1], hidden, channels, relu_first=not self.base)
        self.register_load_state_dict_pre_hook(_without_aliases)  # type: ignore[no-untyped-call]

    def grid(self, size_px: int) -> int:
        """Places along a side of the descriptor map. RecipeError for a crop that the trunk does not divide."""
        if self.base:
            return (size_px - 8) // 2 - 3
        if size_px % self.stride_px:
            raise RecipeError(
                "crop size",
                got=size_px,
                expected=f"a multiple of {self.stride_px}",
                remedy="Use 224 px, the published size.",
            )
        return size_px // self.stride_px

    def forward(self, x: Tensor) -> Tensor:
        return unit_descriptors(places_of_map(self.projector(self.backbone(x)[-1])))


def _without_aliases(module: TemplatePose, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
    """The published base variant lists its layers twice: keep `backbone.0`, `backbone.2` and `projector`."""
    if module.base:
        for key in [key for key in state_dict if key.startswith(prefix)]:
            if key.removeprefix(prefix).startswith(("layer1.", "layer2.", "backbone.4.")):
                del state_dict[key]


class Embedder(nn.Module):
    """The "embedder" graph: crops -> descriptors."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.entrance, self.network = Entrance(), network

    def forward(self, crops: Tensor) -> Tensor:
        descriptors: Tensor = self.network(self.entrance(crops))
        return descriptors


def bank_graphs(
    network: nn.Module, size_px: int, places: int, channels: int, trunk: tuple[str, ...]
) -> dict[str, GraphSource]:
    """The two graphs of a template bank: "embedder" and "matcher". trunk: of the embedder; the matcher has none."""
    crops = TensorSpec("crops", "uint8", ("batch", size_px, size_px, 3))
    return {
        "embedder": GraphSource("embedder", Embedder(network), (crops,), ("descriptors",), trunk),
        "matcher": matcher_graph(places, channels, THRESHOLD),
    }


def _graphs(network: TemplatePose, crop: CropPreset) -> dict[str, GraphSource]:
    return bank_graphs(network, crop.side_px, network.grid(crop.side_px) ** 2, network.channels, TRUNK)


SYSTEM = System(
    name="template-pose",
    title="Template-pose: local template matching",
    source="Nguyen, Hu, Xiao, Salzmann, Lepetit: Templates for 3D Object Pose Estimation Revisited, CVPR 2022",
    crop=PRESETS["sq-pad-224"],
    network=TemplatePose,
    graphs=_graphs,
    paths=BANK_PATHS,
)
