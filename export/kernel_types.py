"""In which number type each convolution and matrix product of a graph must be compiled: what the file says, by node."""

from __future__ import annotations

import onnx
from onnx import ModelProto, TensorProto

from posekit.runtime.engines.kernels import NumberType
from posekit.runtime.errors import ExportError

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
FLOATS: dict[int, NumberType] = {TensorProto.FLOAT: "Float", TensorProto.FLOAT16: "Half"}


def product_types(model: ModelProto) -> dict[str, NumberType]:
    """Name of every Conv, ConvTranspose, Gemm and MatMul -> Int8 where both factors come out of a DequantizeLinear,
    else the type of its numbers; for `posekit.runtime.engines.kernels.check_kernels`.

    A node without a name is called as TensorRT's parser calls it, after its first output. Raises ExportError for a graph
    whose types cannot be inferred.
    """
    try:
        graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    except onnx.shape_inference.InferenceError as error:
        raise _refused(str(error).splitlines()[0]) from error
    typed = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info, *graph.output)}
    typed |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    dequantised = {output for node in graph.node if node.op_type == "DequantizeLinear" for output in node.output}
    found: dict[str, NumberType] = {}
    for node in graph.node:
        if node.op_type in PRODUCTS:
            name = node.name or f"node_of_{node.output[0]}"
            number = FLOATS.get(typed.get(node.input[0], TensorProto.UNDEFINED))
            if number is None:
                raise _refused(f"{node.op_type} {name!r} of no float type")
            found[name] = "Int8" if dequantised.issuperset(node.input[:2]) else number
    return found


def _refused(got: str) -> ExportError:
    return ExportError(
        "types of a graph", got=got, expected="a graph whose types agree", remedy="`posekit lint` names the rule."
    )
