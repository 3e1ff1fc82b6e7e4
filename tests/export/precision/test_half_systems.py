"""Every system has a float16 variant of about half the size, near its float32 one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from posekit.export.example_feed import example_feed
from posekit.export.onnx_from_network import onnx_from_network
from posekit.export.parity import network_outputs
from posekit.export.precision.half import half_source
from posekit.export.systems import SYSTEMS, system_named
from posekit.runtime.backends.ort import OrtSession
from posekit.runtime.crop import CropPreset

torch.set_num_threads(1)
GRAPH_BYTES = 100_000  # of nodes and tables, whatever the weights
SMALL: dict[str, dict[str, Any]] = {
    "tram3d": {"image_px": 64, "dim": 48, "depth": 2, "heads": 2},
    "template-pose": {"backbone": "nano"},
    "gdr-net": {
        "backbone": "nano",
        "crop_size_px": 64,
        "head_widths": (16, 16),
        "pnp_width": 16,
        "pnp_hidden": (32, 16),
    },
    "surfemb-regressor": {
        "backbone": "nano",
        "crop_size_px": 64,
        "decoder_widths": (16,) * 5,
        "pnp_widths": (8,) * 5,
        "pnp_hidden": (16, 8),
        "z_hidden": 4,
    },
    "anchor-free": {"classes": 2, "input_wh_px": (64, 64)},
}
FULL: dict[str, dict[str, Any]] = {name: {"classes": 3} if name == "anchor-free" else {} for name in SYSTEMS}


def awake(network: nn.Module) -> nn.Module:
    """Norms with statistics of their own, and output layers that say something."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert module.running_var is not None
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    for name, parameter in network.named_parameters():
        if name.startswith("pnp.") and parameter.ndim == 2 and parameter.shape[0] <= 6:
            nn.init.normal_(parameter, std=0.05)
        if name.startswith("pnp.") and parameter.shape in ((3,), (1,)):
            nn.init.ones_(parameter)  # a depth that is not zero
    return network.eval()


def compare(name: str, options: dict[str, Any], crop: CropPreset, folder: Path) -> None:
    torch.manual_seed(1)
    system = system_named(name)
    for graph, source in system.graphs(awake(system.network(**options)), crop).items():
        if not source.trunk:
            continue
        half = onnx_from_network(half_source(source), folder / "fp16.onnx", simplify=False)
        assert half.half is not None
        assert half.half.trunk == source.trunk
        assert half.inputs == source.inputs
        assert half.size < 0.6 * sum(4 * tensor.numel() for tensor in source.module.parameters()) + GRAPH_BYTES
        feed = example_feed(source.inputs, {"batch": 2}, seed=3)
        wanted = network_outputs(source, source.module, feed)
        got = OrtSession(folder / "fp16.onnx", threads=1).run(feed)
        for output, exact in wanted.items():
            if output in ("boxes", "labels"):
                continue  # in the order of scores that random weights leave all alike
            difference = np.abs(got[output].astype(np.float64) - exact.astype(np.float64)).max()
            assert difference <= 2e-2 * max(1e-3, float(np.sqrt(np.mean(exact.astype(np.float64) ** 2)))), (
                graph,
                output,
            )


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_small_network_of_every_system(name: str, tmp_path: Path) -> None:
    compare(name, SMALL[name], CropPreset("square", 64), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_at_full_size(name: str, tmp_path: Path) -> None:
    compare(name, FULL[name], system_named(name).crop, tmp_path)
