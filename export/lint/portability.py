"""Rules about the file itself: is it valid, whole, named, and of versions that the targets read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from math import prod

import numpy as np
from google.protobuf.message import EncodeError  # type: ignore[import-untyped]
from onnx import TensorProto, helper

from posekit.export.lint.finding import ALL, NVIDIA, ONNXRUNTIME, TENSORRT, Fault, Rule
from posekit.export.lint.inferred import STANDARD
from posekit.export.lint.typed_graph import TypedGraph, dtype_name
from posekit.export.onnx_graph import MAX_BYTES

# onnx-tensorrt operators.md of 10.1 and 10.15, RTX by trial, NVIDIA's opset guide for 11.x.
OPSETS: dict[str, tuple[int, int]] = {
    "tensorrt-10.3": (9, 20),
    "tensorrt-10": (9, 24),
    "tensorrt-11": (9, 25),
    "tensorrt-rtx": (7, 27),
}
IR_VERSION = 10  # onnxruntime issue 23602: 1.20 stops there; posekit runs on 1.18 and later
PACKED_BITS: dict[int, int] = {TensorProto.UINT4: 4, TensorProto.INT4: 4, TensorProto.FLOAT4E2M1: 4}


def opset_range(graph: TypedGraph) -> Iterator[Fault]:
    """The table above."""
    for target, (least, most) in OPSETS.items():
        if not least <= graph.opset <= most:
            yield Fault("", f"opset {graph.opset}", f"{least} to {most}", (target,))


def ir_version(graph: TypedGraph) -> Iterator[Fault]:
    """onnxruntime issues 20559 and 23602: "Unsupported model IR version"."""
    if graph.model.ir_version > IR_VERSION:
        yield Fault("", f"IR version {graph.model.ir_version}")


def unused_domain(graph: TypedGraph) -> Iterator[Fault]:
    """ONNX Runtime's quantiser adds them; the version converter fails over them."""
    used = {node.proto.domain for node in graph.nodes} | {f.domain for f in graph.model.functions} | set(STANDARD)
    called = {n.domain for f in graph.model.functions for n in f.node}
    extra = sorted({entry.domain for entry in graph.model.opset_import} - used - called)
    if extra:
        yield Fault("", ", ".join(extra))


def model_size(graph: TypedGraph) -> Iterator[Fault]:
    """protobuf: a message has at most 2 GB."""
    outside = sum(_bytes_of(t) or 0 for _, t in graph.tensors if t.data_location == TensorProto.EXTERNAL)
    try:
        inside = graph.model.ByteSize()
    except EncodeError:
        inside = MAX_BYTES + 1
    if inside + outside > MAX_BYTES:
        yield Fault("", f"{(inside + outside) / 1e9:.1f} GB")


def external_data(graph: TypedGraph) -> Iterator[Fault]:
    """ONNX, external data: the graph file alone is not the model."""
    found = [name for name, tensor in graph.tensors if tensor.data_location == TensorProto.EXTERNAL]
    if found:
        yield Fault("", f"{len(found)} tensors, the first is {found[0]!r}")


def external_data_missing(graph: TypedGraph) -> Iterator[Fault]:
    """ONNX, external data: a relative path inside the model's folder, offset and length. One finding per file."""
    if graph.folder is None:
        return
    seen: set[str] = set()
    for name, tensor in graph.tensors:
        if tensor.data_location == TensorProto.EXTERNAL:
            location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
            if location not in seen and graph.array(tensor) is None:
                seen.add(location)
                yield Fault(name, f"nothing readable in {location!r}")


def damaged_tensor(graph: TypedGraph) -> Iterator[Fault]:
    """ONNX, TensorProto: raw_data holds exactly the numbers that dims and data_type say."""
    for name, tensor in graph.tensors:
        if tensor.data_location == TensorProto.EXTERNAL:
            continue
        wanted = _bytes_of(tensor) if tensor.HasField("raw_data") else None
        if wanted is None:
            if graph.array(tensor) is None:
                yield Fault(name, f"unreadable {dtype_name(tensor.data_type)} values")
        elif len(tensor.raw_data) != wanted:
            yield Fault(name, f"{len(tensor.raw_data)} bytes", f"{wanted} bytes of {dtype_name(tensor.data_type)}")


def _bytes_of(tensor: TensorProto) -> int | None:
    """What its shape and type take; None for strings and types that ONNX does not have."""
    count: int = prod(tensor.dims)
    if tensor.data_type in PACKED_BITS:
        return (count * PACKED_BITS[tensor.data_type] + 7) // 8
    try:
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    except (KeyError, TypeError, ValueError):
        return None
    return None if dtype.kind == "O" else count * dtype.itemsize


def unnamed_node(graph: TypedGraph) -> Iterator[Fault]:
    """Engine inspectors, calibration tables and quantiser exclusions go by node names."""
    unnamed = sum(not node.proto.name for node in graph.nodes)
    if unnamed:
        yield Fault("", f"{unnamed} of {len(graph.nodes)} nodes without one")


def duplicate_name(graph: TypedGraph) -> Iterator[Fault]:
    """As for absent names: two layers that nobody can tell apart."""
    for name, count in Counter(node.proto.name for node in graph.nodes if node.proto.name).items():
        if count > 1:
            yield Fault(name, f"{count} nodes")


def invalid_graph(graph: TypedGraph) -> Iterator[Fault]:
    """The ONNX checker; what it says about damaged constants has a rule of its own."""
    if graph.invalid and not any(damaged_tensor(graph)):
        yield Fault("", graph.invalid)


def untyped_graph(graph: TypedGraph) -> Iterator[Fault]:
    """ONNX type and shape inference, strict."""
    if graph.untyped:
        yield Fault("", graph.untyped)


RULES = (
    Rule("invalid-graph", "error", ALL, "graph", "a graph that the ONNX checker accepts",
         "Export it again; tools that edit graphs by hand are the usual cause.", invalid_graph),
    Rule("damaged-tensor", "error", ALL, "constant", "numbers of the stated type and shape",
         "Copy or export the file again.", damaged_tensor),
    Rule("opset-range", "error", tuple(OPSETS), "opset", "one that the target reads",
         "Export with opset 19, which all of them read.", opset_range),
    Rule("ir-version", "warning", ONNXRUNTIME, "file", f"at most {IR_VERSION}, which ONNX Runtime 1.18 reads",
         "Set ir_version to 9 or 10 when saving; the operators stay the same.", ir_version),
    Rule("unused-domain", "warning", NVIDIA, "opset imports", "the domains of the operators used",
         "Remove the other opset imports.", unused_domain),
    Rule("model-size", "warning", TENSORRT, "model", f"at most {MAX_BYTES / 1e9:.1f} GB, one protobuf message",
         "Store the weights in float16 or int8, or split the network.", model_size),
    Rule("external-data", "warning", ALL, "weights in another file", "one file",
         "Ship both files together, or save the model in one.", external_data),
    Rule("external-data-missing", "error", ALL, "weights in another file", "that file beside the model",
         "Copy the data file next to the .onnx file, under the name given in it.", external_data_missing),
    Rule("unnamed-node", "warning", NVIDIA, "node names", "a name for every node",
         "Name the nodes when exporting; reports and exclusions need them.", unnamed_node),
    Rule("duplicate-name", "warning", NVIDIA, "node name", "one node per name",
         "Rename the nodes; reports and exclusions need them.", duplicate_name),
)  # fmt: skip
# Told only where no rule explains the cause better.
LAST_RESORT = (
    Rule("untyped-graph", "error", ALL, "types and shapes", "a graph whose types ONNX can infer",
         "Correct the operator that it names, or export again.", untyped_graph),
)  # fmt: skip
