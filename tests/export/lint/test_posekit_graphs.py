"""What posekit exports is clean, in every precision: the other way round, lint does not cry wolf on real networks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from posekit.calibration.qdq import quantized
from posekit.calibration.ranges import calibrate
from posekit.export.example_feed import example_feed
from posekit.export.lint import lint
from posekit.export.networks.anchor_free import AnchorFree
from posekit.export.networks.matcher import matcher_graph
from posekit.export.onnx_from_network import onnx_from_network
from posekit.export.precision.half import half_source
from posekit.export.systems import GraphSource, system_named
from posekit.export.systems.gdr_net import GdrNet
from posekit.export.systems.surfemb_regressor import SurfEmbRegressor
from posekit.export.systems.template_pose import TemplatePose
from posekit.export.systems.tram3d import TraM3D
from posekit.runtime.crop import CropPreset

SQUARE = CropPreset("square", 32)
TOYS: dict[str, tuple[Callable[[], Any], CropPreset]] = {
    "tram3d": (lambda: TraM3D(image_px=32, patch_px=8, dim=16, depth=1, heads=2, channels=8), SQUARE),
    "template-pose": (lambda: TemplatePose("nano"), SQUARE),
    "gdr-net": (lambda: GdrNet("nano", 64, 2, 4, (16, 16, 16), True, 16, (32, 16)), CropPreset("dzi", 64, pad=1.5)),
    "surfemb-regressor": (
        lambda: SurfEmbRegressor("nano", crop_size_px=32, query_channels=4, decoder_widths=(16, 16, 8, 8, 8),
                                 pnp_widths=(8, 8, 8, 8, 8), pnp_hidden=(16, 16), z_hidden=8), SQUARE),
    "anchor-free": (
        lambda: AnchorFree(classes=2, input_wh_px=(64, 64), widths=(8, 16, 24, 32), depth=(1, 1), detections=8), SQUARE),
}  # fmt: skip


def sources(name: str) -> dict[str, GraphSource]:
    torch.manual_seed(0)
    make, crop = TOYS[name]
    return system_named(name).graphs(make().eval(), crop)


def exported(source: GraphSource, folder: Path) -> onnx.ModelProto:
    onnx_from_network(source, folder / "graph.onnx", simplify=False)
    return onnx.load(folder / "graph.onnx")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def expected_of(role: str) -> list[str]:
    """A matcher's bank has any number of views: the engine's profile gives the range."""
    return ["dynamic-axis"] if role == "matcher" else []


@pytest.mark.parametrize("name", TOYS)
def test_fp32_and_int8_graphs_are_clean(name: str, tmp_path: Path) -> None:
    for source in sources(name).values():
        model = exported(source, tmp_path)
        assert [f.rule for f in lint(model)] == expected_of(source.role), lint(model)
        if source.role == "matcher":
            continue
        feeds = [example_feed(source.inputs, {"batch": 2}, seed) for seed in range(2)]
        int8 = quantized(model, calibrate(model, partial(iter, feeds)))
        assert lint(int8) == ()


def test_a_coarse_matcher_is_clean(tmp_path: Path) -> None:
    model = exported(matcher_graph(9, 8, 0.2, "coarse"), tmp_path)
    assert {f.rule for f in lint(model)} == {"dynamic-axis"}


HEAVY = {"gdr-net", "surfemb-regressor"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in HEAVY else n for n in TOYS])
def test_fp16_graphs_are_clean(name: str, tmp_path: Path) -> None:
    for source in sources(name).values():
        if source.role != "matcher":
            assert lint(exported(half_source(source), tmp_path)) == ()
