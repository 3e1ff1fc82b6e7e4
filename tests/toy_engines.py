"""Toy graphs with a convolution and a matrix product, in each precision, and one way to compile a graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from posekit.export.kernel_types import product_types
from posekit.export.onnx_graph import specs_from_graph
from posekit.runtime.engines.api import missing
from posekit.runtime.engines.build import BuiltPlan, build_plan
from posekit.runtime.engines.kernels import check_kernels
from posekit.runtime.engines.options import AxisRange, BuildOptions

RANGES = {"batch": AxisRange(1, 4, 8), "views": AxisRange(128, 500, 1000)}
FLOATS = {
    "fp32": TensorProto.FLOAT,
    "int8-fp32": TensorProto.FLOAT,
    "fp16": TensorProto.FLOAT16,
    "int8": TensorProto.FLOAT16,
}

rtx_only = pytest.mark.skipif(missing("rtx") is not None, reason=f"no TensorRT-RTX: {missing('rtx')}")


def toy_graph(
    precision: str,
    weight_axis: int = 1,
    extra: NodeProto | None = None,
    constants: Mapping[str, np.ndarray] | None = None,
) -> bytes:
    """crops uint8 (batch, 16, 16, 3) -> conv -> relu -> mean -> matmul -> score (batch, 16).

    precision: fp32, fp16, int8 with the rest in fp16, or int8-fp32. Int8 is symmetric: Q/DQ around the data, weights that
    are only dequantised.
    weight_axis: of the scales of the matrix.  extra: one more node from `mean` or `score`, with its constants.
    """
    kind = FLOATS[precision]
    number, quantised = helper.tensor_dtype_to_np_dtype(kind), precision.startswith("int8")
    rng = np.random.default_rng(0)
    nodes: list[NodeProto] = []
    held = dict(constants or {})

    def add(operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def data(name: str) -> str:
        if not quantised:
            return name
        held.update({f"{name}_scale": np.array(0.05, number), "zero": np.array(0, np.int8)})
        return add(
            "DequantizeLinear",
            [add("QuantizeLinear", [name, f"{name}_scale", "zero"], f"{name}_q"), f"{name}_scale", "zero"],
            f"{name}_dq",
        )

    def weight(name: str, shape: tuple[int, ...], axis: int) -> str:
        if not quantised:
            held[name] = rng.normal(size=shape).astype(number)
            return name
        held[f"{name}_int8"] = rng.integers(-127, 128, shape, dtype=np.int8)
        held[f"{name}_scale"] = rng.uniform(0.01, 0.02, shape[axis]).astype(number)
        held[f"{name}_zero"] = np.zeros(shape[axis], np.int8)
        return add("DequantizeLinear", [f"{name}_int8", f"{name}_scale", f"{name}_zero"], name, axis=axis)

    add("Cast", ["crops"], "numbers", to=kind)
    add("Transpose", ["numbers"], "planes", perm=[0, 3, 1, 2])
    add("Conv", [data("planes"), weight("kernel", (8, 3, 3, 3), 0)], "conv", pads=[1, 1, 1, 1])
    add("Relu", ["conv"], "relu")
    held["axes"] = np.array([2, 3])
    add("ReduceMean", ["relu", "axes"], "mean", keepdims=0)
    add("MatMul", [data("mean"), weight("matrix", (8, 16), weight_axis)], "matmul")
    add("Cast", ["matmul"], "score", to=TensorProto.FLOAT)
    if extra is not None:
        nodes.append(extra)
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("crops", TensorProto.UINT8, ["batch", 16, 16, 3])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch", 16])],
        [numpy_helper.from_array(value, name) for name, value in held.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    return bytes(model.SerializeToString())


def compiled(graph: bytes, capabilities: tuple[int, ...] = (86,)) -> BuiltPlan:
    """Compile any graph ahead of time, for the usual ranges of its dynamic axes."""
    inputs = specs_from_graph(onnx.load_from_string(graph))[0]
    axes = {axis for spec in inputs for axis in spec.shape if isinstance(axis, str)}
    profiles = ({axis: RANGES[axis] for axis in axes},) if axes else ()
    return build_plan(graph, inputs, BuildOptions("rtx", profiles, compute_capabilities=capabilities))


def compiled_as_written(graph: bytes, capabilities: tuple[int, ...] = (86,)) -> BuiltPlan:
    """`compiled`, and every convolution and matrix product checked against the graph: raises EngineError."""
    built = compiled(graph, capabilities)
    check_kernels(built.report.kernels, product_types(onnx.load_from_string(graph)))
    return built
