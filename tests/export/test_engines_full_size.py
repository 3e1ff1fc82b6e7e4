"""The published systems at full size, compiled by TensorRT-RTX for each GPU and held against their graphs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toy_engines import compiled_as_written, rtx_only

from posekit.export.onnx_from_network import onnx_from_network
from posekit.export.systems import SYSTEMS, system_named
from posekit.runtime.engines.options import RTX_CAPABILITIES

OPTIONS = {"anchor-free": {"classes": 3}}  # what has no published default


@rtx_only
@pytest.mark.slow
@pytest.mark.parametrize("name", SYSTEMS)
def test_every_graph_of_a_system_compiles_as_written(name: str, tmp_path: Path) -> None:
    """Random weights. The evidence of types is per capability: in one plan for several, one list speaks for all."""
    torch.manual_seed(0)
    system = system_named(name)
    for graph, source in system.graphs(system.network(**OPTIONS.get(name, {})).eval(), system.crop).items():
        path = tmp_path / f"{graph}.onnx"
        onnx_from_network(source, path)
        content = path.read_bytes()
        compiled_as_written(content, RTX_CAPABILITIES)
        for capability in RTX_CAPABILITIES:
            built = compiled_as_written(content, (capability,))
            assert any(kernel.multiplies for kernel in built.report.kernels)
