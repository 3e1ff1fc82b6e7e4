"""`posekit verify`: a table and an exit code for people and CI, a JSON object for programs, reports in a folder."""

from __future__ import annotations

import json
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
    maps = toy_bundles.constant_graph(
        "correspondence", (toy_bundles.BOX,), mask=np.zeros((8, 8)), coords_m=np.zeros((8, 8, 3))
    )
    return toy_bundles.write_toy_bundle(
        folder / "toy.posekit",
        T_OF_BOX,
        replaced={"maps": maps},
        variants={("pose", "fp16"): model.SerializeToString()},
    )


def verify(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["verify", *map(str, arguments), "--backend", "openvino"])


def test_a_variant_within_its_gates_passes_with_reports(recording: Path, tmp_path: Path) -> None:
    result = verify(bundle(tmp_path, 0.0), recording, "-o", tmp_path / "report")
    assert result.exit_code == 0, result.output
    assert "regressor" in result.stdout
    assert "next: posekit run" in result.stdout
    report = json.loads((tmp_path / "report" / "verification.json").read_text())
    assert report["passed"] is True
    (verdict,) = (v for v in report["verdicts"] if v["precision"] == "fp16")
    assert (verdict["path"], verdict["passed"]) == ("regressor", True)
    assert "| regressor | fp16 | openvino | 40 (100%) |" in (tmp_path / "report" / "verification.md").read_text()


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
