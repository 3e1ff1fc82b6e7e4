"""A float16 file in true float16 arithmetic, which no CPU computes: backends there widen to float32 and hide what overflows.

The file is rewritten: every float16 tensor becomes float32, and behind every node that made one the values are rounded to
float16 and back, beyond 65504 to infinity. Sums inside one operator stay float32, as in the units of a GPU. ONNX Runtime
runs the rewritten graph as it is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from posekit.calibration.feeds import Arrays
from posekit.calibration.sessions import reference_session
from posekit.export.precision.half_graph import FLOAT16, FLOAT32, element_types
from posekit.export.verify.box_figures import RANKED
from posekit.export.verify.figures import relative_rms
from posekit.export.verify.watched import watched_session

LEAST_ERROR = 0.2  # of a tensor in float16 that is worth a word


@dataclass(frozen=True)
class HalfArithmetic:
    """What float16 arithmetic does to a file. crops: that it ran on.  worst: relative RMS of any output of any crop.

    first: the first node whose values overflow or are lost, and how, "" where none are.
    """

    crops: int
    worst: float
    first: str


def has_halves(model: ModelProto) -> bool:
    """Whether anything in the file is float16."""
    constants = any(tensor.data_type == FLOAT16 for tensor in model.graph.initializer)
    return constants or any(_cast_to(node) == FLOAT16 for node in model.graph.node)


def half_arithmetic(model: ModelProto, feeds: Sequence[Arrays]) -> HalfArithmetic:
    """Run a file of float16 and float32 on a few feeds, in true float16 and, held against that, with float32 everywhere."""
    sides = [in_float32(model, rounded=rounded) for rounded in (False, True)]
    sessions = [reference_session(side, optimised=False) for side in sides]
    names = [output.name for output in model.graph.output]
    floats = [
        k for k, output in enumerate(model.graph.output) if output.type.tensor_type.elem_type in (FLOAT16, FLOAT32)
    ]
    if set(names) >= RANKED:
        floats = [k for k in floats if names[k] not in RANKED]
    worst = []
    for feed in feeds:
        with np.errstate(over="ignore", invalid="ignore"):
            exact, half = (session.run(None, dict(feed)) for session in sessions)
        worst.append(max((relative_rms(exact[k], half[k]) for k in floats), default=0.0))
    first = next(_lost(sides, model, feeds[int(np.argmax(worst))]), "") if max(worst) >= LEAST_ERROR else ""
    return HalfArithmetic(len(feeds), max(worst), first)


def in_float32(model: ModelProto, *, rounded: bool) -> ModelProto:
    """The same graph without float16. rounded: values that were float16 still have no more digits and no more range."""
    types, wide = element_types(model), ModelProto()
    wide.CopyFrom(model)
    del wide.graph.value_info[:], wide.graph.node[:]
    for tensor in wide.graph.initializer:
        _widen(tensor)
    for value in (*wide.graph.input, *wide.graph.output):
        if value.type.tensor_type.elem_type == FLOAT16:
            value.type.tensor_type.elem_type = FLOAT32
    for node in model.graph.node:
        wide.graph.node.extend(_wide_nodes(node, types, rounded))
    return wide


def _wide_nodes(node: NodeProto, types: dict[str, int], rounded: bool) -> Iterator[NodeProto]:
    own = NodeProto()
    own.CopyFrom(node)
    for attribute in own.attribute:
        if attribute.type == AttributeProto.TENSOR:
            _widen(attribute.t)
    if _cast_to(own) == FLOAT16:
        next(a for a in own.attribute if a.name == "to").i = FLOAT32
    halves = [k for k, name in enumerate(own.output) if name and types.get(name) == FLOAT16] if rounded else []
    for k in halves:
        own.output[k] = f"{own.output[k]}/exact"
    yield own
    for k in halves:
        name = node.output[k]
        yield helper.make_node("Cast", [f"{name}/exact"], [f"{name}/half"], to=FLOAT16)
        yield helper.make_node("Cast", [f"{name}/half"], [name], to=FLOAT32)


def _lost(sides: Sequence[ModelProto], model: ModelProto, feed: Arrays) -> Iterator[str]:
    """Sentences on the first node that overflows, or whose values are far off while what it was given is not."""
    types = element_types(model)
    made = [(node, name) for node in model.graph.node for name in node.output if types.get(name) in (FLOAT16, FLOAT32)]
    names = [name for _, name in made]
    exact, half = (dict(zip(names, watched_session(side, names).run(names, dict(feed)), strict=True)) for side in sides)
    errors = {name: relative_rms(exact[name], half[name]) for name in names}
    for node, name in made:
        given = max((errors.get(source, 0.0) for source in node.input), default=0.0)
        if not np.isfinite(half[name]).all() and np.isfinite(exact[name]).all():
            yield f"{node.name or name} overflows float16: values up to {np.abs(exact[name]).max():.3g} where 65504 fits"
        elif errors[name] >= LEAST_ERROR and given < LEAST_ERROR / 2:
            yield f"{node.name or name} is {errors[name]:.0%} off in float16, what it is given {given:.1%}"


def _widen(tensor: TensorProto) -> None:
    if tensor.data_type == FLOAT16:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))


def _cast_to(node: NodeProto) -> int | None:
    return next((a.i for a in node.attribute if a.name == "to"), None) if node.op_type == "Cast" else None
