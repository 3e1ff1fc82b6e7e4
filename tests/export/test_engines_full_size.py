"""The published systems at full size, in three precisions, compiled by TensorRT-RTX and held against their graphs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import onnx
import pytest
import torch
from toy_engines import compiled_as_written, rtx_only

from posekit.calibration.qdq import quantised_nodes
from posekit.calibration.ranges import calibrate
from posekit.export.example_feed import example_feed
from posekit.export.networks.matcher import matcher_graph
from posekit.export.onnx_from_network import onnx_from_network
from posekit.export.precision.half import half_source
from posekit.export.precision.int8 import int8_content
from posekit.export.systems import SYSTEMS, GraphSource, system_named
from posekit.runtime.bank import Search
from posekit.runtime.engines.options import RTX_CAPABILITIES
from posekit.runtime.tensor import Feed

OPTIONS = {"anchor-free": {"classes": 3}}  # what has no published default
CROPS = 4  # that ranges are from: any do, where only number types are looked at


@rtx_only
@pytest.mark.slow
@pytest.mark.parametrize("name", SYSTEMS)
def test_every_graph_of_a_system_compiles_as_written(name: str, tmp_path: Path) -> None:
    """Random weights. The evidence of types is per capability: in one plan for several, one list speaks for all."""
    torch.manual_seed(0)
    system = system_named(name)
    for source in system.graphs(system.network(**OPTIONS.get(name, {})).eval(), system.crop).values():
        compiled_as_written(exported(source, tmp_path), RTX_CAPABILITIES)
        if source.trunk:
            half = exported(half_source(source), tmp_path)
            int8 = quantised(half, source)
            for capability in RTX_CAPABILITIES:
                assert multiplied(half, capability)["Half"] > 0
                # Products that share their input may become one kernel; that each is an Int8 one is checked by name.
                assert 0 < multiplied(int8, capability)["Int8"] <= len(quantised_nodes(onnx.load_from_string(int8)))


@rtx_only
@pytest.mark.parametrize("search", get_args(Search))
def test_both_matchers_compile_as_written(search: Search, tmp_path: Path) -> None:
    compiled_as_written(exported(matcher_graph(36, 16, 0.2, search), tmp_path), RTX_CAPABILITIES[:1])


def exported(source: GraphSource, folder: Path) -> bytes:
    onnx_from_network(source, folder / "graph.onnx")
    return (folder / "graph.onnx").read_bytes()


def quantised(half: bytes, source: GraphSource) -> bytes:
    def feeds() -> Iterator[Feed]:
        return (example_feed(source.inputs, {"batch": 1}, seed=seed) for seed in range(CROPS))

    model = onnx.load_from_string(half)
    return int8_content(model, calibrate(model, feeds))


def multiplied(graph: bytes, capability: int) -> dict[str, int]:
    """Kernels that multiply, by number type; each is of the type that its node has in the graph."""
    kernels = compiled_as_written(graph, (capability,)).report.kernels
    kinds = [kernel.multiplied for kernel in kernels if kernel.multiplies]
    return {kind: kinds.count(kind) for kind in ("Float", "Half", "Int8")}
