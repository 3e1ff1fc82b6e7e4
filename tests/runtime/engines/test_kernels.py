"""What was compiled is read back in each of TensorRT's formats, and held against the graph."""

from __future__ import annotations

import json
from typing import Any

import pytest
from toy_engines import compiled_as_written, rtx_only, toy_graph

from posekit.runtime.engines.kernels import (
    Kernel,
    check_kernels,
    kernels_from_inspector,
    kernels_from_log,
    type_named,
)
from posekit.runtime.engines.options import RTX_CAPABILITIES
from posekit.runtime.errors import EngineError


def tensor(name: str, number: str, joined: bool) -> dict[str, Any]:
    if joined:
        return {"Name": name, "Dimensions": [1, 64, 56, 56], "Format/Datatype": number}
    return {"Name": name, "Dimensions": [1, 64, 56, 56], "Format": "Row major linear", "Datatype": number}


def inspected(joined: bool) -> str:
    """Written after NVIDIA's description of the inspector's output, not recorded: 10.x joined, 11.x apart."""
    int8 = "Thirty-two wide channel vectorized row major Int8 format." if joined else "Int8"
    layers: list[dict[str, Any]] = [
        {
            "Name": "conv1 + relu1",
            "LayerType": "CaskConvolution",
            "Inputs": [tensor("x", int8, joined)],
            "Outputs": [tensor("y", "Half", joined)],
            "ParameterType": "Convolution",
            "Weights": {"Type": "Int8", "Count": 36864},
            "Bias": {"Type": "Float", "Count": 64},
            "TacticName": "sm80_xmma_fprop_implicit_gemm_i8i8_i8i32_f32",
            "Metadata": "[ONNX Layer: conv1]\x1e[ONNX Layer: relu1]",
        },
        {
            "Name": "__myl_FcAdd_myl0_1",
            "LayerType": "kgen",
            "Inputs": [tensor("y", "Half", joined)],
            "Constants": [tensor("w", "Half", joined)],
            "Outputs": [tensor("z", "FP32" if joined else "Float", joined)],
            "Metadata": "[ONNX Layer: fc]",
        },
    ]
    tensors = {"Bindings": ["x", "z"]} if joined else {"I/O Tensors": [{"Name": "x"}, {"Name": "z"}]}
    return json.dumps({"Layers": layers, **tensors})


@pytest.mark.parametrize("joined", [True, False], ids=["10.x", "11.x"])
def test_both_formats_of_the_inspector_give_the_same_kernels(joined: bool) -> None:
    conv, fc = kernels_from_inspector(inspected(joined))
    assert conv == Kernel(
        "conv1 + relu1", "CaskConvolution", ("Int8",), ("Int8", "Float"), ("Half",), ("conv1", "relu1")
    )
    assert fc == Kernel("__myl_FcAdd_myl0_1", "kgen", ("Half",), ("Half",), ("Float",), ("fc",))
    assert [(k.multiplies, k.multiplied) for k in (conv, fc)] == [(True, "Int8"), (True, "Half")]
    check_kernels((conv, fc), {"conv1": "Int8", "fc": "Half"})


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"Layers": ["conv1 + relu1"]}', '{"Layers": 3}'])
def test_what_the_inspector_does_not_say_is_an_error(text: str) -> None:
    with pytest.raises(EngineError, match="list of compiled kernels"):
        kernels_from_inspector(text)


@pytest.mark.parametrize("texts", [(), ("Layers:\nName: a, LayerType: gemm",), ("Layers:\n",)])
def test_a_log_without_a_readable_list_is_an_error(texts: tuple[str, ...]) -> None:
    with pytest.raises(EngineError, match="list of compiled kernels"):
        kernels_from_log(texts)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Row major linear FP16 format", "Half"),
        ("Channel major FP32 format where channel % 4 == 0", "Float"),
        ("N/A due to dynamic shapes", "N/A due to dynamic shapes"),
        ("", "unknown"),
        ("UInt8", "UInt8"),
    ],
)
def test_types_have_one_name(text: str, name: str) -> None:
    assert type_named(text) == name


CONV = Kernel("conv_myl0_1", "correlation", ("Int8",), ("Int8", "Float"), ("Float",), ("conv",))


@pytest.mark.parametrize(
    ("kernels", "expected", "named"),
    [
        ((CONV,), {"conv": "Half"}, r"conv: correlation conv_myl0_1 \(Int8, Int8, Float -> Float\) for Half"),
        ((), {"conv": "Int8"}, "conv: no kernel for Int8"),
        ((Kernel("stray", "gemm", ("Float",), ("Float",), ("Float",)),), {}, "stray .*of no node"),
        ((Kernel("deq", "gemm", ("Half",), ("Int8",), ("Half",), ("mm",)),), {"mm": "Int8"}, "deq .* for Int8"),
    ],
)
def test_every_offender_is_named(kernels: tuple[Kernel, ...], expected: dict[str, Any], named: str) -> None:
    with pytest.raises(EngineError, match=named):
        check_kernels(kernels, expected)


def test_a_float_product_may_vanish_and_nodes_may_share_a_kernel() -> None:
    shared = Kernel("a+b_myl0_1", "gemm", ("Int8",), ("Int8",), ("Half",), ("a", "b"))
    check_kernels((shared,), {"a": "Int8", "b": "Int8", "folded": "Float"})


def test_a_long_list_of_offenders_is_cut() -> None:
    with pytest.raises(EngineError, match="and 12 more"):
        check_kernels((), {f"n{i}": "Int8" for i in range(20)})


NUMBERS = {"fp32": "Float", "fp16": "Half", "int8": "Int8", "int8-fp32": "Int8"}
EVERY = (75, *RTX_CAPABILITIES)


def limits(precision: str, capability: int) -> str | None:
    """What TensorRT-RTX 1.7.1 refuses or computes otherwise: all of it, found by compiling."""
    if capability == 75 and precision in ("fp32", "int8-fp32"):
        return r"FP32 GEMM is not supported.*Leave 75 out"
    if capability == 75 and precision == "int8":
        return r"conv: correlation .*Half.* for Int8"
    if capability == 80 and precision == "int8-fp32":
        return r"conv: correlation .*Float.* for Int8"
    return None


@rtx_only
@pytest.mark.parametrize("capability", EVERY)
@pytest.mark.parametrize("precision", NUMBERS)
def test_each_precision_is_compiled_as_written_or_refused(precision: str, capability: int) -> None:
    """Really compiled, without a GPU."""
    graph, limit = toy_graph(precision), limits(precision, capability)
    if limit is not None:
        with pytest.raises(EngineError, match=limit):
            compiled_as_written(graph, (capability,))
        return
    kernels = compiled_as_written(graph, (capability,)).report.kernels
    products = [kernel for kernel in kernels if kernel.multiplies]
    assert {node for kernel in products for node in kernel.nodes} >= {"conv", "matmul"}
    assert {kernel.multiplied for kernel in products} == {NUMBERS[precision]}


@rtx_only
@pytest.mark.parametrize("precision", ["int8", "int8-fp32"])
def test_a_quantised_product_that_is_computed_in_float_is_found(precision: str) -> None:
    """Scales per row of the weights: TensorRT reads Int8 and multiplies floats."""
    with pytest.raises(EngineError, match=r"matmul: runtime_fusion __myl_Cast\w+ .* for Int8"):
        compiled_as_written(toy_graph(precision, weight_axis=0))


@rtx_only
def test_one_plan_serves_several_capabilities() -> None:
    built = compiled_as_written(toy_graph("int8"), RTX_CAPABILITIES)
    assert built.report.size == len(built.plan) > 0
