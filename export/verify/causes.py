"""Why a variant misses its gates: what lint says of the file, and the layer at which its numbers leave the others'."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto, ValueInfoProto, load_from_string

from posekit.calibration.nodes import OP_TYPES
from posekit.calibration.sessions import reference_session
from posekit.export.lint.lint_file import lint_errors
from posekit.runtime.bundle import Bundle
from posekit.runtime.manifest import Precision
from posekit.runtime.tensor import Feed

LEAST_ERROR, LEAST_JUMP = 0.2, 5.0  # of a layer that breaks a graph; healthy int8 grows by less from layer to layer
RESOLUTION = 0.01  # errors below that are all alike
SHOWN = 3


@dataclass(frozen=True)
class LayerError:
    """RMS of the difference of one layer's output, over the RMS of the output. before: the largest of earlier layers."""

    node: str
    error: float
    before: float


def causes_of(bundle: Bundle, graph: str, precision: Precision, feeds: Sequence[Feed]) -> tuple[str, ...]:
    """Sentences, for a variant that is known to be off; feeds: a few real crops of the graph.

    int8 is compared with the fp16 file that it was made of, where there is one, everything else with fp32.
    """
    variants = bundle.manifest.graphs[graph].variants
    base: Precision = "fp16" if precision == "int8" and "fp16" in variants else "fp32"
    exact, suspect = (load_from_string(bytes(bundle.read(variants[p]))) for p in (base, precision))
    errors = lint_errors(suspect)
    told = [f"lint: {f.rule} at {f.node or 'the graph'}: {f.what}, got {f.got}" for f in errors[:SHOWN]]
    if len(errors) > SHOWN:
        told.append(f"lint: {len(errors) - SHOWN} more errors, see posekit lint")
    return (*told, _sentence(layer_errors(exact, suspect, feeds), base))


def layer_errors(exact: ModelProto, suspect: ModelProto, feeds: Sequence[Feed]) -> list[LayerError]:
    """Of every convolution and matrix product that both graphs have under one name, in the order of the graph."""
    outputs = _products(exact)
    shared = {node: (name, other) for node, other in _products(suspect).items() if (name := outputs.get(node))}
    if not shared:
        return []
    sides = [_watched(model, [pair[i] for pair in shared.values()]) for i, model in enumerate((exact, suspect))]
    squares = np.zeros((2, len(shared)))
    for feed in feeds:
        for k, (a, b) in enumerate(zip(*(side.run(None, dict(feed))[-len(shared) :] for side in sides), strict=True)):
            squares[:, k] += _squares(a, b)
    relative = np.sqrt(squares[0] / np.maximum(squares[1], np.finfo(np.float64).tiny))
    before = np.maximum.accumulate(np.concatenate([[0.0], relative[:-1]]))
    return [LayerError(node, float(e), float(b)) for node, e, b in zip(shared, relative, before, strict=True)]


def _sentence(layers: Sequence[LayerError], base: str) -> str:
    if not layers:
        return f"no layer has the same name as in {base}: nothing can be compared"
    jumps = [each for each in layers if each.error >= max(LEAST_ERROR, LEAST_JUMP * max(each.before, RESOLUTION))]
    if jumps:
        first = jumps[0]
        return (
            f"the numbers leave those of {base} at layer {first.node}: {first.error:.0%} off, "
            f"{first.before:.1%} at most before it"
        )
    worst = max(layers, key=lambda each: each.error)
    return f"no single layer: errors grow evenly to {worst.error:.0%} at {worst.node}"


def _products(model: ModelProto) -> dict[str, str]:
    """Node name -> output, of what multiplies."""
    return {node.name: node.output[0] for node in model.graph.node if node.op_type in OP_TYPES and node.name}


def _watched(model: ModelProto, names: Sequence[str]) -> Any:
    """A session whose last outputs are these tensors."""
    watched = ModelProto()
    watched.CopyFrom(model)
    watched.graph.output.extend(ValueInfoProto(name=name) for name in _new(watched, names))
    session = reference_session(watched, optimised=False)
    assert [output.name for output in session.get_outputs()][-len(names) :] == list(names)
    return session


def _new(model: ModelProto, names: Sequence[str]) -> Iterator[str]:
    """All of them; a tensor that is an output already gives its place to the one at the end."""
    for i in reversed(range(len(model.graph.output))):
        if model.graph.output[i].name in names:
            del model.graph.output[i]
    return iter(names)


def _squares(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Of the difference, and of the first."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    if x.shape != y.shape or not np.isfinite(y).all():
        return np.inf, 1.0
    return float(((x - y) ** 2).sum()), float((x**2).sum())
