"""What every exported graph must be, whichever tool wrote it: specs, checks, and nothing of the builder's machine."""

from __future__ import annotations

import ast
from collections import Counter

import onnx
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from posekit.runtime.errors import ExportError
from posekit.runtime.tensor import TensorSpec

OPSET = 19  # TensorRT 10.3 reads up to 20; float16 Q/DQ scales need 19
MAX_BYTES = (1 << 31) - 1  # of one protobuf message

SCOPES = "pkg.torch.onnx.name_scopes"  # the exporter's note on a node: the modules around it, then its own name

# Operators that some target cannot run, and what to do instead.
FORBIDDEN: dict[str, str] = {
    "NonMaxSuppression": "suppress on the host; give fixed-size boxes and scores",
    "NonZero": "mask by multiplication instead of boolean indexing",
    "Compress": "mask by multiplication instead of boolean indexing",
    "Unique": "give fixed-size outputs",
    "Det": "write the 3x3 determinant out",
    "RandomNormal": "no random numbers at inference",
    "RandomNormalLike": "no random numbers at inference",
    "RandomUniform": "no random numbers at inference",
    "RandomUniformLike": "no random numbers at inference",
    "Bernoulli": "no random numbers at inference",
}
REDUCING = ("ScatterND", "ScatterElements")


def specs_from_graph(model: ModelProto) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """(inputs, outputs). An axis whose size the graph does not name is called after its tensor."""
    return tuple(map(_spec, model.graph.input)), tuple(map(_spec, model.graph.output))


def name_nodes(model: ModelProto, root: str) -> None:
    """Call every node, in place, after the submodule it is from: "backbone.layer1.0.conv1/Conv", then ".../Conv_2".

    root: the wrappers' own prefix, taken off. Nodes of the network's own forward are "/Add". Equal networks, equal names,
    whatever their precision: what is kept, quantised or slow can be said in words of the network.
    """
    taken: Counter[str] = Counter()
    scope_of: dict[str, str] = {}
    for node in model.graph.node:
        scope = _scope(node, root)
        if scope is None:  # made by the exporter's own rewriting: part of where its input is from
            scope = next((scope_of[name] for name in node.input if name in scope_of), _holder(node, root))
        scope_of.update(dict.fromkeys(node.output, scope))
        name = f"{scope}/{node.op_type}"
        taken[name] += 1
        node.name = name if taken[name] == 1 else f"{name}_{taken[name]}"


def strip_origin(model: ModelProto) -> None:
    """Remove, in place, what says where and how the graph was made: paths of sources, traces, tools."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def check_graph(
    model: ModelProto, inputs: tuple[TensorSpec, ...], outputs: tuple[str, ...], opset: int = OPSET
) -> None:
    """ExportError unless the graph is valid, self-contained, and has the declared inputs, outputs and opset."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise refused(
            _last_line(error), "a valid ONNX graph", "Rename outputs that share a parameter's name."
        ) from error
    except ValueError as error:
        raise refused(error, f"at most {MAX_BYTES} bytes", "Export a smaller network.") from error
    found = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    if found != {"ai.onnx": opset}:
        raise refused(f"opset {found}", f"opset {opset} alone", "Use operators that this opset has.")
    _check_operators(model)
    _check_tensors(model, inputs, outputs)
    outside = [t.name for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL]
    if outside:
        raise refused(f"weights of {outside[0]!r} in another file", "one file", "Export without external data.")


def refused(got: object, expected: object, remedy: str) -> ExportError:
    return ExportError("exported graph", got=got, expected=expected, remedy=remedy)


def _scope(node: NodeProto, root: str) -> str | None:
    """The submodule that holds the node's weight (a norm may be folded into it), or the innermost one around it."""
    notes = [entry.value for entry in node.metadata_props if entry.key == SCOPES]
    if not notes:
        return None
    holders = [name.removesuffix(".weight") for name in node.input if name.endswith(".weight")]
    around = [*ast.literal_eval(notes[0])[:-1], *holders]
    inside = [name for name in around if f"{name}.".startswith(f"{root}.")]
    return str(inside[-1]).removeprefix(root).removeprefix(".") if inside else ""


def _holder(node: NodeProto, root: str) -> str:
    """The submodule of the first parameter among the inputs."""
    held = [name.rpartition(".")[0] for name in node.input if name.startswith(f"{root}.")]
    return held[0].removeprefix(root).removeprefix(".") if held else ""


def _check_operators(model: ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type in FORBIDDEN:
            raise refused(f"operator {node.op_type}", "operators that every target runs", FORBIDDEN[node.op_type] + ".")
        if node.op_type in REDUCING and any(a.name == "reduction" and a.s != b"none" for a in node.attribute):
            raise refused(f"{node.op_type} with a reduction", "plain scatter", "sum by a matrix product.")


def _check_tensors(model: ModelProto, inputs: tuple[TensorSpec, ...], outputs: tuple[str, ...]) -> None:
    found_inputs, found_outputs = specs_from_graph(model)
    if found_inputs != inputs:
        got, expected = (", ".join(map(str, specs)) for specs in (found_inputs, inputs))
        raise refused(f"inputs {got}", expected, "Keep dynamic axes free of Python numbers in forward.")
    if tuple(spec.name for spec in found_outputs) != outputs:
        raise refused(f"outputs {[s.name for s in found_outputs]}", list(outputs), "Return one tensor per output.")
    if any("batch" in spec.shape for spec in inputs):
        fixed = [spec for spec in found_outputs if spec.shape[:1] != ("batch",)]
        if fixed:
            raise refused(f"output {fixed[0]}", "a first axis of any batch size", "Keep the batch axis first.")


def _spec(value: ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    sizes = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in tensor.shape.dim]
    return TensorSpec(value.name, dtype, tuple(n if n != "" else f"{value.name}_{i}" for i, n in enumerate(sizes)))


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1][:300] if str(error).strip() else type(error).__name__
