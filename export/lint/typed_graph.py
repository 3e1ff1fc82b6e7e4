"""A graph as rules read it: all nodes with the types, constants, producers and consumers of their tensors.

Bodies of If, Loop and Scan are part of it, local functions are unfolded; what damage hides is None, never an error.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto
from onnx.external_data_helper import load_external_data_for_tensor

from posekit.export.lint.inferred import STANDARD, bodies, inferred
from posekit.export.lint.readable_text import readable

Array = npt.NDArray[Any]
Shape = tuple[int | str, ...]  # a str is a dynamic axis

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
FLOAT16_TINY = 2.0**-14  # the least with all its digits
UNFOLDABLE = {"If", "Loop", "Scan", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
              "Bernoulli", "Multinomial"}  # fmt: skip


@dataclass(eq=False)
class Scope:
    """The names of one graph or body; what it does not define, its parent does."""

    parent: Scope | None
    dtypes: dict[str, int] = field(default_factory=dict)
    shapes: dict[str, Shape] = field(default_factory=dict)
    tensors: dict[str, TensorProto] = field(default_factory=dict)
    producers: dict[str, Node] = field(default_factory=dict)
    consumers: dict[str, list[Node]] = field(default_factory=lambda: defaultdict(list))
    foldable: set[str] = field(default_factory=set)
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()

    def owner(self, name: str) -> Scope:
        """The scope that defines a name; the outermost one for a name that none does."""
        scope = self
        while scope.parent is not None and not (
            name in scope.producers or name in scope.tensors or name in scope.inputs
        ):
            scope = scope.parent
        return scope


@dataclass(frozen=True, eq=False)
class Node:
    """One operator. Arguments are counted as in the operator's signature; an absent one is ""."""

    proto: NodeProto
    scope: Scope
    graph: TypedGraph

    @property
    def name(self) -> str:
        """Its own, or that of its first output."""
        return self.proto.name or next((name for name in self.proto.output if name), "")

    @property
    def op_type(self) -> str:
        return self.proto.op_type

    @property
    def standard(self) -> bool:
        """Whether it is an operator of ONNX itself."""
        return self.proto.domain in STANDARD

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(self.proto.output)

    def input(self, index: int) -> str:
        return self.proto.input[index] if index < len(self.proto.input) else ""

    def dtype(self, name: str) -> int | None:
        """TensorProto.DataType of a tensor that this node reads or writes."""
        return self.scope.owner(name).dtypes.get(name) if name else None

    def shape(self, name: str) -> Shape | None:
        return self.scope.owner(name).shapes.get(name)

    def value(self, index: int) -> Array | None:
        """A constant argument; None if it is absent, not constant or damaged."""
        tensor = self.scope.owner(self.input(index)).tensors.get(self.input(index))
        return None if tensor is None else self.graph.array(tensor)

    def is_foldable(self, index: int) -> bool:
        """Whether an argument is known before the graph runs."""
        return self.input(index) in self.scope.owner(self.input(index)).foldable

    def producer(self, index: int) -> Node | None:
        return self.scope.owner(self.input(index)).producers.get(self.input(index))

    def consumers(self, output: int = 0) -> Sequence[Node]:
        if output >= len(self.outputs):
            return ()
        return self.scope.consumers.get(self.outputs[output], ())

    def ints(self, name: str) -> tuple[int, ...]:
        """A list attribute, or () ."""
        return next((tuple(a.ints) for a in self.proto.attribute if a.name == name), ())

    def integer(self, name: str, default: int) -> int:
        return next((a.i for a in self.proto.attribute if a.name == name), default)

    def text(self, name: str, default: str) -> str:
        return next((a.s.decode(errors="replace") for a in self.proto.attribute if a.name == name), default)


@dataclass(frozen=True)
class Census:
    """The numbers of one float constant, counted. small: float16 other than 0 below 2^-14, its last full digit."""

    name: str
    dtype: str
    size: int
    nonzero: int
    nan: int
    inf: int
    small: int


@dataclass(eq=False)
class TypedGraph:
    """invalid: the ONNX checker's words about a graph that breaks the standard; untyped: those of type inference.

    folder: where external data is; None if the model came without a place.
    """

    model: ModelProto
    folder: Path | None
    invalid: str | None = None
    untyped: str | None = None
    nodes: list[Node] = field(default_factory=list)
    scopes: list[Scope] = field(default_factory=list)

    @property
    def opset(self) -> int:
        return max((entry.version for entry in self.model.opset_import if entry.domain in STANDARD), default=0)

    @cached_property
    def _by_operator(self) -> dict[str, list[Node]]:
        found: dict[str, list[Node]] = defaultdict(list)
        for node in self.nodes:
            if node.standard:
                found[node.op_type].append(node)
        return found

    def of(self, *op_types: str) -> Iterator[Node]:
        """The nodes with one of these standard operators."""
        for op_type in op_types:
            yield from self._by_operator.get(op_type, ())

    @property
    def tensors(self) -> Iterator[tuple[str, TensorProto]]:
        """All constants by name, of all scopes."""
        for scope in self.scopes:
            yield from scope.tensors.items()

    @cached_property
    def float_constants(self) -> tuple[Census, ...]:
        """Each read once: they are most of a file."""
        found = []
        for name, tensor in self.tensors:
            array = self.array(tensor) if tensor.data_type in FLOATS else None
            if array is not None:
                found.append(_census(name, array))
        return tuple(found)

    def array(self, tensor: TensorProto) -> Array | None:
        """Its numbers; None if they are damaged or not at hand."""
        try:
            if tensor.data_location == TensorProto.EXTERNAL:
                if self.folder is None:
                    return None
                loaded = TensorProto()
                loaded.CopyFrom(tensor)
                load_external_data_for_tensor(loaded, str(self.folder))
                tensor = loaded
            return onnx.numpy_helper.to_array(tensor)
        except Exception:  # noqa: BLE001 - onnx raises whatever the damage leads to
            return None


def typed_graph(model: ModelProto, folder: Path | None = None) -> TypedGraph:
    """One pass of checking and type inference over any model, damaged ones included."""
    model, unreadable = readable(model)
    known = inferred(model)
    invalid = f"{unreadable} texts that are not UTF-8" if unreadable else known.invalid
    found = TypedGraph(model, folder, invalid, known.untyped)
    _walk(found, known.light.graph, None, {tensor.name: tensor for tensor in model.graph.initializer})
    for scope in found.scopes:  # outer ones first
        _note_foldable(scope)
    return found


def dtype_name(dtype: int | None) -> str:
    """`float16` and so on; the number itself for a type that ONNX does not have."""
    if dtype is None:
        return "unknown"
    known = TensorProto.DataType.values()
    return str(TensorProto.DataType.Name(dtype)).lower() if dtype in known else f"type {dtype}"


def _walk(graph: TypedGraph, proto: GraphProto, parent: Scope | None, weights: dict[str, TensorProto]) -> None:
    """Add a graph and the bodies inside it. weights: its initialisers, those included that the copy left out."""
    scope = Scope(parent)
    graph.scopes.append(scope)
    scope.inputs = tuple(value.name for value in proto.input if value.name not in weights)
    scope.outputs = tuple(value.name for value in proto.output)
    for value in (*proto.value_info, *proto.input, *proto.output):
        _note_type(scope, value)
    for name, tensor in weights.items():
        scope.tensors[name] = tensor
    for node_proto in proto.node:
        node = Node(node_proto, scope, graph)
        graph.nodes.append(node)
        _note_node(scope, node)
        for body in bodies(node_proto):
            _walk(graph, body, scope, {tensor.name: tensor for tensor in body.initializer})
    for name, tensor in scope.tensors.items():
        scope.dtypes[name], scope.shapes[name] = tensor.data_type, tuple(tensor.dims)


def _note_type(scope: Scope, value: ValueInfoProto) -> None:
    tensor = value.type.tensor_type
    if tensor.elem_type:
        scope.dtypes[value.name] = tensor.elem_type
    if tensor.HasField("shape"):
        sizes = (dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in tensor.shape.dim)
        scope.shapes[value.name] = tuple(sizes)


def _note_node(scope: Scope, node: Node) -> None:
    for name in node.outputs:
        if name:
            scope.producers.setdefault(name, node)
    for name in node.proto.input:
        scope.owner(name).consumers[name].append(node)
    if node.op_type == "Constant" and node.standard and node.outputs:
        tensor = next((a.t for a in node.proto.attribute if a.name == "value"), None)
        scope.foldable.add(node.outputs[0])
        if tensor is not None:
            scope.tensors[node.outputs[0]] = tensor


def _note_foldable(scope: Scope) -> None:
    """In the order of the nodes, which is that of the data: no recursion, however deep the graph."""
    scope.foldable |= scope.tensors.keys()
    for node in dict.fromkeys(scope.producers.values()):
        arguments = [name for name in node.proto.input if name]
        known = bool(arguments) and all(name in scope.owner(name).foldable for name in arguments)
        if node.op_type in ("Shape", "Size") and arguments:
            shape = node.shape(arguments[0])
            known = known or (shape is not None and all(isinstance(size, int) for size in shape))
        if known and node.op_type not in UNFOLDABLE:
            scope.foldable.update(name for name in node.outputs if name)


def _census(name: str, array: Array) -> Census:
    nan, inf = (int(np.count_nonzero(test(array))) for test in (np.isnan, np.isinf))
    half = array.dtype == np.float16
    small = int(np.count_nonzero((array != 0) & (np.abs(array) < FLOAT16_TINY))) if half else 0
    return Census(name, str(array.dtype), array.size, int(np.count_nonzero(array)), nan, inf, small)


def finite_constant(array: Array | None) -> Array | None:
    """Its values as float64, finite ones only; None for what has no numbers."""
    if array is None or array.dtype.kind not in "fiu" or not array.size:
        return None
    flat = array.astype(np.float64).ravel()
    return flat[np.isfinite(flat)]
