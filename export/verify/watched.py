"""Graphs whose inner tensors can be looked at, or put in place from outside."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from onnx import ModelProto, ValueInfoProto, helper

from posekit.calibration.sessions import reference_session


def watched_session(model: ModelProto, names: Sequence[str]) -> Any:
    """A session of the graph as it is written, whose outputs are these tensors alone, in this order."""
    watched = ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    watched.graph.output.extend(ValueInfoProto(name=name) for name in names)
    return reference_session(watched, optimised=False)


def with_tensors_as_inputs(model: ModelProto, names: Collection[str], types: Mapping[str, int]) -> ModelProto:
    """A copy in which these tensors, which are no outputs of the graph, are not computed but fed. types: of the tensors."""
    fed = ModelProto()
    fed.CopyFrom(model)
    for node in fed.graph.node:
        for k, name in enumerate(node.output):
            if name in names:
                node.output[k] = f"{name}/unused"
    fed.graph.input.extend(helper.make_tensor_value_info(name, types[name], None) for name in names)
    return fed
