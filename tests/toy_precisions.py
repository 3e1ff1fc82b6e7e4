"""A toy pose regressor whose graph exists in every precision, written by hand as posekit's quantiser writes them.

uint8 crops -> normalised -> three convolutions, one of them beside a residual sum -> mean over places -> one product.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto as T
from onnx import helper

SIZE, CHANNELS, OUTPUTS = 24, 16, 6
PRECISIONS = ("fp32", "fp16", "int8", "int8 in fp16")

Array = npt.NDArray[Any]


class _Graph:
    """Nodes and constants as they are added. kind: element type of the trunk."""

    def __init__(self, precision: str, ranges: dict[str, float]) -> None:
        self.kind = np.dtype(np.float16 if "fp16" in precision else np.float32)
        self.quantised, self.ranges = "int8" in precision, ranges
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}

    def add(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"{op}_{output}", **attributes))
        return output

    def constant(self, name: str, value: Array) -> str:
        self.constants[name] = value
        return name

    def activation(self, name: str) -> str:
        """Quantised per tensor, symmetric, zero point an explicit int8 zero."""
        if not self.quantised:
            return name
        if f"{name}_scale" not in self.constants:
            scale = self.constant(f"{name}_scale", np.array(self.ranges[name] / 127, self.kind))
            zero = self.constant(f"{name}_zero", np.array(0, np.int8))
            self.add("QuantizeLinear", [name, scale, zero], f"{name}_q")
            self.add("DequantizeLinear", [f"{name}_q", scale, zero], f"{name}_dq")
        return f"{name}_dq"

    def weight(self, name: str, value: Array, axis: int) -> str:
        """Quantised per output channel, as int8 with a DequantizeLinear alone."""
        if not self.quantised:
            return self.constant(name, value.astype(self.kind))
        others = tuple(i for i in range(value.ndim) if i != axis)
        scale = (np.abs(value).max(axis=others) / 127).astype(self.kind)
        shape = [-1 if i == axis else 1 for i in range(value.ndim)]
        steps = np.clip(np.rint(value / scale.astype(np.float64).reshape(shape)), -127, 127).astype(np.int8)
        self.constant(f"{name}_q", steps)
        self.constant(f"{name}_scale", scale)
        self.constant(f"{name}_zero", np.zeros(len(scale), np.int8))
        return self.add("DequantizeLinear", [f"{name}_q", f"{name}_scale", f"{name}_zero"], name, axis=axis)


def network(precision: str = "fp32", ranges: dict[str, float] | None = None, seed: int = 0) -> onnx.ModelProto:
    """The toy in one of PRECISIONS. crops (batch, SIZE, SIZE, 3) uint8 and box (batch, 4) -> pose (batch, OUTPUTS).

    ranges: of the activations, from `measured_ranges`; needed for int8.
    """
    random = np.random.default_rng(seed)
    graph = _Graph(precision, ranges or {})
    x = graph.add("Cast", ["crops"], "pixels", to=T.FLOAT)
    x = graph.add("Transpose", [x], "planes", perm=[0, 3, 1, 2])
    x = graph.add("Mul", [x, graph.constant("per_pixel", np.array(1 / 255, np.float32))], "image32")
    x = graph.add("Cast", [x], "image", to=helper.np_dtype_to_tensor_dtype(graph.kind))
    for i in range(3):
        inputs, skip = (3 if i == 0 else CHANNELS), x
        weight = random.normal(0, (2 / (9 * inputs)) ** 0.5, (CHANNELS, inputs, 3, 3))
        bias = graph.constant(f"bias{i}", random.normal(0, 0.05, CHANNELS).astype(graph.kind))
        feeds = [graph.activation(x), graph.weight(f"weight{i}", weight, axis=0), bias]
        x = graph.add("Conv", feeds, f"conv{i}", pads=[1, 1, 1, 1], strides=[1 + (i == 0)] * 2)
        if i == 2:
            x = graph.add("Add", [x, graph.activation(skip)], "sum")
        x = graph.add("Relu", [x], f"relu{i}")
    axes = graph.constant("axes", np.array([2, 3]))
    x = graph.add("ReduceMean", [x, axes], "mean", keepdims=0)
    weight = random.normal(0, CHANNELS**-0.5, (CHANNELS, OUTPUTS))
    x = graph.add("MatMul", [graph.activation(x), graph.weight("weight", weight, axis=1)], "product")
    x = graph.add("Cast", [x], "product32", to=T.FLOAT)
    shift = graph.constant("box_weight", random.normal(0, 0.1, (4, OUTPUTS)).astype(np.float32))
    graph.add("Add", [x, graph.add("MatMul", ["box", shift], "shift")], "pose")
    feeds_in = [
        helper.make_tensor_value_info("crops", T.UINT8, ["batch", SIZE, SIZE, 3]),
        helper.make_tensor_value_info("box", T.FLOAT, ["batch", 4]),
    ]
    results = [helper.make_tensor_value_info("pose", T.FLOAT, ["batch", OUTPUTS])]
    constants = [onnx.numpy_helper.from_array(value, name) for name, value in graph.constants.items()]
    built = helper.make_graph(graph.nodes, "toy", feeds_in, results, constants)
    model = helper.make_model(built, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


def feed(batch: int, seed: int = 0) -> dict[str, Array]:
    """Coarse random crops and boxes; equal seeds give equal first rows whatever the batch."""
    rows = [np.random.default_rng((seed, i)) for i in range(batch)]
    coarse = np.stack([r.integers(0, 256, (6, 6, 3), dtype=np.uint8) for r in rows])
    crops = np.repeat(np.repeat(coarse, SIZE // 6, axis=1), SIZE // 6, axis=2)
    return {"crops": crops, "box": np.stack([r.normal(size=4) for r in rows]).astype(np.float32)}


def measured_ranges(model: onnx.ModelProto, images: dict[str, Array]) -> dict[str, float]:
    """Largest magnitude of every activation of the fp32 graph on some crops."""
    from onnx.reference import ReferenceEvaluator

    names = [output for node in model.graph.node for output in node.output]
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    watched.graph.output.extend(helper.make_tensor_value_info(name, T.UNDEFINED, None) for name in names)
    values = ReferenceEvaluator(watched).run(names, images)
    return {name: float(np.abs(value).max()) for name, value in zip(names, values, strict=True)}
