"""ONNX Runtime as the reference of what a graph means: CPU, and none of its rewrites that change numbers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from posekit.runtime.backends.ort import imported_onnxruntime

if TYPE_CHECKING:
    from onnx import ModelProto

LOG_FATAL_ONLY = 4  # every error is raised as well
UNSAFE_ON_QDQ = ("WeightBiasQuantization",)  # with float16 scales it computes a bias scale in float16: cosine 0.86


def reference_session(model: ModelProto | Path, *, optimised: bool = True) -> Any:
    """An InferenceSession that computes what Q/DQ nodes say, also with float16 scales.

    optimised: False where every tensor must come out as the graph has it.  Idle threads sleep: calibration shares its
    machine with whatever reads the frames.
    """
    onnxruntime = imported_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = LOG_FATAL_ONLY
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.x64quantprecision", "1")  # else int8 sums saturate where VNNI is absent
    options.enable_cpu_mem_arena = False  # it keeps what it once had: 1.9 GB instead of 1.3 for a ResNet-50
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(
        source, options, providers=["CPUExecutionProvider"], disabled_optimizers=list(UNSAFE_ON_QDQ)
    )
