"""From a recipe to fp16 and int8 files that hold their gates; a gate that is missed leaves no bundle."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
import torch
import trimesh
from recordings import write_recording

from posekit.calibration.qdq import quantised_nodes
from posekit.export.pipeline import ExportReport, export_recipe
from posekit.export.recipe import recipe_from_toml
from posekit.runtime.bundle import Bundle
from posekit.runtime.errors import CalibrationError, GateError

torch.set_num_threads(1)
FRAMES = 72  # half to calibrate on, half to verify on

NETS = """
import torch
from torch import nn

class Regressor(nn.Module):
    "Looks at the picture; no rotation, and a distance between 0.4 and 0.6 m."
    def __init__(self):
        super().__init__()
        stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU())
        self.trunk = nn.Sequential(stem, nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 8)))
        self.out = nn.Linear(8, 1)
    def forward(self, crops, box, K):
        z = 0.5 + 0.1 * torch.tanh(self.out(self.trunk(crops)))[:, 0]
        centre = (box[:, :2] + box[:, 2:]) / 2
        xy = (centre - K[:, :2, 2]) / torch.stack([K[:, 0, 0], K[:, 1, 1]], dim=1) * z[:, None]
        R = torch.eye(3).expand(len(crops), 3, 3) * (1 + 0 * z)[:, None, None]
        return R, torch.cat([xy, z[:, None]], dim=1), torch.sigmoid(crops.mean(dim=(1, 2, 3)))
"""
RECIPE = """
name = "toy"
default_path = "guess"
[[objects]]
id = 1
name = "brick"
mesh = "brick.ply"
unit = "m"
[[networks]]
name = "guess"
network = "precisionnets:Regressor"
role = "pose"
feeds = ["crops", "box", "K"]
trunk = ["trunk"]
checkpoint = "guess.safetensors"
crop = {rule = "square", size_px = 32}
[precision]
variants = ["fp16", "int8"]
[calibration]
source = "recording"
"""


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("workshop")
    (folder / "precisionnets.py").write_text(NETS)
    trimesh.creation.box((0.2, 0.1, 0.1)).export(folder / "brick.ply")
    write_recording(folder / "recording", FRAMES)
    sys.path.insert(0, str(folder))
    try:
        import precisionnets  # type: ignore[import-not-found]
        from safetensors.torch import save_file

        torch.manual_seed(1)
        save_file(precisionnets.Regressor().state_dict(), folder / "guess.safetensors")
        yield folder
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("precisionnets", None)


def export(workshop: Path, out: Path, old: str = "", new: str = "") -> ExportReport:
    assert old in RECIPE
    recipe = workshop / f"{out.stem}.toml"
    recipe.write_text(RECIPE.replace(old, new) if old else RECIPE)
    return export_recipe(recipe_from_toml(recipe), out)


@pytest.fixture(scope="module")
def report(workshop: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    return export(workshop, tmp_path_factory.mktemp("out") / "toy.posekit")


def graph(report: ExportReport, precision: str) -> onnx.ModelProto:
    with Bundle(report.path) as bundle:
        entry = bundle.manifest.graphs["guess.pose"]
        return onnx.load_from_string(bytes(bundle.read(entry.variants[precision])))  # type: ignore[index]


def test_the_bundle_has_all_three_files_each_what_it_says(report: ExportReport) -> None:
    types = {
        precision: {onnx.TensorProto.DataType.Name(t.data_type) for t in graph(report, precision).graph.initializer}
        for precision in ("fp32", "fp16", "int8")
    }
    assert "FLOAT16" not in types["fp32"]
    assert "FLOAT16" in types["fp16"]
    assert "INT8" in types["int8"]
    assert set(quantised_nodes(graph(report, "int8"))) >= {"network.trunk.0.0/Conv", "network.trunk.0.2/Conv"}


def test_every_variant_was_verified_on_every_backend_at_hand(report: ExportReport) -> None:
    assert report.verification is not None
    assert report.verification.passed
    seen = {(v.precision, v.backend) for v in report.verification.verdicts}
    assert {("fp16", "onnxruntime"), ("int8", "onnxruntime"), ("int8", "openvino"), ("fp32", "openvino")} <= seen
    assert all(v.trained and v.figures.n == FRAMES // 2 for v in report.verification.verdicts)


def test_the_reports_are_in_the_bundle(report: ExportReport) -> None:
    with Bundle(report.path) as bundle:
        members = bundle.manifest.reports
        assert set(members) == {"parity", "precision", "pareto", "pareto_plot", "verification"}
        read = {name: bytes(bundle.read(member)) for name, member in members.items()}
    assert read["pareto_plot"].startswith(b"\x89PNG")
    assert json.loads(read["verification"])["passed"] is True
    (entry,) = json.loads(read["precision"])
    assert {row["block"] for row in entry["int8"]["search"]["sensitivities"]} == {"network.trunk.0", "network.trunk.1"}
    assert entry["overflow"]["crops"] == FRAMES // 2
    assert entry["int8"]["calibration"].startswith("calibrated: ")
    assert "/tmp" not in entry["int8"]["calibration"]


def test_equal_input_gives_equal_graphs(report: ExportReport, workshop: Path, tmp_path: Path) -> None:
    again = export(workshop, tmp_path / "again.posekit")
    assert again.variants[0].int8 is not None
    assert again.variants[0].int8.calibration.startswith("read from the cache")
    for precision in ("fp32", "fp16", "int8"):
        assert graph(report, precision).SerializeToString(deterministic=True) == graph(
            again, precision
        ).SerializeToString(deterministic=True)


def test_a_missed_gate_leaves_no_bundle_but_a_report(
    workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a noise floor, float16 cannot hold a gate of zero."""
    monkeypatch.setattr("posekit.export.verify.verify.FLOOR_GREY_LEVELS", 0)
    out = tmp_path / "missed.posekit"
    out.write_bytes(b"PK\3\4 an older bundle")
    gates = 'source = "recording"\n[gates]\ntranslation_p95_of_diameter = 0\n'
    with pytest.raises(GateError, match="translation_p95_of_diameter"):
        export(workshop, out, 'source = "recording"\n', gates)
    assert out.read_bytes() == b"PK\3\4 an older bundle"
    reports = tmp_path / "missed.posekit.reports"
    assert json.loads((reports / "verification.json").read_text())["passed"] is False
    assert "MISSED" in (reports / "verification.md").read_text()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('source = "recording"', 'source = "recording"\nmax_crops = 20', "at least 32"),
    ],
)
def test_unfit_crops_are_refused(old: str, new: str, message: str, workshop: Path, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=message):
        export(workshop, tmp_path / "unfit.posekit", old, new)
    assert list(tmp_path.iterdir()) == []
