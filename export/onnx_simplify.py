"""Fewer nodes for the same numbers: onnxsim, believed only after its graph gave the same outputs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import ModelProto

from posekit.export.example_feed import example_feed
from posekit.runtime.backends.ort import OrtSession
from posekit.runtime.errors import BackendError, ExportError
from posekit.runtime.tensor import TensorSpec

SIZES = {"batch": 3, "views": 211}
TOLERANCE = 1e-5  # of an output's RMS: nothing but the order of sums may change


def simplified(
    model: ModelProto, inputs: tuple[TensorSpec, ...], check: Callable[[ModelProto], None]
) -> tuple[ModelProto, str]:
    """(the graph to use, what was done and why): the simpler graph, or the original where that is not equal.

    check: raises ExportError for a graph that breaks the contract; it also cleans the graph in place.
    """
    try:
        import onnxsim
    except ImportError:
        return model, "not simplified: onnxsim is not installed"
    try:
        simpler, _ = onnxsim.simplify(model, perform_optimization=False)
        check(simpler)
        difference = _largest_difference(model, simpler, inputs)
    except (ExportError, BackendError, RuntimeError, ValueError) as error:
        return model, f"not simplified: {type(error).__name__}: {str(error)[:200]}"
    if not difference <= TOLERANCE:
        return model, f"not simplified: outputs would differ by {difference:.2g} of their RMS"
    before, after = len(model.graph.node), len(simpler.graph.node)
    if after >= before:
        return model, f"not simplified: onnxsim finds nothing to remove from {before} nodes"
    return simpler, f"onnxsim: {before} to {after} nodes"


def _largest_difference(model: ModelProto, simpler: ModelProto, inputs: tuple[TensorSpec, ...]) -> float:
    feed = example_feed(inputs, SIZES)
    before, after = (OrtSession(graph.SerializeToString()).run(feed) for graph in (model, simpler))
    worst = 0.0
    for name, array in before.items():
        exact = array.astype(np.float64)
        scale = float(np.sqrt(np.mean(exact**2))) or 1.0
        worst = max(worst, float(np.abs(after[name].astype(np.float64) - exact).max(initial=0.0)) / scale)
    return worst
