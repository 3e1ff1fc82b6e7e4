"""Why a variant misses its gates: the node at which its numbers leave the others', named only where swapping proves it.

A node is to blame when most of the error goes with this node's output as in the sound file, and stays with everything that
the node is given as in the sound file. Errors of independent sources add in squares: what is asked of is the square.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

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

LEAST_LEAP = 3.0  # of a node's error over what it is given; healthy int8 grows by less from node to node
RESOLUTION = 0.005  # errors below that are all alike
SAME = 0.001  # of outputs as near as that no node is to blame; int8 is farther off where it is sound
CURED, KEPT = 0.5, 0.5  # share of the squared error that is left at most, or at least
MOST_SUSPECTS = 6  # that are tried, those that leap most
SHOWN = 3
Tensor = npt.NDArray[np.generic]
OF_PRECISION = ("Cast", "QuantizeLinear", "DequantizeLinear")
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


@dataclass(frozen=True)
class NodeError:
    """One tensor that both graphs have. node: that makes it, or the output's name.  tensors: its names in both graphs.

    error: relative RMS of the difference.   given: the largest error of `sources`, the nearest such tensors that it is made
    from, of which it has the places.   between: nodes on the way from there that only the suspect has, casts and Q/DQ aside.
    """

    node: str
    tensors: tuple[str, str]
    error: float
    given: float
    sources: tuple[int, ...]
    between: tuple[str, ...]

    @property
    def leap(self) -> float:
        return self.error / max(self.given, RESOLUTION)


@dataclass(frozen=True, eq=False)
class Pair:
    """A sound graph and a suspect one, and a few feeds for both."""

    sound: ModelProto
    suspect: ModelProto
    feeds: Sequence[Feed]

    @cached_property
    def kinds(self) -> tuple[Mapping[str, int], Mapping[str, int]]:
        """Tensor -> its type, in each."""
        return element_types(self.sound), element_types(self.suspect)

    @cached_property
    def outputs(self) -> list[str]:
        """Those of floating point that both have."""
        return [o.name for o in self.sound.graph.output if all(kinds.get(o.name) in FLOATS for kinds in self.kinds)]

    @cached_property
    def right(self) -> list[Sequence[Tensor]]:
        """The sound graph's outputs, feed by feed."""
        session = watched_session(self.sound, self.outputs)
        return [session.run(None, dict(feed)) for feed in self.feeds]

    def off(self, put: Mapping[str, Sequence[Tensor]]) -> float:
        """How far the suspect's outputs are off with these tensors put in place: of the worst output, RMS over the feeds."""
        kinds = self.kinds[1]
        inner = [name for name in put if name not in self.outputs]
        session = watched_session(with_tensors_as_inputs(self.suspect, inner, kinds), self.outputs)
        worst = []
        for turn, (feed, right) in enumerate(zip(self.feeds, self.right, strict=True)):
            fed: Arrays = {name: put[name][turn].astype(helper.tensor_dtype_to_np_dtype(kinds[name])) for name in inner}
            found = session.run(None, dict(feed) | fed)
            rows = zip(self.outputs, right, found, strict=True)
            worst.append(max(0.0 if name in put else _difference(a, b) for name, a, b in rows))
        return float(np.sqrt(np.mean(np.square(worst))))

    def values(self, nodes: Sequence[NodeError]) -> dict[str, list[Tensor]]:
        """What these nodes make in the sound graph, by the suspect's names, feed by feed."""
        if not nodes:
            return {}
        names = list(dict.fromkeys(node.tensors for node in nodes))
        session = watched_session(self.sound, [a for a, _ in names])
        runs = [session.run(None, dict(feed)) for feed in self.feeds]
        return {b: [run[k] for run in runs] for k, (_, b) in enumerate(names)}


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
    pair = Pair(sound, suspect, feeds)
    nodes = node_errors(pair)
    off = pair.off({})
    if off < SAME:
        return (
            f"no node is to blame: on ONNX Runtime the outputs of the file are within {SAME:.1%} of those of {base}; "
            "the difference is from the backend, or from after the graph"
        )
    suspects = sorted((n for n in nodes if n.leap >= LEAST_LEAP), key=lambda n: -n.leap)
    for each in sorted(suspects[:MOST_SUSPECTS], key=nodes.index):
        cured, kept = (pair.off(pair.values(put)) for put in ([each], [nodes[k] for k in each.sources]))
        if cured**2 <= CURED * off**2 and kept**2 >= KEPT * off**2:
            where = "" if each.node in _up_to_last_product(suspect) else " after the last product"
            own = f" (with {', '.join(each.between[:SHOWN])}, not in {base})" if each.between else ""
            return (
                f"the numbers leave those of {base} at {each.node}{own}{where}: {each.error:.0%} off, what it is given "
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


def node_errors(pair: Pair) -> list[NodeError]:
    """Of every floating-point node that both graphs have under one name, and of every such output, in the order of the graph."""
    places = _shared(pair)
    if not places:
        return []
    models = (pair.sound, pair.suspect)
    sides = [watched_session(m, [tensors[i] for tensors in places.values()]) for i, m in enumerate(models)]
    errors = np.zeros(len(places))
    for feed in pair.feeds:
        a, b = (side.run(None, dict(feed)) for side in sides)
        errors = np.maximum(errors, [_difference(x, y) for x, y in zip(a, b, strict=True)])
    found: list[NodeError] = []
    upstream = _upstream(pair.suspect, places)
    for (node, tensors), (sources, between), error in zip(places.items(), upstream, errors, strict=True):
        given = max((float(errors[k]) for k in sources), default=0.0)
        found.append(NodeError(node, tensors, float(error), given, sources, between))
    return found


def _shared(pair: Pair) -> dict[str, tuple[str, str]]:
    """Node -> its first output in both graphs, in the suspect's order; then outputs of the graph that no such node makes."""
    sound, suspect, kinds = pair.sound, pair.suspect, pair.kinds
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


def _upstream(
    model: ModelProto, places: Mapping[str, tuple[str, str]]
) -> Iterator[tuple[tuple[int, ...], tuple[str, ...]]]:
    """Per place, the nearest other places that it is made from, and the names of the nodes on the way."""
    at = {tensors[1]: k for k, tensors in enumerate(places.values())}
    makers = {name: node for node in model.graph.node for name in node.output}
    for _, tensor in places.values():
        seen: set[str] = set()
        found: set[int] = set()
        between: dict[str, None] = {}
        waiting = [tensor]
        while waiting:
            name = waiting.pop()
            maker = makers.get(name)
            if name in seen or maker is None:
                continue
            seen.add(name)
            if name != tensor and name in at:
                found.add(at[name])
                continue
            if maker.name and maker.name not in places and maker.op_type not in OF_PRECISION:
                between[maker.name] = None
            waiting += maker.input
        yield tuple(sorted(found)), tuple(between)


def _difference(a: Tensor, b: Tensor) -> float:
    return relative_rms(a, b) if a.shape == b.shape else float("inf")


def _up_to_last_product(model: ModelProto) -> set[str]:
    names = [node.name for node in model.graph.node]
    last = max((k for k, node in enumerate(model.graph.node) if node.op_type in OP_TYPES), default=-1)
    return set(names[: last + 1])
