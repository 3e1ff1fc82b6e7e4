"""What onnx itself says about a graph, asked without its weights: validity, types and shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import onnx
import onnx.inliner
from google.protobuf.message import EncodeError, Message  # type: ignore[import-untyped]
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

STANDARD = ("", "ai.onnx")
INLINE_BYTES = 1 << 10  # larger weights play no part in types and shapes, and are kept out of onnx's copies
WRONG = (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, RuntimeError, ValueError, TypeError,
         EncodeError)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Inferred:
    """light: the model with types, without big weights and local functions.

    invalid: the checker's words about a graph that breaks the standard; untyped: those of strict type inference.
    """

    light: ModelProto
    invalid: str | None
    untyped: str | None


def inferred(model: ModelProto) -> Inferred:
    """Of any model whose texts are UTF-8; the model stays as it is."""
    light = _without_weights(model)
    invalid = _words(lambda: _check(light))
    light, problem = _unfolded(light)
    untyped = _words(lambda: onnx.shape_inference.infer_shapes(light, check_type=True, strict_mode=True))
    try:
        light = onnx.shape_inference.infer_shapes(light, data_prop=True)
    except WRONG as error:
        untyped = untyped or _first_line(error)
    return Inferred(light, invalid or problem, untyped)


def bodies(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs inside a node: branches and loop bodies."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def _check(light: ModelProto) -> None:
    """The ONNX checker, except for inputs and outputs without a shape: they have rules of their own."""
    ends = [value.type.tensor_type for value in (*light.graph.input, *light.graph.output)]
    bare = [end for end in ends if end.elem_type and not end.HasField("shape")]
    for end in bare:
        end.shape.SetInParent()
    try:
        onnx.checker.check_model(light)
    finally:
        for end in bare:
            end.ClearField("shape")


def _without_weights(model: ModelProto) -> ModelProto:
    """A copy in which big weights are inputs: equal types and shapes, a fraction of the bytes."""
    light = ModelProto()
    _copy_fields(model, light, "graph")
    _copy_fields(model.graph, light.graph, "initializer")
    taken = {value.name for value in light.graph.input}
    for tensor in model.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL and tensor.ByteSize() <= INLINE_BYTES:
            light.graph.initializer.add().CopyFrom(tensor)
        elif tensor.name not in taken:
            taken.add(tensor.name)
            light.graph.input.add().CopyFrom(_value_of(tensor))
    return light


def _value_of(tensor: TensorProto) -> ValueInfoProto:
    value = ValueInfoProto(name=tensor.name)
    value.type.tensor_type.elem_type = tensor.data_type
    value.type.tensor_type.shape.SetInParent()
    for size in tensor.dims:
        value.type.tensor_type.shape.dim.add(dim_value=size)
    return value


def _copy_fields(source: Message, target: Message, skipped: str) -> None:
    for descriptor, value in source.ListFields():
        if descriptor.name == skipped:
            continue
        if isinstance(value, str | bytes | int | float):
            setattr(target, descriptor.name, value)
        else:
            getattr(target, descriptor.name).MergeFrom(value)


def _unfolded(model: ModelProto) -> tuple[ModelProto, str | None]:
    """The model with its local functions put in place, or as it was and why that is not possible."""
    if not model.functions:
        return model, None
    calls = {(f.domain, f.name): {(n.domain, n.op_type) for n in _all_nodes(f.node)} for f in model.functions}
    done: set[tuple[str, str]] = set()
    while ready := {name for name, called in calls.items() if name not in done and not (called & calls.keys()) - done}:
        done |= ready
    if done != calls.keys():
        return model, "local functions that call each other in a circle"
    try:
        return onnx.inliner.inline_local_functions(model), None
    except WRONG as error:
        return model, _first_line(error)


def _all_nodes(nodes: Sequence[NodeProto]) -> Iterator[NodeProto]:
    for node in nodes:
        yield node
        for body in bodies(node):
            yield from _all_nodes(body.node)


def _words(step: Callable[[], object]) -> str | None:
    """What a check of onnx says; None if nothing."""
    try:
        step()
    except WRONG as error:
        return _first_line(error)
    return None


def _first_line(error: Exception) -> str:
    """The part of onnx's message that names the cause: its first line, without the place in onnx's source."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
