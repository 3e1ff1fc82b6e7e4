"""Where the time of a graph goes on OpenVINO: shares by kind of layer and number type, from its own counters."""

from __future__ import annotations

from collections import defaultdict

from posekit.runtime.backends.openvino import DEVICE, ON_A_SHARED_CPU, imported_openvino
from posekit.runtime.tensor import Feed

RUNS, WARM_UPS = 10, 3


def layer_shares(model: bytes, feed: Feed, threads: int) -> dict[str, float]:
    """ "Convolution I8" -> share of the time of all layers, the greatest first. Layers that took no time are left out.

    Compiled as posekit.runtime.backends.openvino does, with counters on. Raises BackendError without OpenVINO.
    """
    openvino = imported_openvino()
    core = openvino.Core()
    options = {**ON_A_SHARED_CPU, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    options |= {"INFERENCE_NUM_THREADS": threads, "PERF_COUNT": True}
    request = core.compile_model(core.read_model(model), DEVICE, options).create_infer_request()
    spent_us: dict[str, float] = defaultdict(float)
    for run in range(WARM_UPS + RUNS):
        request.infer(dict(feed))
        if run >= WARM_UPS:
            for layer in request.profiling_info:
                number_type = layer.exec_type.rpartition("_")[2].upper()
                spent_us[f"{layer.node_type} {number_type}"] += layer.real_time.total_seconds() * 1e6
    whole = sum(spent_us.values())
    ordered = sorted(spent_us.items(), key=lambda row: -row[1])
    return {name: spent / whole for name, spent in ordered if spent}
