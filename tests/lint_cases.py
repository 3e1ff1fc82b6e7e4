"""For every lint rule a graph that breaks it and alone it, and a twin that does not; in ONNX's own text form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, numpy_helper

Says = Literal["refuses", "accepts"]
X, Y = "float[N,4] x", "float[N,4] y"
IMAGE, MAP = "float[N,2,4,4] x", "float[N,2,4,4] y"
HALF_TENTH = 11878  # 0.1 in float16, as bits
S, Z = "float s = {0.1}", "int8 z = {0}"
CONV_W = "int8[2,2,1,1] w = {1,2,3,4}, float[2] v = {0.1,0.2}, int8[2] o = {0,0}"


def graph(
    body: str, inputs: str = X, outputs: str = Y, constants: str = "", opset: int = 19, ir: int = 9, domains: str = ""
) -> ModelProto:
    head = f'<ir_version: {ir}, opset_import: ["": {opset}{domains}]>'
    text = f"{head} g ({inputs}) => ({outputs}) {f'<{constants}>' if constants else ''} {{ {body} }}"
    return onnx.parser.parse_model(text)


def with_constant(name: str, array: np.ndarray[Any, Any], **rest: Any) -> ModelProto:
    """Relu of x plus one more constant, which the text form cannot write."""
    model = graph(**{"body": "[a] y = Relu(x)", **rest})
    model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def edited(model: ModelProto, change: Callable[[ModelProto], object]) -> ModelProto:
    change(model)
    return model


@dataclass(frozen=True)
class Case:
    """bad: one finding of the rule, at `at`, saying `got`.  rtx, ort: what TensorRT-RTX and ONNX Runtime do with it."""

    rule: str
    bad: Callable[[], ModelProto]
    good: Callable[[], ModelProto]
    at: str
    got: str
    targets: tuple[str, ...] | None = None
    rtx: Says | None = None
    ort: Says | None = None
    beside: tuple[str, ...] = ()  # rules that the fault cannot be written without


QDQ = "[q] q = QuantizeLinear(x, s, z) [d] y = DequantizeLinear(q, s, z)"
DQ_CONV = "[q] q = QuantizeLinear(x, s, z) [d] a = DequantizeLinear(q, s, z) [e] b = DequantizeLinear<axis={axis}>(w, v, o) [c] y = Conv(a, b)"
BIAS_CONV = "[q] q = QuantizeLinear(x, s, z) [d] a = DequantizeLinear(q, s, z) [e] b = DequantizeLinear<axis=0>(w, v, o) [f] k = {bias} [c] y = Conv(a, b, k)"
QDQ_MATMUL = "[q] q = QuantizeLinear(x, s, z) [d] a = DequantizeLinear(q, s, z) [e] b = DequantizeLinear<{how}>(w, v, o) [m] y = MatMul(a, b)"
HALF = f"float16 s = {{{HALF_TENTH}}}, {Z}"


def half_conv(requantised: bool, relu: bool = False) -> ModelProto:
    """int8 Conv with float16 scales and a bias; its output quantised or not."""
    body = (
        "[q] q = QuantizeLinear(x, s, z) [d] a = DequantizeLinear(q, s, z) [e] b = DequantizeLinear<axis=0>(w, v, o) "
    )
    body += "[c] c = Conv(a, b, k) " + ("[r] h = Relu(c) " if relu else "[r] h = Identity(c) " * (not requantised))
    last = "h" if relu or not requantised else "c"
    body += (
        f"[t] t = QuantizeLinear({last}, s, z) [u] y = DequantizeLinear(t, s, z)" if requantised else "[u] y = Neg(h)"
    )
    model = graph(body, "float16[N,2,4,4] x", "float16[N,2,4,4] y", f"{Z}, int8[2] o = {{0,0}}")
    for name, array in {
        "s": np.array(0.003),
        "v": np.array([1e-4, 3e-4]),
        "k": np.array([0.1, -0.2]),
    }.items():
        model.graph.initializer.append(numpy_helper.from_array(_half(array), name))
    weights = np.array([[100, -90], [60, 120]], np.int8).reshape(2, 2, 1, 1)
    model.graph.initializer.append(numpy_helper.from_array(weights, "w"))
    return model


def _blockwise(activations: bool) -> ModelProto:
    """At 197 tokens, as a ViT has it: TensorRT-RTX compiles the smallest of such graphs, and no larger one."""
    body = "[q] q = QuantizeLinear(x, s, z) [d] a = DequantizeLinear(q, s, z) " if activations else ""
    body += "[e] b = DequantizeLinear<axis=0, block_size=128>(w, v, o) [m] y = MatMul("
    body += "a, b)" if activations else "x, b)"
    model = graph(body, "float[N,197,384] x", "float[N,197,64] y", f"{S}, {Z}", opset=21)
    rng = np.random.default_rng(0)
    weights: dict[str, np.ndarray[Any, Any]] = {
        "w": rng.integers(-99, 99, (384, 64)).astype(np.int8),
        "v": rng.uniform(0.01, 0.02, (3, 64)).astype(np.float32),
        "o": np.zeros((3, 64), np.int8),
    }
    for name, array in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def _per_column(activations: bool = False) -> ModelProto:
    body = "[e] b = DequantizeLinear<axis=1>(w, v, o) [m] y = MatMul(x, b)"
    if activations:
        body = QDQ_MATMUL.format(how="axis=1")
    weights = "int8[4,2] w = {1,2,3,4,5,6,7,8}, float[2] v = {0.1,0.2}, int8[2] o = {0,0}"
    return graph(body, outputs="float[N,2] y", constants=f"{S}, {Z}, {weights}", opset=21)


def _external(name: str) -> ModelProto:
    model = with_constant("w", np.zeros(4, np.float32))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=name)
    return model


def _large() -> ModelProto:
    model = _external("w.bin")
    model.graph.initializer[0].dims[:] = [30000, 30000]
    return model


def _attention(kind: str) -> ModelProto:
    shape = "[1,2,8,32]"
    q, k, v, y = (f"{kind}{shape} {name}" for name in "qkvy")
    return graph("[a] y = Attention(q, k, v)", f"{q}, {k}, {v}", y, opset=23, ir=10)


def _relu() -> ModelProto:
    return graph("[a] y = Relu(x)")


def _if(body: bool = True) -> ModelProto:
    branches = "then_branch = t () => (float[N,4] u) { [p] u = Relu(x) }, else_branch = e () => (float[N,4] v) { [n] v = Neg(x) }"
    return graph(f"[i] y = If (c) <{branches}>", f"{X}, bool c")


def _resize(attributes: str, **rest: Any) -> ModelProto:
    return graph(f"[r] y = Resize<{attributes}>(x, , s)", "float[1,1,4,4] x", "float[1,1,8,8] y",
                 "float[4] s = {1,1,2,2}", **rest)  # fmt: skip


def _layernorm_by_parts(kind: str) -> ModelProto:
    constants = f"{kind} two = {{{16384 if kind == 'float16' else 2}}}, int64[1] axes = {{-1}}"
    return graph("[p] h = Pow(x, two) [m] y = ReduceMean(h, axes)", f"{kind}[N,4] x", f"{kind}[N,1] y", constants)


def _axes(op_type: str, constant: bool) -> ModelProto:
    body = f"[r] y = {op_type}(x, k)"
    return graph(body, X if constant else f"{X}, int64[1] k", "float[A,B] y" if "Reduce" in op_type else "float[A,B,C] y",
                 "int64[1] k = {1}" if constant else "")  # fmt: skip


def _half(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return array.astype(np.float16)


SMALL = np.full(100, 2.0**-16)


def good_conv() -> ModelProto:
    return graph(DQ_CONV.format(axis=0), IMAGE, MAP, f"{S}, {Z}, {CONV_W}")


def good_qdq() -> ModelProto:
    return graph(QDQ, constants=f"{S}, {Z}")


CASES = (
    Case("invalid-graph", lambda: graph("[a] y = Relu(missing)"), _relu, "", "missing", ort="refuses"),
    Case("damaged-tensor", lambda: edited(with_constant("w", np.zeros(4, np.float32)),
         lambda m: setattr(m.graph.initializer[0], "raw_data", b"123")),
         lambda: with_constant("w", np.zeros(4, np.float32)), "w", "3 bytes"),
    Case("opset-range", lambda: graph("[a] y = Relu(x)", opset=21), _relu, "", "opset 21", ("tensorrt-10.3",)),
    Case("ir-version", lambda: graph("[a] y = Relu(x)", ir=11), _relu, "", "IR version 11"),
    Case("unused-domain", lambda: graph("[a] y = Relu(x)", domains=', "com.microsoft": 1'), _relu, "", "com.microsoft"),
    Case("model-size", _large, _relu, "", "3.6 GB", ("tensorrt-10.3",), beside=("external-data",)),
    Case("external-data", lambda: _external("w.bin"), _relu, "", "1 tensors"),
    Case("unnamed-node", lambda: graph("y = Relu(x)"), _relu, "", "1 of 1"),
    Case("duplicate-name", lambda: graph("[a] h = Relu(x) [a] y = Relu(h)"), _relu, "a", "2 nodes"),
    # quantisation
    Case("nonzero-zero-point", lambda: graph(QDQ, constants=f"{S}, int8 z = {{3}}"), good_qdq, "q", "3 (int8)",
         rtx="refuses", ort="accepts"),
    Case("uint8-quantised", lambda: graph(QDQ, constants=f"{S}, uint8 z = {{0}}"), good_qdq, "q", "uint8",
         rtx="accepts", ort="accepts"),
    Case("missing-zero-point", lambda: graph("[q] q = QuantizeLinear(x, s) [d] y = DequantizeLinear(q, s)", constants=S),
         good_qdq, "q", "none", rtx="accepts", ort="accepts"),
    Case("variable-zero-point", lambda: graph(QDQ, f"{X}, int8 z", constants=S), good_qdq, "q", "'z'", rtx="refuses"),
    Case("bad-scale", lambda: graph(QDQ, constants=f"float s = {{0}}, {Z}"), good_qdq, "q", "0 (1 of 1 wrong)",
         rtx="refuses"),
    Case("int32-dequantize", lambda: graph(BIAS_CONV.format(bias="DequantizeLinear(b32, r, p)"), IMAGE, MAP,
         f"{S}, {Z}, {CONV_W}, int32[2] b32 = {{1,2}}, float r = {{0.01}}, int32 p = {{0}}"),
         lambda: graph(BIAS_CONV.format(bias="Relu(r)"), IMAGE, MAP, f"{S}, {Z}, {CONV_W}, float[2] r = {{0.1,0.2}}"),
         "f", "bias of c", rtx="refuses", ort="accepts"),
    Case("quantised-type", lambda: graph(QDQ, constants=f"{S}, uint16 z = {{0}}", opset=21),
         lambda: graph(QDQ, constants=f"{S}, {Z}", opset=21), "q", "uint16", ("tensorrt-11", "tensorrt-rtx"),
         rtx="refuses"),
    Case("scale-dtype", lambda: graph(QDQ, "float16[N,4] x", constants=f"{S}, {Z}"), good_qdq, "q",
         "float for float16 values", rtx="accepts", ort="refuses"),
    Case("fp16-scale-opset", lambda: graph(QDQ, "float16[N,4] x", "float16[N,4] y", HALF, opset=13),
         lambda: graph(QDQ, "float16[N,4] x", "float16[N,4] y", HALF), "q", "opset 13", rtx="accepts", ort="refuses"),
    Case("weight-axis", lambda: graph(DQ_CONV.format(axis=1), IMAGE, MAP, f"{S}, {Z}, {CONV_W}"), good_conv, "e",
         "axis 1 of Conv weights", rtx="accepts"),
    Case("blockwise-activations", lambda: _blockwise(True), lambda: _per_column(True), "e", "blocks of 128",
         ("tensorrt-rtx",), rtx="refuses"),
    Case("blockwise-weights", lambda: _blockwise(False), _per_column, "e", "blocks of 128", ("tensorrt-rtx",),
         rtx="accepts"),
    Case("qdq-around-activation", lambda: graph(f"{QDQ.replace('y =', 'h =')} [a] r = Sigmoid(h) [b] t = QuantizeLinear(r, s, z)"
         " [c] y = DequantizeLinear(t, s, z)", constants=f"{S}, {Z}"),
         lambda: graph(f"{QDQ.replace('y =', 'h =')} [a] y = Sigmoid(h)", constants=f"{S}, {Z}"), "a", "Sigmoid",
         rtx="accepts"),
    Case("requantised-before-relu", lambda: graph("[c] h = Conv(x, w) [q] q = QuantizeLinear(h, s, z)"
         " [d] r = DequantizeLinear(q, s, z) [a] y = Relu(r)", IMAGE, MAP, f"{S}, {Z}, float[2,2,1,1] w = {{1,2,3,4}}"),
         lambda: graph("[c] h = Conv(x, w) [a] r = Relu(h) [q] q = QuantizeLinear(r, s, z)"
         " [d] y = DequantizeLinear(q, s, z)", IMAGE, MAP, f"{S}, {Z}, float[2,2,1,1] w = {{1,2,3,4}}"), "a",
         "before it", rtx="accepts"),
    Case("float-weights", lambda: graph("[q] q = QuantizeLinear(w, s, z) [d] b = DequantizeLinear(q, s, z) [m] y = MatMul(x, b)",
         outputs="float[N,2] y", constants=f"{S}, {Z}, float[4,2] w = {{1,2,3,4,5,6,7,8}}"),
         lambda: _edited_opset(_per_column()), "q", "[4, 2]", rtx="accepts"),
    Case("int8-constant", lambda: graph("[t] t = Transpose(w) [d] b = DequantizeLinear(t, s, z) [m] y = MatMul(x, b)",
         outputs="float[N,2] y", constants=f"{S}, {Z}, int8[2,4] w = {{1,2,3,4,5,6,7,8}}"),
         lambda: _edited_opset(_per_column()), "t", "read by Transpose", rtx="refuses", ort="accepts"),
    Case("quantised-attention", lambda: graph("[q] q = QuantizeLinear(x, s, z) [d] a = DequantizeLinear(q, s, z)"
         " [r] r = QuantizeLinear(k, s, z) [e] b = DequantizeLinear(r, s, z) [m] y = MatMul(a, b)", "float[N,4] x, float[4,4] k",
         constants=f"{S}, {Z}"), lambda: graph("[m] y = MatMul(x, k)", "float[N,4] x, float[4,4] k"), "m", "both sides",
         rtx="accepts"),
    Case("qdq-pair", lambda: graph("[q] q = QuantizeLinear(x, s, z) [d] y = DequantizeLinear(q, t, z)",
         constants=f"{S}, {Z}, float t = {{0.2}}"), good_qdq, "d", "scale 0.1 against 0.2", rtx="accepts", ort="accepts"),
    Case("onnxruntime-fp16-scales", lambda: half_conv(True), lambda: half_conv(False), "c", "bias", rtx="accepts",
         ort="accepts"),
    # types and numbers
    Case("mixed-types", lambda: graph("[c] h = Cast<to=10>(x) [a] y = Add(h, x)"),
         lambda: graph("[c] h = Cast<to=10>(x) [e] k = Cast<to=1>(h) [a] y = Add(k, x)"), "a", "float16 (h) and float (x)",
         rtx="refuses", ort="refuses"),
    Case("operator-type", lambda: graph("[a] y = Sigmoid(x)", "int64[N,4] x", "int64[N,4] y"), _relu, "a", "int64",
         ort="refuses"),
    Case("double", lambda: graph("[a] y = Relu(x)", "double[N,4] x", "double[N,4] y"), _relu, "a", "float64",
         rtx="accepts", ort="accepts"),
    Case("unsupported-dtype", lambda: graph("[a] h = Cast<to=5>(x) [b] y = Cast<to=1>(h)"),
         lambda: graph("[a] h = Cast<to=6>(x) [b] y = Cast<to=1>(h)"), "a", "int16", rtx="refuses", ort="accepts"),
    Case("uint8-inside", lambda: graph("[t] t = Transpose<perm=[0,3,1,2]>(x) [c] y = Cast<to=1>(t)", "uint8[N,4,4,3] x",
         "float[N,3,4,4] y"), lambda: graph("[c] t = Cast<to=1>(x) [s] s = Shape<start=0, end=1>(x)"
         " [o] o = Concat<axis=0>(s, r) [e] y = Reshape(t, o)", "uint8[N,4,4,3] x", "float[N,48] y",
         "int64[1] r = {48}"), "t", "Transpose of uint8", rtx="refuses", ort="accepts"),
    Case("fp16-sensitive", lambda: graph("[a] y = Softmax(x)", "float16[N,4] x", "float16[N,4] y"),
         lambda: graph("[c] h = Cast<to=1>(x) [a] k = Softmax(h) [d] y = Cast<to=10>(k)", "float16[N,4] x",
         "float16[N,4] y"), "a", "Softmax", rtx="accepts"),
    Case("fp16-layernorm", lambda: _layernorm_by_parts("float16"), lambda: _layernorm_by_parts("float"), "m",
         "squares", rtx="accepts"),
    Case("fp16-overflow", lambda: graph("[c] k = Cast<to=10>(big) [a] y = Add(x, k)", "float16[N,4] x", "float16[N,4] y",
         "float big = {100000}"), lambda: graph("[c] k = Cast<to=10>(big) [a] y = Add(x, k)", "float16[N,4] x",
         "float16[N,4] y", "float big = {65504}"), "c", "100000", rtx="accepts", ort="accepts"),
    Case("nan-constant", lambda: with_constant("w", np.array([1, np.nan], np.float32)),
         lambda: with_constant("w", np.ones(2, np.float32)), "w", "1 NaN of 2", ort="accepts"),
    Case("inf-constant", lambda: with_constant("w", _half(np.array([1, np.inf]))),
         lambda: with_constant("w", _half(np.array([1, 65504]))), "w", "1 infinite of 2", ort="accepts"),
    Case("fp16-denormals", lambda: with_constant("w", _half(SMALL)), lambda: with_constant("w", _half(SMALL * 64)), "w",
         "100 of 100"),
    # operators
    Case("unsupported-operator", lambda: graph("[u] y = Det(x)", "float[2,3,3] x", "float[2] y"), _relu, "u", "Det",
         rtx="refuses", ort="accepts"),
    Case("integer-operator", lambda: graph("[m] y = MatMulInteger(a, b)", "int8[2,3] a, int8[3,2] b", "int32[2,2] y"),
         lambda: graph("[m] y = MatMul(a, b)", "float[2,3] a, float[3,2] b", "float[2,2] y"), "m", "MatMulInteger",
         rtx="refuses", ort="accepts"),
    Case("custom-operator", lambda: graph("[v] y = com.microsoft.Inverse(x)", "float[3,3] x", "float[3,3] y",
         domains=', "com.microsoft": 1'), _relu, "v", "com.microsoft.Inverse", rtx="refuses", ort="accepts"),
    Case("roi-align", lambda: graph("[r] y = RoiAlign<output_height=2, output_width=2>(x, b, i)",
         "float[1,2,8,8] x, float[3,4] b, int64[3] i", "float[3,2,2,2] y"), _relu, "r", "RoiAlign", ort="accepts"),
    Case("random-operator", lambda: graph("[r] h = RandomNormalLike(x) [a] y = Add(x, h)"), _relu, "r", "RandomNormalLike",
         ort="accepts"),
    Case("resize-mode", lambda: _resize('mode="linear", antialias=1'), lambda: _resize('mode="linear"'), "r", "antialias",
         rtx="refuses", ort="accepts"),
    Case("resize-cubic", lambda: _resize('mode="cubic"'), lambda: _resize('mode="linear"'), "r", "cubic", rtx="accepts"),
    Case("scatter-reduction", lambda: graph('[s] y = ScatterND<reduction="add">(x, i, u)', "float[4,2] x", "float[4,2] y",
         "int64[1,1] i = {0}, float[1,2] u = {1,1}"), lambda: graph("[s] y = ScatterND(x, i, u)", "float[4,2] x",
         "float[4,2] y", "int64[1,1] i = {0}, float[1,2] u = {1,1}"), "s", "add", rtx="refuses", ort="accepts"),
    Case("extra-outputs", lambda: graph("[n] y, m = LayerNormalization(x, w)", outputs=f"{Y}, float[N,1] m",
         constants="float[4] w = {1,1,1,1}"), lambda: graph("[n] y = LayerNormalization(x, w)",
         constants="float[4] w = {1,1,1,1}"), "n", "2 outputs", rtx="refuses", ort="accepts"),
    Case("pool-dilations", lambda: graph("[p] y = MaxPool<kernel_shape=[2,2], dilations=[2,2]>(x)", IMAGE,
         "float[N,2,2,2] y"), lambda: graph("[p] y = MaxPool<kernel_shape=[2,2]>(x)", IMAGE, "float[N,2,3,3] y"), "p",
         "[2, 2]", rtx="refuses", ort="accepts"),
    Case("topk-limit", lambda: graph("[k] y, i = TopK(x, k)", "float[N,4000] x", "float[N,3841] y, int64[N,3841] i",
         "int64[1] k = {3841}"), lambda: graph("[k] y, i = TopK(x, k)", "float[N,4000] x",
         "float[N,100] y, int64[N,100] i", "int64[1] k = {100}"), "k", "3841", rtx="refuses", ort="accepts"),
    Case("topk-unsorted", lambda: graph("[k] y, i = TopK<sorted=0>(x, k)", outputs="float[N,2] y, int64[N,2] i",
         constants="int64[1] k = {2}"), lambda: graph("[k] y, i = TopK(x, k)", outputs="float[N,2] y, int64[N,2] i",
         constants="int64[1] k = {2}"), "k", "sorted=0", rtx="accepts"),
    Case("build-time-input", lambda: _axes("ReduceSum", False), lambda: _axes("ReduceSum", True), "r", "axes 'k'",
         rtx="refuses", ort="accepts"),
    Case("attention-float32", lambda: _attention("float"), lambda: _attention("float16"), "a", "float",
         ("tensorrt-rtx",), rtx="refuses"),
    Case("attention-version", lambda: _attention("float16"), _relu, "a", "Attention", ("tensorrt-10",)),
    Case("grid-sample-rank", lambda: graph("[g] y = GridSample(x, g)", "float[1,1,4,4,4] x, float[1,2,2,2,3] g",
         "float[1,1,2,2,2] y", opset=20), lambda: graph("[g] y = GridSample(x, g)", "float[1,1,4,4] x, float[1,2,2,2] g",
         "float[1,1,2,2] y", opset=20), "g", "5 axes", rtx="accepts"),
    # shapes
    Case("unknown-input-rank", lambda: edited(_relu(), lambda m: m.graph.input[0].type.tensor_type.ClearField("shape")),
         _relu, "x", "no shape"),
    Case("unknown-output-rank", lambda: edited(graph("[r] y = Reshape(x, k)", f"{X}, int64[K] k"),
         lambda m: m.graph.output[0].type.tensor_type.ClearField("shape")), _relu, "y", "no shape"),
    Case("dynamic-axis", lambda: graph("[a] y = Relu(x)", "float[N,W] x", "float[N,W] y"), _relu, "x", "W", rtx="accepts",
         ort="accepts"),
    Case("data-dependent-shape", lambda: graph("[n] y = NonZero(x)", outputs="int64[2,M] y"), _relu, "n", "NonZero",
         ("tensorrt-10.3", "onnxruntime-cpu")),
    Case("control-flow", _if, _relu, "i", "If", rtx="accepts", ort="accepts"),
)  # fmt: skip


def _edited_opset(model: ModelProto) -> ModelProto:
    return edited(model, lambda m: setattr(m.opset_import[0], "version", 19))
