"""What was really compiled: kernels with their number types, read back from TensorRT, and held against the graph.

TensorRT-RTX lists its layers as text in its log; no GPU is needed. TensorRT lists them as JSON from the engine; 10.x
writes one "Format/Datatype" where 11.x writes "Format" and "Datatype". All three become the same Kernel.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from posekit.runtime.engines.api import LAYERS
from posekit.runtime.errors import EngineError

NumberType = Literal["Int8", "Half", "Float"]

# TensorRT's words for one type, old and new.
TYPES = {
    "int8": "Int8", "uint8": "UInt8", "half": "Half", "fp16": "Half", "float16": "Half", "float": "Float",
    "fp32": "Float", "float32": "Float", "bf16": "BFloat16", "bfloat16": "BFloat16", "fp8": "FP8", "int4": "Int4",
    "fp4": "FP4", "int32": "Int32", "int64": "Int64", "bool": "Bool",
}  # fmt: skip

# A kernel multiplies matrices when its kind says so ("correlation" and "deconv" are RTX's convolutions, the Cask ones
# TensorRT's), or when the name that the compiler gave a fusion does: __myl_FcAddMulMax, _gemm_mha_v2.
MATRIX_KINDS = re.compile(r"correlation|deconv|conv|gemm|matrix_?multiply|matmul|fullyconnected|mha", re.IGNORECASE)
MATRIX_FUSIONS = re.compile(r"^(__myl_\w*?(Fc|Conv|Mmul|Corr|Deco|Gemm)(?=[A-Z_])|_gemm_)")
# It may read Int8 and yet multiply floats: with a scale per row of the weights it becomes __myl_CastMulCastCastMulFc.
DEQUANTISES = re.compile(r"^__myl_\w*?Cast\w*?(Fc|Conv|Mmul|Corr|Deco|Gemm)(?=[A-Z_])")

SHOWN = 8  # offenders per message
LINE = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<kind>\w*), Inputs: \[(?P<inputs>.*?)\], Constants: \[(?P<constants>.*?)\], "
    r"Outputs: \[(?P<outputs>.*?)\], TacticName: (?P<tactic>.*?), StreamId: .*?Metadata: (?P<metadata>.*)$"
)
ONNX_LAYER = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
INSIDE = " | "  # between a node and what it is inside of


@dataclass(frozen=True)
class Kernel:
    """kind: TensorRT's word.  inputs, constants, outputs: number types, constants being weights, biases and scales.

    nodes: names of the ONNX nodes that it came from, requantisation included.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    constants: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[str, ...] = ()

    @property
    def multiplies(self) -> bool:
        """Whether this is a convolution or matrix product, alone or in a fusion."""
        return bool(MATRIX_KINDS.search(self.kind) or MATRIX_FUSIONS.search(self.name))

    @property
    def multiplied(self) -> str:
        """The type of the numbers that it multiplies: Int8 only if data and weights (or both factors) are."""
        int8_factors = self.inputs.count("Int8") + min(1, self.constants.count("Int8"))
        if int8_factors >= 2 and not DEQUANTISES.match(self.name):
            return "Int8"
        return next((t for t in (*self.inputs, *self.constants) if t in ("Half", "Float", "BFloat16")), "unknown")

    def __str__(self) -> str:
        return f"{self.kind} {self.name} ({', '.join((*self.inputs, *self.constants))} -> {', '.join(self.outputs)})"


def kernels_from_log(texts: Iterable[str]) -> tuple[Kernel, ...]:
    """From what TensorRT-RTX logs at the end of a build. EngineError if the list is not there or not understood."""
    lists = [text for text in texts if text.startswith(LAYERS)]
    lines = [line for text in lists for line in text.splitlines() if line.startswith("Name: ")]
    found = [LINE.match(line) for line in lines]
    if not lines or None in found:
        raise _unreadable("no list" if not lines else lines[found.index(None)][:120], "the list of layers in the log")
    return tuple(_kernel_of_line(match) for match in found if match is not None)


def _kernel_of_line(line: re.Match[str]) -> Kernel:
    inputs, constants, outputs = (
        tuple(type_named(word) for word in re.findall(r"Datatype: (\w+)", line[part]))
        for part in ("inputs", "constants", "outputs")
    )
    nodes = _nodes_named(line["metadata"])
    return Kernel(line["name"], line["kind"], inputs, constants, outputs, nodes)


def _nodes_named(metadata: str) -> tuple[str, ...]:
    """Of a node in a branch the name alone: TensorRT writes `mul | then_graph (then_branch) | if (If)`."""
    return tuple(name.partition(INSIDE)[0] for name in ONNX_LAYER.findall(metadata))


def kernels_of(module: Any, engine: Any) -> tuple[Kernel, ...]:
    """From TensorRT's engine inspector; the engine must have been built with detailed profiling, as posekit's are."""
    inspector = engine.create_engine_inspector()
    return kernels_from_inspector(inspector.get_engine_information(module.LayerInformationFormat.JSON))


def kernels_from_inspector(text: str) -> tuple[Kernel, ...]:
    """From the inspector's JSON, of 10.x or 11.x. EngineError if it is not that, or only names."""
    try:
        layers = json.loads(text)["Layers"]
    except (ValueError, KeyError, TypeError) as error:
        raise _unreadable(text[:120], "JSON with Layers") from error
    if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
        raise _unreadable("names alone", "an engine built with detailed profiling")
    return tuple(_kernel(layer) for layer in layers)


def _kernel(layer: Mapping[str, Any]) -> Kernel:
    weights = [layer[k]["Type"] for k in ("Weights", "Bias") if isinstance(layer.get(k), dict) and "Type" in layer[k]]
    constants = (*_types(layer.get("Constants")), *map(type_named, weights))
    nodes = _nodes_named(str(layer.get("Metadata", "")))
    return Kernel(
        str(layer.get("Name", "")),
        str(layer.get("LayerType", "")),
        _types(layer.get("Inputs")),
        constants,
        _types(layer.get("Outputs")),
        nodes,
    )


def _types(tensors: Any) -> tuple[str, ...]:
    keys = ("Datatype", "DataType", "Format/Datatype")
    return tuple(type_named(next((str(t[k]) for k in keys if k in t), "")) for t in tensors or ())


def type_named(text: str) -> str:
    """One name per type. 10.x hides it in a sentence: "Thirty-two wide channel vectorized row major Int8 format"."""
    words = [TYPES[word] for word in re.findall(r"\w+", text.lower()) if word in TYPES]
    return words[0] if words else text or "unknown"


def check_kernels(kernels: Iterable[Kernel], expected: Mapping[str, NumberType]) -> None:
    """Every node of `expected` (name of a Conv, Gemm or MatMul in the graph -> the type that it multiplies) is compiled
    in that type, and no other convolution or matrix product in Float. Several nodes may share a kernel.

    A node in Half or Float may vanish (folded, or too small for a kernel of its own); an Int8 one may not.
    Raises EngineError that names the nodes and what they became.
    """
    products = [kernel for kernel in kernels if kernel.multiplies]
    problems = []
    for node, wanted in expected.items():
        own = [kernel for kernel in products if node in kernel.nodes]
        problems += [f"{node}: {kernel} for {wanted}" for kernel in own if kernel.multiplied != wanted]
        if not own and wanted == "Int8":
            problems.append(f"{node}: no kernel for {wanted}")
    unknown = [k for k in products if not set(k.nodes) & set(expected) and k.multiplied == "Float"]
    problems += [f"{kernel}, of no node of the graph" for kernel in unknown]
    if problems:
        rest = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise EngineError(
            "compiled kernels",
            got="; ".join(problems[:SHOWN]) + rest,
            expected="every convolution and matrix product in the type that its graph says",
            remedy="Leave these nodes unquantised, or report the graph: TensorRT computes something else than the file.",
        )


def _unreadable(got: str, expected: str) -> EngineError:
    return EngineError(
        "list of compiled kernels",
        got=got,
        expected=expected,
        remedy="Report it with the version of TensorRT: its format is not known to posekit.",
    )
