"""Why a variant misses its gates: the node at which its numbers leave the others', named only where swapping proves it.

A node is to blame when the graph comes right with this node's output as in the sound file, and stays wrong with everything
that the node is given as in the sound file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto, helper, load_from_string
from onnx.shape_inference import InferenceError

from posekit.calibration.feeds import Arrays
from posekit.calibration.nodes import OP_TYPES
from posekit.export.lint.lint_file import lint_errors
from posekit.export.precision.half_graph import element_types
from posekit.export.verify.figures import relative_rms
from posekit.export.verify.watched import watched_session, with_tensors_as_inputs
from posekit.runtime.bundle import Bundle
from posekit.runtime.manifest import Precision
from posekit.runtime.tensor import Feed

LEAST_ERROR, LEAST_JUMP = 0.05, 3.0  # of a node that is looked at; healthy int8 grows by less from node to node
RESOLUTION = 0.01  # errors below that are all alike
CURED, KEPT = 0.3, 0.5  # share of the error that is left at most, or at least
MOST_SUSPECTS = 6  # that are tried, those that leap most
SHOWN = 3
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


@dataclass(frozen=True)
class NodeError:
    """One tensor that both graphs have. node: that makes it, or the output's name.  tensors: its names in both graphs.

    error: relative RMS of the difference.   given: the largest error of `sources`, the nearest such tensors that it is made
    from, of which it has the places.
    """

    node: str
    tensors: tuple[str, str]
    error: float
    given: float
    sources: tuple[int, ...]

    @property
    def leap(self) -> float:
        return self.error / max(self.given, RESOLUTION)


@dataclass(frozen=True, eq=False)
class _Pair:
    """A sound graph, a suspect one, and what both have in common."""

    sound: ModelProto
    suspect: ModelProto
    feeds: Sequence[Feed]


def causes_of(bundle: Bundle, graph: str, precision: Precision, feeds: Sequence[Feed]) -> tuple[str, ...]:
    """Sentences, for a variant that is known to be off; feeds: a few real crops of the graph.

    int8 is compared with the fp16 file that it was made of, where there is one, everything else with fp32.
    """
    variants = bundle.manifest.graphs[graph].variants
    base: Precision = "fp16" if precision == "int8" and "fp16" in variants else "fp32"
    sound, suspect = (load_from_string(bytes(bundle.read(variants[p]))) for p in (base, precision))
    try:
        return (cause(sound, suspect, feeds, base),)
    except InferenceError as error:
        return (f"the cause was not looked for: {str(error).splitlines()[0][:200]}",)


def lint_sentences(model: ModelProto) -> tuple[str, ...]:
    """What lint has against a file, in short."""
    errors = lint_errors(model)
    told = [f"lint: {f.rule} at {f.node or 'the graph'}: {f.what}, got {f.got}" for f in errors[:SHOWN]]
    more = [f"lint: {len(errors) - SHOWN} more errors, see posekit lint"] * (len(errors) > SHOWN)
    return (*told, *more)


def cause(sound: ModelProto, suspect: ModelProto, feeds: Sequence[Feed], base: str) -> str:
    """One sentence. base: what the sound file is called."""
    pair = _Pair(sound, suspect, feeds)
    nodes = node_errors(sound, suspect, feeds)
    off = _off(pair, {})
    if off < RESOLUTION:
        return (
            f"the file is not to blame: on ONNX Runtime its outputs are within {RESOLUTION:.0%} of those of {base}; "
            "look at the backend"
        )
    suspects = sorted((n for n in nodes if n.error >= LEAST_ERROR and n.leap >= LEAST_JUMP), key=lambda n: -n.leap)
    for each in sorted(suspects[:MOST_SUSPECTS], key=nodes.index):
        cured = _off(pair, _values(pair, [each]))
        kept = _off(pair, _values(pair, [nodes[k] for k in each.sources]))
        if cured <= CURED * off and kept >= KEPT * off:
            where = "" if each.node in _up_to_last_product(suspect) else " after the last product"
            return (
                f"the numbers leave those of {base} at {each.node}{where}: {each.error:.0%} off, what it is given "
                f"{each.given:.1%}; with its output as in {base} the graph is {cured:.1%} off instead of {off:.0%}"
            )
    tried = (
        f"{len(suspects[:MOST_SUSPECTS])} suspects were put right one by one, none cures it"
        if suspects
        else "no node stands out"
    )
    worst = max(nodes, key=lambda each: each.error, default=None)
    most = f"; the largest error is {worst.error:.0%} at {worst.node}" if worst else f"; no node has its name in {base}"
    return f"the cause was not found: the outputs are {off:.0%} off those of {base}, {tried}{most}"


def node_errors(sound: ModelProto, suspect: ModelProto, feeds: Sequence[Feed]) -> list[NodeError]:
    """Of every floating-point node that both graphs have under one name, and of every such output, in the order of the graph."""
    places = _shared(sound, suspect)
    if not places:
        return []
    sides = [watched_session(m, [t[i] for t in places.values()]) for i, m in enumerate((sound, suspect))]
    errors = np.zeros(len(places))
    for feed in feeds:
        a, b = (side.run(None, dict(feed)) for side in sides)
        errors = np.maximum(errors, [_difference(x, y) for x, y in zip(a, b, strict=True)])
    found: list[NodeError] = []
    for (node, tensors), sources, error in zip(places.items(), _sources(suspect, places), errors, strict=True):
        given = max((float(errors[k]) for k in sources), default=0.0)
        found.append(NodeError(node, tensors, float(error), given, sources))
    return found


def _shared(sound: ModelProto, suspect: ModelProto) -> dict[str, tuple[str, str]]:
    """Node -> its first output in both graphs, in the suspect's order; then outputs of the graph that no such node makes."""
    kinds = element_types(sound), element_types(suspect)
    own = {node.name: node for node in sound.graph.node if node.name}
    found = {
        node.name: (own[node.name].output[0], node.output[0])
        for node in suspect.graph.node
        if node.name in own and own[node.name].op_type == node.op_type
    }
    made = set(found.values())
    found |= {f"output {v.name}": (v.name, v.name) for v in suspect.graph.output if (v.name, v.name) not in made}
    return {
        n: t for n, t in found.items() if all(kind.get(name) in FLOATS for kind, name in zip(kinds, t, strict=True))
    }


def _sources(model: ModelProto, places: Mapping[str, tuple[str, str]]) -> Iterator[tuple[int, ...]]:
    """Per place, the nearest other places upstream of it."""
    at = {tensors[1]: k for k, tensors in enumerate(places.values())}
    makers = {name: node for node in model.graph.node for name in node.output}
    for _, tensor in places.values():
        seen: set[str] = set()
        found: set[int] = set()
        open_ = list(makers[tensor].input) if tensor in makers else []
        while open_:
            name = open_.pop()
            if name in seen:
                continue
            seen.add(name)
            if name in at:
                found.add(at[name])
            elif name in makers:
                open_ += makers[name].input
        yield tuple(sorted(found))


def _values(pair: _Pair, nodes: Sequence[NodeError]) -> dict[str, list[npt.NDArray[np.generic]]]:
    """Of these nodes in the sound graph, by the suspect's names, feed by feed."""
    if not nodes:
        return {}
    names = list(dict.fromkeys(node.tensors for node in nodes))
    session = watched_session(pair.sound, [a for a, _ in names])
    runs = [session.run(None, dict(feed)) for feed in pair.feeds]
    return {b: [run[k] for run in runs] for k, (_, b) in enumerate(names)}


def _off(pair: _Pair, put: Mapping[str, Sequence[npt.NDArray[np.generic]]]) -> float:
    """How far the suspect's outputs are off, with these tensors put in place: largest relative RMS of any output."""
    types = element_types(pair.suspect)
    outputs = [o.name for o in pair.sound.graph.output if types.get(o.name) in FLOATS]
    inner = [name for name in put if name not in outputs]
    suspect = watched_session(with_tensors_as_inputs(pair.suspect, inner, types), outputs)
    sound = watched_session(pair.sound, outputs)
    worst = 0.0
    for turn, feed in enumerate(pair.feeds):
        fed: Arrays = {name: put[name][turn].astype(helper.tensor_dtype_to_np_dtype(types[name])) for name in inner}
        right, found = sound.run(None, dict(feed)), suspect.run(None, dict(feed) | fed)
        for name, a, b in zip(outputs, right, found, strict=True):
            worst = max(worst, 0.0 if name in put else _difference(a, b))
    return worst


def _difference(a: npt.NDArray[np.generic], b: npt.NDArray[np.generic]) -> float:
    return relative_rms(a, b) if a.shape == b.shape else float("inf")


def _up_to_last_product(model: ModelProto) -> set[str]:
    names = [node.name for node in model.graph.node]
    last = max((k for k, node in enumerate(model.graph.node) if node.op_type in OP_TYPES), default=-1)
    return set(names[: last + 1])
