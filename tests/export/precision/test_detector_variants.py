"""The detector gets its fp16 and int8 files too: posekit's own from torch, a third party's int8 from its ONNX."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from toy_recipe import write_workshop

from posekit.calibration.qdq import quantised_nodes
from posekit.export.pipeline import ExportReport, export_recipe
from posekit.export.recipe import recipe_from_toml
from posekit.export.verify.box_figures import BoxFigures
from posekit.runtime.backends import BACKENDS
from posekit.runtime.bundle import Bundle
from posekit.runtime.errors import CalibrationError, RecipeError

torch.set_num_threads(1)
NETS = """
import torch
from torch import nn

class Detector(nn.Module):
    "The brightest 16 px cells of what a small trunk sees."
    def __init__(self):
        super().__init__()
        first = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU())
        self.trunk = nn.Sequential(first, nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU()))
        self.pool = nn.AvgPool2d(4)
        self.head = nn.Conv2d(8, 1, 1)
    def forward(self, x):
        scores, cell = torch.sigmoid(4 * self.head(self.pool(self.trunk(x)))).flatten(1).topk(4, dim=1)
        x0, y0 = (cell % 10) * 16.0, torch.div(cell, 10, rounding_mode="floor") * 16.0
        return torch.stack([x0, y0, x0 + 16, y0 + 16], dim=2), scores, cell * 0
"""
OWN = """
[detector]
network = "detectornets:Detector"
checkpoint = "detector.safetensors"
family = "posekit"
input_wh_px = [160, 128]
score_threshold = 0.01
"""
THIRD_PARTY = """
[detector]
onnx = "yolo.onnx"
family = "yolov8"
score_threshold = 0.01
"""
LOOSE = "[gates]\nbox_lost = 0.5\nbox_iou_p5 = 0.2\nbox_recall_drop = 0.5\nbox_recall_min = 0\nbox_score_p95 = 1\nsettled_min = 0\n"  # what random weights find is not where anything is


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("detector")
    (folder / "detectornets.py").write_text(NETS)
    with write_workshop(folder) as recipe:
        import detectornets  # type: ignore[import-not-found]
        from safetensors.torch import save_file

        torch.manual_seed(2)
        save_file(detectornets.Detector().state_dict(), folder / "detector.safetensors")
        onnx.save(yolo(), folder / "yolo.onnx")
        yield recipe


def yolo() -> onnx.ModelProto:
    """A YOLOv8 in name, its nodes called as ultralytics calls them: a box of the brick's size per 8 px cell, scored by two convolutions."""
    rng = np.random.default_rng(0)
    y, x = np.divmod(np.arange(16 * 20), 20)  # a cell's score is that of its convolution
    boxes = np.stack([x * 8 + 4, y * 8 + 4, 0 * x + 40, 0 * x + 40]).astype(np.float32)[None]
    held: dict[str, np.ndarray] = {
        "w0": rng.normal(0, 0.3, (8, 3, 4, 4)), "w1": rng.normal(0, 0.3, (1, 8, 2, 2)), "boxes": boxes,
        "flat": np.array([1, 1, 320]),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["images", "w0"], ["a"], "/model.0/conv/Conv", strides=[4, 4]),
        helper.make_node("Relu", ["a"], ["b"], "/model.0/act/Relu"),
        helper.make_node("Conv", ["b", "w1"], ["c"], "/model.1/conv/Conv", strides=[2, 2]),
        helper.make_node("Sigmoid", ["c"], ["d"], "/model.2/Sigmoid"),
        helper.make_node("Reshape", ["d", "flat"], ["scores"], "/model.2/Reshape"),
        helper.make_node("Concat", ["boxes", "scores"], ["output0"], "/model.2/Concat", axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "yolo",
        [helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, [1, 3, 128, 160])],
        [helper.make_tensor_value_info("output0", onnx.TensorProto.FLOAT, [1, 5, 320])],
        [numpy_helper.from_array(v if k == "flat" else v.astype(np.float32), k) for k, v in held.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model.metadata_props.add(key="names", value="{0: 'brick'}")
    return model


def export(recipe: Path, section: str, out: Path) -> ExportReport:
    own = recipe.with_name(f"{out.stem}.toml")
    own.write_text(recipe.read_text() + section + LOOSE)
    return export_recipe(recipe_from_toml(own), out)


def precisions(report: ExportReport) -> set[str]:
    return set(report.manifest.graphs["detector"].variants)


def test_a_detector_of_torch_gets_both_and_is_verified_in_boxes(workshop: Path, tmp_path: Path) -> None:
    report = export(workshop, OWN, tmp_path / "own.posekit")
    assert precisions(report) == {"fp32", "fp16", "int8"}
    assert report.verification is not None
    mine = [v for v in report.verification.verdicts if v.path == "detector"]
    runs = {p for p in ("fp32", "fp16", "int8") if BACKENDS["openvino"].runs(p)}
    assert {v.precision for v in mine if v.backend == "openvino"} == runs
    for verdict in mine:
        assert isinstance(verdict.figures, BoxFigures)
        assert verdict.figures.n == 36
        assert verdict.figures.boxes > 36
    assert all(isinstance(floor, BoxFigures) for floor in report.verification.floors["detector"])
    (entry,) = (variants for variants in report.variants if variants.graph == "detector")
    assert entry.int8 is not None
    assert entry.int8.fitness.crops == 36
    assert {row.block for row in entry.int8.search.sensitivities} >= {"network.trunk.0", "network.trunk.1"}
    with Bundle(report.path) as bundle:
        model = onnx.load_from_string(bytes(bundle.read("graphs/detector.int8.onnx")))
        pareto = bytes(bundle.read(bundle.manifest.reports["pareto"])).decode()
        plain = json.loads(bytes(bundle.read(bundle.manifest.reports["verification"])))
    assert "network.trunk.0.0/Conv" in quantised_nodes(model)
    assert f"| detector | fp16 {'openvino' if 'int8' in runs else 'onnxruntime'}" in pareto  # who judges int8 too
    assert {row["path"] for row in plain["verdicts"]} == {"guess", "detector"}


def test_a_third_partys_detector_gets_int8_alone(workshop: Path, tmp_path: Path) -> None:
    report = export(workshop, THIRD_PARTY, tmp_path / "yolo.posekit")
    assert precisions(report) == {"fp32", "int8"}
    (entry,) = (variants for variants in report.variants if variants.graph == "detector")
    assert entry.int8 is not None
    assert {row.block for row in entry.int8.search.sensitivities} == {"detector//model.0", "detector//model.1"}
    with Bundle(report.path) as bundle:
        model = onnx.load_from_string(bytes(bundle.read("graphs/detector.int8.onnx")))
    assert {name.removeprefix("detector/") for name in quantised_nodes(model)} == {
        "/model.0/conv/Conv", "/model.1/conv/Conv",
    }  # fmt: skip


def test_a_detector_may_stay_as_it_is(workshop: Path, tmp_path: Path) -> None:
    report = export(workshop, OWN + "variants = []\n", tmp_path / "plain.posekit")
    assert precisions(report) == {"fp32"}
    assert [variants.graph for variants in report.variants] == ["guess.pose"]


def test_fp16_of_an_onnx_file_is_refused(workshop: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="authored in torch"):
        export(workshop, THIRD_PARTY + 'variants = ["fp16"]\n', tmp_path / "x.posekit")


def test_too_few_frames_for_a_detector_are_known_before_anything_is_made(workshop: Path, tmp_path: Path) -> None:
    few = workshop.with_name("few.toml")
    few.write_text(workshop.read_text() + "max_crops = 31\n" + OWN)
    with pytest.raises(CalibrationError, match="at least 32"):
        export_recipe(recipe_from_toml(few), tmp_path / "x.posekit")
    assert not list(tmp_path.iterdir())
