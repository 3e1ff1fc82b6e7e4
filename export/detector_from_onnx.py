"""A third-party detector's ONNX with posekit's entrance in front: uint8 RGB in, the same predictions out."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posekit.calibration.qdq import least_opset
from posekit.export.detector_head import check_inputs, check_metadata, check_pair, likely_head, metadata_of
from posekit.export.onnx_graph import FORBIDDEN, check_graph, strip_origin
from posekit.runtime.detector import FAMILIES, Family, family_named
from posekit.runtime.errors import ExportError, PosekitError, RecipeError
from posekit.runtime.tensor import TensorSpec

if TYPE_CHECKING:
    import onnx

OPSETS = range(11, 24)
STANDARD_DOMAINS = ("", "ai.onnx")
REFUSED_OPS = {*FORBIDDEN, "Loop", "Scan", "If"}
THIRD_PARTY = tuple(name for name, family in FAMILIES.items() if set(family.shapes((32, 32), 1)) == {"predictions"})
# What a licence asks to be kept; the rest of a file's metadata is read and dropped.
KEPT_METADATA = ("license", "author")
PREFIX = "detector/"
RAISED_TOLERANCE = 1e-5  # of the largest value


def detector_graph_from_onnx(
    path: Path | str,
    family: str,
    class_count: int,
    input_wh_px: tuple[int, int] | None = None,
    int8: bool = False,
    prepared_as: Family | None = None,
) -> onnx.ModelProto:
    """Input `image` uint8 (1, H, W, 3) RGB -> output `predictions`, equal to the original's on a pixel tensor by hand.

    path: a detector as its own tools export it, without suppression: one float (1, 3, H, W) input. What its values show
    (a YOLOX with its boxes decoded inside has the raw one's shape) is told by posekit.export.detector_trial.
    class_count: see `labels_from_onnx` and `labels_from_file`.   input_wh_px: for graphs whose H and W are dynamic.
    int8: a graph whose opset cannot say int8 is raised to one that can, and gives the same numbers; any other keeps its
    opset. prepared_as: whose channel order and divisor the entrance has; left out, the family's. Outputs that are not the family's predictions are cut off, with what only they need.
    Raises ExportError for a file that is no such graph or cannot be raised, SpecError for an unknown family.
    """
    import onnx

    row = family_named(family)
    if family not in THIRD_PARTY:
        raise _refused(path, f"family {family!r}", f"one of {', '.join(THIRD_PARTY)}", "posekit exports its own.")
    model = _loaded(path)
    _check_ops(path, model)
    wh = _fix_input(path, model, input_wh_px)
    check_metadata(path, metadata_of(model), family, class_count, wh)
    model = _with_known_shapes(path, model)
    if int8 and model.opset_import[0].version < least_opset(model):
        model = _with_known_shapes(path, _raised(path, model, least_opset(model), 255.0 / row.divisor))
    opset = model.opset_import[0].version
    _keep_predictions(path, model, row, family, wh, class_count)
    model = onnx.compose.add_prefix(model, PREFIX)
    _prepend_entrance(model, prepared_as or row, wh)
    model.graph.output[0].name = _renamed(model, model.graph.output[0].name, "predictions")
    _strip(model)
    check_graph(model, (TensorSpec("image", "uint8", (1, wh[1], wh[0], 3)),), ("predictions",), opset)
    return model


def labels_from_onnx(path: Path | str) -> tuple[str, ...]:
    """Class names that the exporter wrote into the file's metadata as "names": {0: "can", ...}, or a list."""
    rows = metadata_of(_loaded(path))
    try:
        names = ast.literal_eval(rows["names"])  # a Python literal, not JSON; nothing is run
        if isinstance(names, dict):
            names = [names[i] for i in range(len(names))]
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError(f"names {str(names)[:60]}")
    except (KeyError, ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        got = "no metadata 'names'" if "names" not in rows else f"{type(error).__name__}: {error}"
        raise _refused(path, got, "class names by index", "Give a labels file, one name per line.") from error
    return tuple(names)


def labels_from_file(path: Path | str) -> tuple[str, ...]:
    """Class names from a text file, one per line, in the order of the classes. RecipeError if it is none."""
    try:
        labels = tuple(line.strip() for line in Path(path).read_text(encoding="utf-8").strip().splitlines())
        if not labels or not all(labels):
            raise ValueError("an empty line or file")
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"labels file {path}",
            got=f"{type(error).__name__}: {error}",
            expected="one class name per line",
            remedy="Write the names in the order of the network's classes.",
        ) from error
    return labels


def class_object_ids(labels: Sequence[str], objects: Mapping[str, int]) -> tuple[int, ...]:
    """Per class the id of its object, -1 for a class that is none. objects: class name -> object id."""
    unknown = sorted(set(objects) - set(labels))
    if unknown:
        raise RecipeError(
            "detector class",
            got=repr(unknown[0]),
            expected=f"one of {len(labels)} classes: {', '.join(labels[:12])}{', ...' if len(labels) > 12 else ''}",
            remedy="Spell it as the detector's labels do.",
        )
    return tuple(objects.get(label, -1) for label in labels)


def _loaded(path: Path | str) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load(path)
        if not model.graph.node:
            raise ValueError("no nodes")
    except (OSError, ValueError, DecodeError, onnx.checker.ValidationError) as error:
        got = f"{type(error).__name__}: {error}"
        raise _refused(path, got[:200], "an ONNX model", "Export the detector again.") from error
    return model


def _check_ops(path: Path | str, model: onnx.ModelProto) -> None:
    """Refuse what engines cannot run; afterwards the standard operators are the only ones imported."""
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    foreign = sorted({node.domain for node in model.graph.node} - set(STANDARD_DOMAINS))
    opset = opsets.get("", opsets.get("ai.onnx", 0))
    if opset not in OPSETS:
        raise _refused(path, f"opset {opset}", f"{OPSETS[0]} to {OPSETS[-1]}", "Export it with another opset.")
    suppressing = sorted({node.op_type for node in model.graph.node if "nms" in node.op_type.lower()})
    if suppressing:
        raise _refused(
            path,
            f"suppression inside: {', '.join(suppressing)}",
            "the boxes before suppression",
            "Export it without NMS.",
        )
    if foreign or model.functions:
        got = f"operators of {', '.join(foreign) or 'model-local functions'}"
        raise _refused(path, got, "standard ONNX operators only", "Export it without plug-in operators.")
    refused = sorted({node.op_type for node in model.graph.node} & REFUSED_OPS)
    if refused:
        remedy = "Export it without suppression (nms=False) and with static shapes."
        raise _refused(path, f"operators {', '.join(refused)}", "a graph of fixed shapes", remedy)
    del model.opset_import[:]
    model.opset_import.add(domain="", version=opset)


def _fix_input(path: Path | str, model: onnx.ModelProto, input_wh_px: tuple[int, int] | None) -> tuple[int, int]:
    """Make the one float input (1, 3, H, W); returns W, H."""
    import onnx

    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    expected = "one float32 or float16 (1, 3, H, W)" + (
        f" with W x H {input_wh_px[0]} x {input_wh_px[1]}" if input_wh_px else ""
    )
    written = ", ".join(map(_written, inputs))
    remedy = "Export it with batch 1 and a static size, or give input_wh_px."
    kinds = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    check_inputs(path, [value.name for value in inputs])
    if len(inputs) != 1 or inputs[0].type.tensor_type.elem_type not in kinds:
        raise _refused(path, f"inputs {written}", expected, remedy)
    dims = inputs[0].type.tensor_type.shape.dim
    asked = (1, 3, *(reversed(input_wh_px) if input_wh_px else (0, 0)))
    if len(dims) != 4:
        raise _refused(path, f"inputs {written}", expected, remedy)
    for dim, size in zip(dims, asked, strict=True):
        if (dim.dim_value or size) <= 0 or (size and dim.dim_value not in (0, size)):
            raise _refused(path, f"inputs {written}", expected, remedy)
        dim.dim_value = dim.dim_value or size
    return dims[3].dim_value, dims[2].dim_value


def _with_known_shapes(path: Path | str, model: onnx.ModelProto) -> onnx.ModelProto:
    """Shapes inferred anew from the static input: those written in the file may name dynamic axes."""
    import onnx

    del model.graph.value_info[:]
    for output in model.graph.output:
        for dim in output.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.Clear()
    try:
        return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise _refused(
            path, str(error)[:200], "shapes that follow from the input", "Export the detector again."
        ) from error


def _raised(path: Path | str, model: onnx.ModelProto, opset: int, brightest: float) -> onnx.ModelProto:
    """The same graph in a later opset, with the same numbers on a picture of noise up to `brightest`. ExportError where
    ONNX's converter cannot.
    """
    import numpy as np
    import onnx

    from posekit.runtime.backends.ort import OrtSession

    expected = f"a graph that can be raised to opset {opset}, which int8 needs"
    remedy = f"Export the detector with opset {opset} or later, or leave int8 out of its variants."
    try:
        raised = onnx.version_converter.convert_version(model, opset)
        onnx.checker.check_model(raised, full_check=True)
        pixels = np.random.default_rng(0).random(
            [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
        )
        kind = onnx.helper.tensor_dtype_to_np_dtype(model.graph.input[0].type.tensor_type.elem_type)
        feed = {model.graph.input[0].name: (pixels * brightest).astype(kind)}
        before, after = (
            {name: value.astype(np.float64) for name, value in OrtSession(one.SerializeToString()).run(feed).items()}
            for one in (model, raised)
        )
    except (
        RuntimeError,
        ValueError,
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
        PosekitError,
    ) as error:
        got = f"opset {model.opset_import[0].version}, {type(error).__name__}: {str(error).strip().splitlines()[-1][:200]}"
        raise _refused(path, got, expected, remedy) from error
    for name, value in before.items():
        worst = float(np.abs(value - after[name]).max())
        if not worst <= RAISED_TOLERANCE * float(np.abs(value).max()):
            raise _refused(path, f"output {name!r} that differs by {worst:.3g} once it is raised", expected, remedy)
    return raised


def _keep_predictions(
    path: Path | str, model: onnx.ModelProto, row: Family, family: str, wh: tuple[int, int], class_count: int
) -> None:
    """Cut off all but the one output with the family's shape, and the nodes that only they need."""
    expected = row.shapes(wh, class_count)["predictions"]
    check_pair(path, {value.name: _dims(value) for value in model.graph.output})
    fitting = [value for value in model.graph.output if _fits(value, expected)]
    if len(fitting) != 1:
        likely = likely_head([_dims(value) for value in model.graph.output], class_count)
        raise _refused(
            path,
            f"outputs {', '.join(map(_written, model.graph.output))}{f', as {likely} has' if likely else ''}",
            f"one output ({', '.join(map(str, expected))}) of a {family} detector with {class_count} classes",
            "Check family and labels; v10 and v26 exported without end2end=True are yolov8.",
        )
    del model.graph.output[:]
    model.graph.output.append(fitting[0])
    needed, nodes = {fitting[0].name}, []
    for node in reversed(model.graph.node):
        if needed & set(node.output):
            needed |= set(node.input)
            nodes.append(node)
    kept_weights = [tensor for tensor in model.graph.initializer if tensor.name in needed]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(reversed(nodes))
    model.graph.initializer.extend(kept_weights)


def _prepend_entrance(model: onnx.ModelProto, row: Family, wh: tuple[int, int]) -> None:
    """Cast, transpose, order of channels, divisor: in float32, then to what the network takes."""
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    pixels = next(value for value in graph.input if value.name not in weights)
    # A uint8 input may only be cast (TensorRT), so the cast comes first.
    steps: list[tuple[str, list[str], dict[str, Any]]]
    steps = [("Cast", [], {"to": onnx.TensorProto.FLOAT}), ("Transpose", [], {"perm": [0, 3, 1, 2]})]
    if row.bgr:
        graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0]), "entrance/bgr"))
        steps.append(("Gather", ["entrance/bgr"], {"axis": 1}))
    if row.divisor != 1.0:
        graph.initializer.append(numpy_helper.from_array(np.float32(row.divisor).reshape(1), "entrance/divisor"))
        steps.append(("Div", ["entrance/divisor"], {}))
    steps.append(("Cast", [], {"to": pixels.type.tensor_type.elem_type}))
    nodes, current = [], "image"
    for i, (op, more, attributes) in enumerate(steps):
        result = pixels.name if i == len(steps) - 1 else f"entrance/{i}"
        nodes.append(helper.make_node(op, [current, *more], [result], name=f"entrance/{op.lower()}_{i}", **attributes))
        current = result
    theirs = list(graph.node)
    del graph.node[:], graph.input[:]
    graph.node.extend([*nodes, *theirs])
    graph.input.append(helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, [1, wh[1], wh[0], 3]))


def _renamed(model: onnx.ModelProto, old: str, new: str) -> str:
    for node in model.graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                names[i] = new if name == old else name
    return new


def _strip(model: onnx.ModelProto) -> None:
    """No paths, dates or stack traces of the exporting machine; authorship stays."""
    kept = [(p.key, p.value) for p in model.metadata_props if p.key in KEPT_METADATA]
    strip_origin(model)
    for key, value in kept:
        model.metadata_props.add(key=key, value=value)


def _dims(value: onnx.ValueInfoProto) -> list[int | str]:
    dims = value.type.tensor_type.shape.dim
    return [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in dims]


def _fits(value: onnx.ValueInfoProto, expected: Sequence[int | str]) -> bool:
    found = _dims(value)
    return len(found) == len(expected) and all(
        isinstance(b, str) or a == b for a, b in zip(found, expected, strict=True)
    )


def _written(value: onnx.ValueInfoProto) -> str:
    import onnx

    kind = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()
    return f"{value.name} {kind}({', '.join(map(str, _dims(value)))})"


def _refused(path: Path | str, got: str, expected: str, remedy: str) -> ExportError:
    return ExportError(f"detector {path}", got=got, expected=expected, remedy=remedy)
