"""TraM3D: published layout and sizes, descriptors per patch, and export."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from posekit.export.networks.vit import VisionTransformer
from posekit.export.onnx_from_network import onnx_from_network
from posekit.export.systems import system_named
from posekit.export.systems.tram3d import SYSTEM, TraM3D
from posekit.runtime.crop import CropPreset
from posekit.runtime.errors import RecipeError
from posekit.runtime.tensor import TensorSpec

SMALL = CropPreset("square", 32)


def toy() -> TraM3D:
    torch.manual_seed(0)
    return TraM3D(image_px=32, patch_px=8, dim=16, depth=1, heads=2, channels=8)


def test_the_row_of_systems() -> None:
    system = system_named("tram3d")
    assert system is SYSTEM
    assert system.paths["bank"].kind == "bank"


def test_published_size() -> None:
    with torch.device("meta"):
        net = TraM3D()
    head = 2 * 384 + 384 * 32 + 32 + 2 * 32
    assert sum(p.numel() for p in net.parameters()) == 21_665_664 + head


def test_contract_of_the_published_size() -> None:
    with torch.device("meta"):
        graphs = SYSTEM.graphs(TraM3D(), SYSTEM.crop)
    assert graphs["embedder"].inputs == (TensorSpec("crops", "uint8", ("batch", 224, 224, 3)),)
    assert [spec.shape for spec in graphs["matcher"].inputs] == [("batch", 196, 32), (196, 32, "views"), ("views",)]


def test_a_dino_trunk_loads_under_its_prefix() -> None:
    trunk = VisionTransformer(32, 8, 16, 1, 2).state_dict()
    net = toy()
    missing = net.load_state_dict({f"backbone.{k}": v for k, v in trunk.items()}, strict=False)
    assert missing.unexpected_keys == []
    assert {key.split(".")[0] for key in missing.missing_keys} == {"head"}


def test_one_unit_descriptor_per_patch() -> None:
    net = toy().eval()
    descriptors = net(torch.randn(2, 3, 32, 32))
    assert descriptors.shape == (2, 16, 8)
    torch.testing.assert_close(descriptors.norm(dim=2), torch.ones(2, 16))


def test_descriptors_follow_their_patches() -> None:
    """Without positions a transformer is equivariant: swapping two patches swaps their descriptors, CLS is not counted."""
    net = toy().eval()
    torch.nn.init.zeros_(net.backbone.pos_embed)
    x = torch.randn(1, 3, 32, 32)
    swapped = x.clone()
    swapped[..., 0:8, 0:8], swapped[..., 8:16, 24:32] = x[..., 8:16, 24:32], x[..., 0:8, 0:8]
    before, after = net(x), net(swapped)
    torch.testing.assert_close(after[0, 0], before[0, 7], atol=1e-5, rtol=0)
    torch.testing.assert_close(after[0, 7], before[0, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(after[0, 1:7], before[0, 1:7], atol=1e-5, rtol=0)


def test_another_crop_size_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"crop size: got 224, expected 32.*image_px"):
        SYSTEM.graphs(toy(), SYSTEM.crop)


def test_a_half_precision_trunk_gives_nearly_the_same_descriptors() -> None:
    net = toy().eval()
    embedder = SYSTEM.graphs(net, SMALL)["embedder"].module
    crops = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    with torch.no_grad():
        full = embedder(crops)
        net.half()
        half = embedder(crops)
    assert half.dtype == torch.float32
    assert float((full * half).sum(dim=2).min()) > 0.999


def test_the_embedder_exports(tmp_path: Path) -> None:
    graph = onnx_from_network(SYSTEM.graphs(toy(), SMALL)["embedder"], tmp_path / "embedder.onnx", simplify=False)
    assert graph.outputs == (TensorSpec("descriptors", "float32", ("batch", 16, 8)),)


@pytest.mark.slow
def test_the_published_size_exports(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for name, source in SYSTEM.graphs(TraM3D(), SYSTEM.crop).items():
        onnx_from_network(source, tmp_path / f"{name}.onnx")
