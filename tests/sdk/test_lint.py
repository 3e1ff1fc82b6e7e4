"""`posekit lint`: what it shows, what it tells a program, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from lint_cases import good_conv, graph
from onnx import ModelProto, numpy_helper
from toy_bundles import write_toy_bundle
from typer.testing import CliRunner

from posekit.cli import app


def lint(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["lint", *map(str, arguments)])


def saved(model: ModelProto, path: Path) -> Path:
    onnx.save(model, path)
    return path


def replaced(model: ModelProto, name: str, array: np.ndarray[Any, Any]) -> ModelProto:
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(array, name))
    return model


def test_a_clean_graph_is_exit_code_0(tmp_path: Path) -> None:
    result = lint(saved(good_conv(), tmp_path / "x.onnx"))
    assert result.exit_code == 0, result.output
    assert "0 errors, 0 warnings in 1 graph, 4 nodes" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("next: posekit export")


def test_warnings_alone_are_exit_code_0(tmp_path: Path) -> None:
    result = lint(saved(graph("y = Relu(x)"), tmp_path / "x.onnx"))
    assert result.exit_code == 0
    assert "unnamed-node" in result.stdout
    assert "0 errors, 1 warning " in result.stdout


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        ("z", np.array(3, np.int8), ("nonzero-zero-point", "q (QuantizeLinear)", "got 3 (int8)")),
        ("z", np.array(0, np.uint8), ("uint8-quantised", "q (QuantizeLinear)", "got uint8", "stops at 127")),
        ("s", np.array(-0.1, np.float32), ("bad-scale", "q (QuantizeLinear)", "got -0.1")),
        ("v", np.array([0.1, np.nan], np.float32), ("bad-scale", "e (DequantizeLinear)", "got nan")),
        ("o", np.array([0, 1], np.int8), ("nonzero-zero-point", "e (DequantizeLinear)", "got 0 to 1 (int8)")),
    ],
)
def test_a_hand_broken_int8_file_fails_with_its_cause(
    tmp_path: Path, name: str, array: np.ndarray[Any, Any], words: tuple[str, ...]
) -> None:
    result = lint(saved(replaced(good_conv(), name, array), tmp_path / "x.onnx"))
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    for word in words:
        assert word in result.stdout
    assert result.stdout.splitlines()[-1].startswith("next: posekit lint")


def test_json_is_one_object_with_every_finding(tmp_path: Path) -> None:
    path = saved(replaced(good_conv(), "z", np.array(3, np.int8)), tmp_path / "x.onnx")
    result = lint(path, "--json", "--target", "tensorrt-10.3", "--target", "openvino")
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert told["targets"] == ["tensorrt-10.3", "openvino"]
    assert (told["errors"], told["warnings"]) == (1, 0)
    (found,) = told["graphs"][0]["findings"]
    assert found["rule"] == "nonzero-zero-point"
    assert found["targets"] == ["tensorrt-10.3"]
    assert set(found) == {"rule", "severity", "targets", "node", "op_type", "what", "got", "expected", "remedy"}


def test_equal_findings_are_one_row(tmp_path: Path) -> None:
    body = "".join(f"[n{i}] t{i} = Det({f't{i - 1}' if i else 'x'}) " for i in range(1))
    body += " ".join(f"[d{i}] u{i} = Det(x)" for i in range(5)) + " [a] y = Sum(t0, u0, u1, u2, u3, u4)"
    result = lint(saved(graph(body, "float[2,3,3] x", "float[2] y"), tmp_path / "x.onnx"))
    assert result.stdout.count("unsupported-operator") == 1
    assert "and 3 more" in result.stdout
    assert "6 errors" in result.stdout


def test_a_bundle_is_linted(tmp_path: Path) -> None:
    result = lint(write_toy_bundle(tmp_path / "toy.posekit"))
    assert result.exit_code == 0, result.output
    assert "in 4 graphs" in result.stdout
    assert f"next: posekit inspect {tmp_path}" in result.stdout


@pytest.mark.parametrize("content", [b"", b"not a graph", None])
def test_what_is_no_graph_is_exit_code_2(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.onnx"
    if content is not None:
        path.write_bytes(content)
    result = lint(path)
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert "x.onnx" in line


def test_an_unknown_target_is_exit_code_2(tmp_path: Path) -> None:
    result = lint(saved(good_conv(), tmp_path / "x.onnx"), "--target", "tensorrt-8")
    assert result.exit_code == 2
    assert "one of tensorrt-10.3" in result.stderr
