"""`posekit verify`: a table and an exit code for people and CI, a JSON object for programs, reports in a folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import toy_bundles
from onnx import numpy_helper
from recordings import write_recording
from typer.testing import CliRunner

from posekit.cli import app
from posekit.export.pack import pack_bundle
from posekit.runtime.bundle import Bundle

FRAMES = 40
T_OF_BOX = np.zeros((4, 3))
T_OF_BOX[0, 0] = 0.001


@pytest.fixture(scope="module")
def recording(tmp_path_factory: Any) -> Path:
    return write_recording(tmp_path_factory.mktemp("bop"), FRAMES)


def bundle(folder: Path, shift_m: float) -> Path:
    """Its fp16 variant is off by that much along x."""
    content, _ = toy_bundles.pose_graph(T_OF_BOX)
    model = onnx.load_from_string(content)
    for tensor in model.graph.initializer:
        if tensor.name == "ahead":
            tensor.CopyFrom(numpy_helper.from_array(np.array([shift_m, 0, 1], np.float32), "ahead"))
    out = folder / "toy.posekit"
    toy_bundles.write_toy_bundle(out, T_OF_BOX, variants={("pose", "fp16"): model.SerializeToString()})
    with Bundle(out) as opened:  # its maps show nothing, which is no verdict
        members = {name: bytes(opened.read(name)) for name in opened.manifest.files}
        paths = {name: path for name, path in opened.manifest.paths.items() if path.kind != "correspondence"}
        return pack_bundle(out, replace(opened.manifest, paths=paths, files={}), members).path


def verify(*arguments: object) -> Any:
    """The toy knows nothing of the truth."""
    gates = ("--gate", "add_recall_min=0", "--gate", "true_rotation_p50_deg=none")
    return CliRunner().invoke(app, ["verify", *gates, *map(str, arguments), "--backend", "openvino"])


def test_a_variant_within_its_gates_passes_with_reports(recording: Path, tmp_path: Path) -> None:
    result = verify(bundle(tmp_path, 0.0), recording, "-o", tmp_path / "report")
    assert result.exit_code == 0, result.output
    assert "regressor" in result.stdout
    assert "next: posekit bench" in result.stdout
    report = json.loads((tmp_path / "report" / "verification.json").read_text())
    assert report["passed"] is True
    (verdict,) = (v for v in report["verdicts"] if v["precision"] == "fp16")
    assert (verdict["path"], verdict["passed"]) == ("regressor", True)
    assert "| regressor | fp16 | openvino | 40 / 40 (100%) |" in (tmp_path / "report" / "verification.md").read_text()


def test_a_missed_gate_is_exit_code_1_and_a_sentence(recording: Path, tmp_path: Path) -> None:
    result = verify(bundle(tmp_path, 0.1), recording)
    assert result.exit_code == 1, result.output
    assert "regressor fp16 on openvino: translation_p95_of_diameter is 0.5" in result.stdout
    summary = json.loads(verify(bundle(tmp_path, 0.1), recording, "--json").stdout)
    assert summary["passed"] is False
    assert verify(bundle(tmp_path, 0.1), recording, "--gate", "translation_p95_of_diameter=none").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gate", "rotation=1"], "no gate"),
        (["--gate", "lost=-1"], "no limit"),
        (["--gate", "lost"], "no limit"),
        (["--max-crops", "5"], "at least 32"),
        (["--boxes", "nowhere.json"], "nowhere.json"),
    ],
)
def test_an_invalid_run_is_exit_code_2(arguments: list[str], message: str, recording: Path, tmp_path: Path) -> None:
    result = verify(bundle(tmp_path, 0.0), recording, *arguments, "-o", tmp_path / "report")
    assert result.exit_code == 2
    assert message in result.stderr.splitlines()[-1]
    assert not (tmp_path / "report").exists()


def test_reports_that_cannot_be_written_are_said(recording: Path, tmp_path: Path) -> None:
    (tmp_path / "report").write_text("a file")
    result = verify(bundle(tmp_path, 0.0), recording, "-o", tmp_path / "report")
    assert result.exit_code == 2
    assert "a folder that can be made" in result.stderr
    assert (tmp_path / "report").read_text() == "a file"


def test_a_path_that_shows_nothing_is_undecided_with_exit_code_2(recording: Path, tmp_path: Path) -> None:
    out = toy_bundles.write_toy_bundle(tmp_path / "toy.posekit", T_OF_BOX)
    result = verify(out, recording, "-o", tmp_path / "report")
    assert result.exit_code == 2, result.output
    assert (
        "undecided: epnp fp32 on openvino: lost is 0, limit 0.02: 0 found poses in 0 frames, at least 32 in 8"
        in result.stdout
    )
    assert "verdict: UNDECIDED" in result.stdout
    report = json.loads((tmp_path / "report" / "verification.json").read_text())
    assert (report["outcome"], report["passed"]) == ("undecided", False)
    judged = {gate["gate"]: gate["n"] for gate in report["verdicts"][-1]["gates"]}
    assert (judged["lost"], judged["rotation_p95_deg"]) == (0, 0)


def test_a_network_that_is_wrong_everywhere_is_said(recording: Path, tmp_path: Path) -> None:
    result = verify(bundle(tmp_path, 0.0), recording, "--gate", "add_recall_min=0.1")
    assert result.exit_code == 1, result.output
    assert (
        "regressor fp32 on onnxruntime: add_recall_min is 0, limit 0.1, judged on 40 true poses in 40 frames"
        in result.stdout
    )
