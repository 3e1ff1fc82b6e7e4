"""The other forms of a fault: per operator, per target, and as the tools of others really write it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
from lint_cases import QDQ, S, Z, graph
from onnx import ModelProto
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static

from posekit.export.lint import ALL, lint

W = "int8[2,2] w = {1,2,3,4}, float[2] v = {0.1,0.2}, int8[2] o = {0,0}"


def rules(model: ModelProto, targets: Sequence[str] = ALL) -> list[str]:
    return [finding.rule for finding in lint(model, targets)]


@pytest.mark.parametrize(
    ("node", "axis", "right"),
    [("MatMul(x, b)", 0, False), ("MatMul(x, b)", 1, True), ("MatMul(x, b)", -1, True),
     ("Gemm(x, b)", 0, False), ("Gemm(x, b)", 1, True), ("Gemm<transB=1>(x, b)", 0, True),
     ("Gemm<transB=1>(x, b)", 1, False)],
)  # fmt: skip
def test_the_axis_of_output_channels(node: str, axis: int, right: bool) -> None:
    body = f"[e] b = DequantizeLinear<axis={axis}>(w, v, o) [m] y = {node}"
    model = graph(body, "float[N,2] x", "float[N,2] y", W)
    assert rules(model) == ([] if right else ["weight-axis"])


@pytest.mark.parametrize(("k", "targets"), [(3839, 0), (3840, 3), (3841, 4)])
def test_the_limit_of_topk_per_target(k: int, targets: int) -> None:
    """Documented: less than 3840. TensorRT-RTX takes 3840."""
    outputs = f"float[N,{k}] y, int64[N,{k}] i"
    found = lint(graph("[k] y, i = TopK(x, k)", "float[N,4000] x", outputs, f"int64[1] k = {{{k}}}"))
    assert [len(f.targets) for f in found] == ([targets] if targets else [])


def test_topk_of_computed_k_has_no_fixed_size() -> None:
    model = graph("[k] y, i = TopK(x, k)", "float[N,9] x, int64[1] k", "float[N,K] y, int64[N,K] i")
    assert rules(model) == ["data-dependent-shape"]


def test_constants_computed_from_constants_are_constants() -> None:
    """Also from the shape of a tensor of fixed shape."""
    body = "[a] k = Sub(two, one) [r] h = ReduceSum(x, k) [s] n = Shape(w) [t] m = Sub(n, two) [u] y = ReduceSum(x, m)"
    constants = "int64[1] one = {1}, int64[1] two = {2}, float[3] w = {1,2,3}"
    assert rules(graph(body, "float[2,4] x", "float[2,1] h, float[2,1] y", constants)) == []


@pytest.mark.parametrize("mode", ["tf_crop_and_resize", "half_pixel_symmetric"])
def test_resize_coordinates(mode: str) -> None:
    body = f'[r] y = Resize<mode="linear", coordinate_transformation_mode="{mode}">(x, r, s)'
    constants = "float[4] s = {1,1,2,2}, float[8] r = {0,0,0,0,1,1,1,1}"
    (found,) = lint(graph(body, "float[1,1,4,4] x", "float[1,1,8,8] y", constants))
    assert (found.rule, mode in found.got) == ("resize-mode", True)


@pytest.mark.parametrize(("op_type", "count"), [("ScatterND", 4), ("ScatterElements", 1)])
def test_scatter_reductions_per_target(op_type: str, count: int) -> None:
    index = "int64[1,1] i = {0}" if op_type == "ScatterND" else "int64[1,2] i = {0,1}"
    body = f'[s] y = {op_type}<reduction="add">(x, i, u)'
    (found,) = lint(graph(body, "float[4,2] x", "float[4,2] y", f"{index}, float[1,2] u = {{1,1}}"))
    assert len(found.targets) == count


def test_a_custom_operator_is_nobodys() -> None:
    model = graph("[f] y = acme.Fancy(x)", domains=', "acme": 1')
    (found,) = lint(model)
    assert (found.rule, found.targets) == ("custom-operator", ALL)
    read = openvino.Core().read_model
    with pytest.raises(RuntimeError, match=r"acme\.Fancy|Fancy"):
        read(model.SerializeToString())


def test_the_parser_knows_a_standard_operator_in_any_domain() -> None:
    assert rules(graph("[f] y = com.microsoft.Gelu(x)", domains=', "com.microsoft": 1')) == []


def test_a_pair_is_one_finding_and_a_lonely_dq_its_own() -> None:
    model = graph(QDQ, constants=f"{S}, int8 z = {{3}}")
    assert [f.node for f in lint(model)] == ["q"]
    other = graph(
        "[q] q = QuantizeLinear(x, s, z) [d] y = DequantizeLinear(q, s, t)", constants=f"{S}, {Z}, int8 t = {{3}}"
    )
    assert [(f.rule, f.node) for f in lint(other)] == [("nonzero-zero-point", "d")]


class Feeds(CalibrationDataReader):  # type: ignore[misc]
    """Four random images."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.left: Iterator[dict[str, Any]] = iter(
            {"x": rng.uniform(-1, 2, (1, 3, 8, 8)).astype(np.float32)} for _ in range(4)
        )

    def get_next(self) -> dict[str, Any] | None:
        return next(self.left, None)


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """Conv, Relu, Conv, MatMul in float."""
    rng = np.random.default_rng(0)
    model = graph(
        "[a] h = Conv<pads=[1,1,1,1]>(x, w1, b1) [r] k = Relu(h) [b] l = Conv<pads=[1,1,1,1]>(k, w2, b2) [m] y = MatMul(l, w3)",
        "float[1,3,8,8] x",
        "float[1,4,8,8] y",
    )
    shapes = {"w1": (4, 3, 3, 3), "b1": (4,), "w2": (4, 4, 3, 3), "b2": (4,), "w3": (8, 8)}
    for name, shape in shapes.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name))
    onnx.save(model, tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def test_what_onnx_runtimes_quantiser_writes_by_default_is_named(network: Path, tmp_path: Path) -> None:
    """The file that most people bring: uint8, asymmetric, int32 bias, foreign domains."""
    logging.disable(logging.WARNING)
    try:
        assert rules(onnx.load(network)) == []
        out = tmp_path / "int8.onnx"
        quantize_static(network, out, Feeds(), quant_format=QuantFormat.QDQ)
        assert {"int32-dequantize", "nonzero-zero-point"} <= set(rules(onnx.load(out)))
        quantize_static(network, out, Feeds(), quant_format=QuantFormat.QOperator)
        assert "integer-operator" in rules(onnx.load(out))
        quantize_dynamic(network, out, op_types_to_quantize=["MatMul"])
        assert "integer-operator" in rules(onnx.load(out))
    finally:
        logging.disable(logging.NOTSET)
