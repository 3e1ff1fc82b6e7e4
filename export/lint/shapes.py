"""Rules about shapes: what is fixed can be allocated, profiled and captured; what depends on values cannot."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import ValueInfoProto

from posekit.export.lint.finding import NVIDIA, TENSORRT, Fault, Rule
from posekit.export.lint.typed_graph import TypedGraph

DATA_DEPENDENT = ("NonZero", "NonMaxSuppression", "Compress", "Unique")
CONTROL = ("If", "Loop", "Scan")


def unknown_input_rank(graph: TypedGraph) -> Iterator[Fault]:
    """An optimisation profile gives sizes per axis; without axes there is none to give."""
    given = {tensor.name for tensor in graph.model.graph.initializer}
    for value in graph.model.graph.input:
        if value.name not in given and _has_no_shape(value):
            yield Fault(value.name, "no shape")


def unknown_output_rank(graph: TypedGraph) -> Iterator[Fault]:
    """A caller allocates outputs before the run; ONNX's inference is asked first."""
    for value in graph.model.graph.output:
        if _has_no_shape(value) and (not graph.scopes or value.name not in graph.scopes[0].shapes):
            yield Fault(value.name, "no shape")


def _has_no_shape(value: ValueInfoProto) -> bool:
    return value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape")


def dynamic_axis(graph: TypedGraph) -> Iterator[Fault]:
    """NVIDIA, dynamic shapes: each dynamic axis needs a range in the profile and a captured graph per size."""
    given = {tensor.name for tensor in graph.model.graph.initializer}
    for value in graph.model.graph.input:
        sizes = [] if value.name in given else list(value.type.tensor_type.shape.dim)[1:]
        names = [dim.dim_param or "?" for dim in sizes if not dim.HasField("dim_value")]
        if names:
            yield Fault(value.name, ", ".join(names))


def data_dependent_shape(graph: TypedGraph) -> Iterator[Fault]:
    """NVIDIA, CUDA graphs: needs an output allocator and cannot be captured; mask instead."""
    for node in graph.of(*DATA_DEPENDENT):
        yield Fault(node, node.op_type, targets=TENSORRT)
    for node in graph.of("TopK"):
        if node.input(1) and not node.is_foldable(1):
            yield Fault(node, f"TopK with K from {node.input(1)!r}")


def control_flow(graph: TypedGraph) -> Iterator[Fault]:
    """TensorRT-RTX 1.7.1: builds, 0.5 to 0.8 MB more, and breaks graph capture on some paths."""
    for node in graph.of(*CONTROL):
        yield Fault(node, node.op_type)


RULES = (
    Rule("unknown-input-rank", "error", NVIDIA, "shape of an input", "a size or a name for every axis",
         "Write the shape into the graph; dynamic axes as names.", unknown_input_rank),
    Rule("unknown-output-rank", "warning", NVIDIA, "shape of an output", "a size or a name for every axis",
         "Run ONNX shape inference, or reshape the output to a fixed rank.", unknown_output_rank),
    Rule("dynamic-axis", "warning", NVIDIA, "dynamic axes behind the first", "a dynamic batch alone",
         "Fix the size, or give the engine's profile its range.", dynamic_axis),
    Rule("data-dependent-shape", "warning", NVIDIA, "output size that depends on values", "fixed sizes",
         "Keep all rows and mask them by their score; TopK with a constant K.", data_dependent_shape),
    Rule("control-flow", "warning", NVIDIA, "control flow", "one straight graph",
         "Unroll the loop or compute both branches; a CUDA graph cannot capture it everywhere.", control_flow),
)  # fmt: skip
