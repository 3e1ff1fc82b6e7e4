"""In which number type each convolution and matrix product of a graph must be compiled: what the file says, by node."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from posekit.runtime.engines.kernels import NumberType
from posekit.runtime.errors import ExportError

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "LSTM", "GRU", "RNN")
FLOATS: dict[int, NumberType] = {TensorProto.FLOAT: "Float", TensorProto.FLOAT16: "Half"}


def product_types(model: ModelProto) -> dict[str, NumberType]:
    """Name of every node of PRODUCTS, also inside the branches of an If -> Int8 where both factors come out of a
    DequantizeLinear, else the type of its numbers; for `posekit.runtime.engines.kernels.check_kernels`.

    A node without a name is called as TensorRT's parser calls it, after its first output. Raises ExportError for a graph
    whose types cannot be inferred, and for two products of one name with different types.
    """
    try:
        graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    except onnx.shape_inference.InferenceError as error:
        raise _refused(str(error).splitlines()[0]) from error
    found: dict[str, NumberType] = {}
    for name, number in _products(graph, {}, frozenset()):
        if found.setdefault(name, number) != number:
            raise _refused(f"two products called {name!r}, {found[name]} and {number}")
    return found


def as_chosen(types: Mapping[str, NumberType], chosen: Collection[str]) -> dict[str, NumberType]:
    """The same types with Int8 at the chosen nodes and at no other: what the kernels of an int8 file are to be, whatever the
    file has become since its nodes were chosen.
    """
    floats = [number for number in types.values() if number != "Int8"]
    other: NumberType = "Half" if "Half" in floats else "Float"
    rest = {name: other if number == "Int8" else number for name, number in types.items()}
    return rest | dict.fromkeys(chosen, "Int8")


def _products(
    graph: GraphProto, outer: Mapping[str, int], dequantised: frozenset[str]
) -> Iterator[tuple[str, NumberType]]:
    """outer: types of the tensors around a branch.  dequantised: those of them that come out of a DequantizeLinear."""
    typed = dict(outer) | {
        v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info, *graph.output)
    }
    typed |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    dequantised |= {output for node in graph.node if node.op_type == "DequantizeLinear" for output in node.output}
    for node in graph.node:
        if node.op_type in PRODUCTS and len(node.input) > 1:  # an Einsum of one factor turns it or sums it up
            name = node.name or f"node_of_{node.output[0]}"
            yield name, "Int8" if dequantised.issuperset(node.input[:2]) else _number(node, name, typed)
        for attribute in node.attribute:
            for branch in (attribute.g, *attribute.graphs):
                yield from _products(branch, typed, dequantised)


def _number(node: NodeProto, name: str, typed: Mapping[str, int]) -> NumberType:
    number = FLOATS.get(typed.get(node.input[0], TensorProto.UNDEFINED))
    if number is None:
        raise _refused(f"{node.op_type} {name!r} of no float type")
    return number


def _refused(got: str) -> ExportError:
    return ExportError(
        "types of a graph", got=got, expected="a graph whose types agree", remedy="`posekit lint` names the rule."
    )
