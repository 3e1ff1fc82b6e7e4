"""Template-pose: published layout and sizes, and an embedder with a bank that finds its own crops."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from posekit.export.onnx_from_network import onnx_from_network
from posekit.export.systems import system_named
from posekit.export.systems.template_pose import SYSTEM, TemplatePose
from posekit.runtime.crop import CropPreset
from posekit.runtime.errors import RecipeError
from posekit.runtime.tensor import TensorSpec

SMALL = CropPreset("square", 32)
PUBLISHED_PARAMETERS = 23_508_032 + 2048 * 256 + 256 * 16


def test_the_row_of_systems() -> None:
    system = system_named("template-pose")
    assert system is SYSTEM
    assert system.crop.size_px == 224
    assert system.paths["bank"].matcher == "matcher"


def test_published_size_and_keys() -> None:
    with torch.device("meta"):
        net = TemplatePose()
    assert sum(p.numel() for p in net.parameters()) == PUBLISHED_PARAMETERS
    assert [k for k in net.state_dict() if k.startswith("projector")] == ["projector.1.weight", "projector.3.weight"]
    assert "backbone.layer4.2.conv3.weight" in net.state_dict()


def test_contract_of_the_published_size() -> None:
    with torch.device("meta"):
        graphs = SYSTEM.graphs(TemplatePose(), SYSTEM.crop)
    assert graphs["embedder"].inputs == (TensorSpec("crops", "uint8", ("batch", 224, 224, 3)),)
    assert [spec.shape for spec in graphs["matcher"].inputs] == [("batch", 784, 16), (784, 16, "views"), ("views",)]
    assert (graphs["embedder"].role, graphs["embedder"].outputs) == ("embedder", ("descriptors",))
    assert (graphs["matcher"].role, graphs["matcher"].outputs) == ("matcher", ("index", "score"))


def test_the_stride_is_eight() -> None:
    net = TemplatePose("nano", channels=8).eval()
    assert net(torch.zeros(1, 3, 64, 64)).shape == (1, 64, 8)
    assert net.grid(64) == 8


def test_the_base_variant_has_the_known_map_and_reads_the_published_layout() -> None:
    torch.manual_seed(0)
    net, loaded = TemplatePose("base").eval(), TemplatePose("base").eval()
    assert net(torch.zeros(1, 3, 64, 64)).shape == (1, 25 * 25, 16)
    assert net.grid(64) == 25
    state = net.state_dict()
    aliases = {
        "layer1": "backbone.0",
        "layer2": "backbone.2",
        "backbone.4.0": "projector.0",
        "backbone.4.2": "projector.2",
    }
    for theirs, ours in aliases.items():
        state |= {k.replace(ours, theirs): v for k, v in net.state_dict().items() if k.startswith(ours)}
    loaded.load_state_dict(state, strict=True)
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(loaded(x), net(x))


def test_a_crop_that_the_trunk_does_not_divide_is_refused() -> None:
    with pytest.raises(RecipeError, match="crop size: got 30"):
        SYSTEM.graphs(TemplatePose("nano"), CropPreset("square", 30))


def test_every_crop_finds_itself_in_the_bank() -> None:
    torch.manual_seed(0)
    graphs = SYSTEM.graphs(TemplatePose("nano").eval(), SMALL)
    crops = torch.randint(0, 256, (16, 32, 32, 3), dtype=torch.uint8)
    with torch.no_grad():
        descriptors = graphs["embedder"].module(crops)
        index, score = graphs["matcher"].module(descriptors, descriptors.permute(1, 2, 0), torch.full((16,), 1 / 16))
    assert index[:, 0].tolist() == list(range(16))
    torch.testing.assert_close(score[:, 0], torch.ones(16))


def test_a_half_precision_trunk_gives_nearly_the_same_descriptors() -> None:
    torch.manual_seed(0)
    net = TemplatePose("nano").eval()
    embedder = SYSTEM.graphs(net, SMALL)["embedder"].module
    crops = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    with torch.no_grad():
        full = embedder(crops)
        net.half()
        half = embedder(crops)
    assert half.dtype == torch.float32
    assert float((full * half).sum(dim=2).min()) > 0.999


@pytest.mark.parametrize("backbone", ["nano", "base"])
def test_the_embedder_exports(tmp_path: Path, backbone: str) -> None:
    torch.manual_seed(0)
    source = SYSTEM.graphs(TemplatePose(backbone), SMALL)["embedder"]
    graph = onnx_from_network(source, tmp_path / "embedder.onnx", simplify=False)
    places = TemplatePose(backbone).grid(32) ** 2
    assert graph.outputs == (TensorSpec("descriptors", "float32", ("batch", places, 16)),)


@pytest.mark.slow
def test_the_published_size_exports(tmp_path: Path) -> None:
    torch.manual_seed(0)
    graphs = SYSTEM.graphs(TemplatePose(), SYSTEM.crop)
    for name, source in graphs.items():
        onnx_from_network(source, tmp_path / f"{name}.onnx")
