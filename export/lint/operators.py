"""Rules about operators: which of them a target has, and which of their modes.

Sources: onnx-tensorrt docs/operators.md of 10.15 and docs/Changelog.md; builds with TensorRT-RTX 1.7.1, whose
parser a test asks about every row here.
"""

from __future__ import annotations

from collections.abc import Iterator

from onnx import TensorProto as T

from posekit.export.lint.finding import NVIDIA, RTX, TENSORRT, Fault, Rule
from posekit.export.lint.inferred import STANDARD
from posekit.export.lint.typed_graph import TypedGraph, dtype_name

TOPK_LIMIT = 3840  # operators.md: K less than that; RTX 1.7.1 builds 3840 and fails at 3841
GRID_RANK = 4

# No TensorRT has them (operators.md, "N"); integer ones are rows of their own rule.
NOWHERE = (
    "AffineGrid", "Bernoulli", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "CenterCropPad",
    "Col2Im", "Compress", "ConcatFromSequence", "DFT", "Det", "ImageDecoder", "MaxRoiPool", "MaxUnpool",
    "MelWeightMatrix", "Multinomial", "NegativeLogLikelihoodLoss", "Optional", "OptionalGetElement",
    "OptionalHasElement", "RegexFullMatch", "SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase",
    "SequenceInsert", "SequenceLength", "SequenceMap", "SoftmaxCrossEntropyLoss", "SplitToSequence", "StringConcat",
    "StringNormalizer", "StringSplit", "TfIdfVectorizer", "Unique",
)  # fmt: skip
# Missing in some only: RTX by builds, 10.3 by the change log (windows 10.4, STFT 10.5).
SOMEWHERE: dict[str, tuple[str, ...]] = {
    "NonMaxSuppression": RTX,
    "NonZero": RTX,
    "DeformConv": RTX,
    "BlackmanWindow": TENSORRT[:1],
    "HammingWindow": TENSORRT[:1],
    "HannWindow": TENSORRT[:1],
    "STFT": TENSORRT[:1],
}
UNSUPPORTED: dict[str, tuple[str, ...]] = {**dict.fromkeys(NOWHERE, NVIDIA), **SOMEWHERE}
INSTEAD: dict[str, str] = {
    "NonMaxSuppression": "fixed-size boxes and scores, suppressed on the host",
    "NonZero": "a product with a mask of fixed size",
    "Compress": "a product with a mask of fixed size",
    "Unique": "outputs of fixed size",
    "Det": "the 3 x 3 determinant written out",
    "Multinomial": "no random numbers at inference",
    "Bernoulli": "no random numbers at inference",
    "DeformConv": "GridSample and a plain convolution",
}
INTEGER = ("QLinearConv", "QLinearMatMul", "MatMulInteger", "ConvInteger", "DynamicQuantizeLinear")
RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
# (input that must be known at build time, its name). operators.md; for Reduce* and Squeeze also the RTX parser (tests).
BUILD_TIME_INPUTS: dict[str, tuple[int, str]] = {
    **dict.fromkeys(
        ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
         "ReduceProd", "ReduceSum", "ReduceSumSquare", "Squeeze", "Unsqueeze"), (1, "axes")),
    "CumSum": (1, "axis"),
    "OneHot": (1, "depth"),
}  # fmt: skip
RESIZE_COORDINATES = ("half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners")
MICROSOFT = ("com.microsoft", "com.ms", "ai.onnx.ml")  # beginnings of domains that ONNX Runtime brings itself


def unsupported_operator(graph: TypedGraph) -> Iterator[Fault]:
    """The tables above."""
    for op_type, targets in UNSUPPORTED.items():
        for node in graph.of(op_type):
            yield Fault(node, op_type, INSTEAD.get(op_type), targets)


def integer_operator(graph: TypedGraph) -> Iterator[Fault]:
    """operators.md: files in ONNX Runtime's QOperator and dynamic formats never run on TensorRT."""
    for node in graph.of(*INTEGER):
        yield Fault(node, node.op_type)


def custom_operator(graph: TypedGraph) -> Iterator[Fault]:
    """The API: RTX has no plugins, TensorRT needs one. The parser looks at the name alone (tests)."""
    known = {name for name, _ in _standard_operators()}
    for node in graph.nodes:
        domain = node.proto.domain
        if domain in STANDARD:
            continue
        targets: tuple[str, ...] = () if node.op_type in known else NVIDIA
        targets += () if domain.startswith(MICROSOFT) else ("onnxruntime-cpu", "openvino")
        if targets:
            yield Fault(node, f"{domain}.{node.op_type}", targets=targets)


def _standard_operators() -> Iterator[tuple[str, int]]:
    import onnx

    return ((schema.name, schema.since_version) for schema in onnx.defs.get_all_schemas() if schema.domain in STANDARD)


def roi_align(graph: TypedGraph) -> Iterator[Fault]:
    """TensorRT-RTX 1.7.1: a plugin whose constructor calls CUDA, so no engine can be compiled ahead of time."""
    for node in graph.of("RoiAlign"):
        yield Fault(node, "RoiAlign")


def random_operator(graph: TypedGraph) -> Iterator[Fault]:
    """operators.md: the seed is ignored; a pose that differs from run to run cannot be verified."""
    for node in graph.of(*RANDOM):
        yield Fault(node, node.op_type)


def resize_mode(graph: TypedGraph) -> Iterator[Fault]:
    """operators.md; each of these failed to build with RTX."""
    for node in graph.of("Resize"):
        coordinates = node.text("coordinate_transformation_mode", "half_pixel")
        policy = node.text("keep_aspect_ratio_policy", "stretch")
        faults = (
            (coordinates not in RESIZE_COORDINATES, f"coordinates {coordinates!r}", ", ".join(RESIZE_COORDINATES)),
            (node.integer("antialias", 0) != 0, "antialias", "no antialiasing"),
            (policy != "stretch", f"aspect ratio policy {policy!r}", "stretch"),
        )
        yield from (Fault(node, got, expected) for wrong, got, expected in faults if wrong)


def resize_cubic(graph: TypedGraph) -> Iterator[Fault]:
    """operators.md names nearest and linear; RTX builds cubic (tests), which proves nothing for TensorRT."""
    for node in graph.of("Resize"):
        if node.text("mode", "nearest") == "cubic":
            yield Fault(node, "cubic")


def scatter_reduction(graph: TypedGraph) -> Iterator[Fault]:
    """operators.md: none for ScatterND; RTX refuses both (tests). ScatterElements has it since 10.0 (change log)."""
    for node in graph.of("ScatterND", "ScatterElements"):
        reduction = node.text("reduction", "none")
        if reduction != "none":
            yield Fault(node, reduction, targets=NVIDIA if node.op_type == "ScatterND" else RTX)


def extra_outputs(graph: TypedGraph) -> Iterator[Fault]:
    """operators.md: only Y of LayerNormalization, no Indices of MaxPool; RTX says so too (tests)."""
    for node in graph.of("LayerNormalization", "MaxPool"):
        if any(node.outputs[1:]):
            yield Fault(node, f"{sum(map(bool, node.outputs))} outputs of {node.op_type}")


def pool_dilations(graph: TypedGraph) -> Iterator[Fault]:
    """operators.md: empty or all ones; RTX says so too (tests)."""
    for node in graph.of("MaxPool", "AveragePool", "LpPool"):
        if any(step != 1 for step in node.ints("dilations")):
            yield Fault(node, str(list(node.ints("dilations"))))


def topk_limit(graph: TypedGraph) -> Iterator[Fault]:
    """operators.md: "less than 3840"; RTX takes 3840 itself."""
    for node in graph.of("TopK"):
        k = node.value(1)
        count = int(k.ravel()[0]) if k is not None and k.dtype.kind in "iu" and k.size == 1 else 0
        if count >= TOPK_LIMIT:
            yield Fault(node, str(count), targets=NVIDIA if count > TOPK_LIMIT else TENSORRT)


def topk_unsorted(graph: TypedGraph) -> Iterator[Fault]:
    """operators.md: sorted must be 1. RTX builds it (tests)."""
    for node in graph.of("TopK"):
        if node.integer("sorted", 1) != 1:
            yield Fault(node, "sorted=0")


def build_time_input(graph: TypedGraph) -> Iterator[Fault]:
    """The table above."""
    for op_type, (index, argument) in BUILD_TIME_INPUTS.items():
        for node in graph.of(op_type):
            if node.input(index) and not node.is_foldable(index):
                yield Fault(node, f"{argument} {node.input(index)!r}, computed by the graph")


def attention_float32(graph: TypedGraph) -> Iterator[Fault]:
    """RTX 1.7.1 fails with "composite_op->is_decomposable" on all architectures."""
    for node in graph.of("Attention"):
        if node.dtype(node.input(0)) == T.FLOAT:
            yield Fault(node, dtype_name(T.FLOAT))


def attention_version(graph: TypedGraph) -> Iterator[Fault]:
    """The API: IAttention since 10.14, so not on JetPack 7.0 and 7.1; operators.md: 4-D only."""
    for node in graph.of("Attention"):
        yield Fault(node, "Attention")


def grid_sample_rank(graph: TypedGraph) -> Iterator[Fault]:
    """operators.md: 4-D. RTX builds 5-D too (tests), undocumented."""
    for node in graph.of("GridSample"):
        shape = node.shape(node.input(0))
        if shape is not None and len(shape) != GRID_RANK:
            yield Fault(node, f"{len(shape)} axes")


RULES = (
    Rule("unsupported-operator", "error", NVIDIA, "operator", "operators that the target has",
         "Rewrite the network without it, or leave this part to the host.", unsupported_operator),
    Rule("integer-operator", "error", NVIDIA, "operator", "QuantizeLinear and DequantizeLinear around float operators",
         "Quantise statically in QDQ format (quant_format=QuantFormat.QDQ).", integer_operator),
    Rule("custom-operator", "error", NVIDIA, "operator", "operators of ONNX itself",
         "Export without fused or plug-in operators.", custom_operator),
    Rule("roi-align", "warning", RTX, "operator", "GridSample on a fixed grid",
         "Replace by GridSample and a mean (exact to 1e-5), or build on the device.", roi_align),
    Rule("random-operator", "warning", NVIDIA, "operator", "no random numbers at inference",
         "Export in eval mode.", random_operator),
    Rule("resize-mode", "error", NVIDIA, "Resize", "a mode that TensorRT has",
         "Use half_pixel or align_corners, stretched, without antialiasing.", resize_mode),
    Rule("resize-cubic", "warning", TENSORRT, "Resize", "nearest or linear, the documented modes",
         "Use mode='linear', or try the build on the device.", resize_cubic),
    Rule("scatter-reduction", "error", NVIDIA, "scatter reduction", "none",
         "Sum by a matrix product or by a plain scatter of disjoint rows.", scatter_reduction),
    Rule("extra-outputs", "error", NVIDIA, "outputs", "the first alone",
         "Drop the statistics or indices from the graph.", extra_outputs),
    Rule("pool-dilations", "error", NVIDIA, "pooling dilations", "ones", "Use a dilated convolution.", pool_dilations),
    Rule("topk-limit", "error", NVIDIA, "K of TopK", f"less than {TOPK_LIMIT}",
         "Lower K, or take the best of tiles first.", topk_limit),
    Rule("topk-unsorted", "error", TENSORRT, "TopK", "sorted=1", "Export with sorted=True.", topk_unsorted),
    Rule("build-time-input", "error", NVIDIA, "input", "a constant",
         "Fix it in forward; constant folding (onnxsim) may be enough.", build_time_input),
    Rule("attention-float32", "error", RTX, "Attention in", "float16 or bfloat16",
         "Export with opset 19, which writes attention out, or in float16.", attention_float32),
    Rule("attention-version", "warning", TENSORRT[1:2], "operator", "TensorRT 10.14 or later (JetPack 7.2)",
         "Export with opset 19, which writes attention out.", attention_version),
    Rule("grid-sample-rank", "error", TENSORRT, "GridSample input", "4 axes",
         "Put the extra axis into the batch or the channels.", grid_sample_rank),
)  # fmt: skip
