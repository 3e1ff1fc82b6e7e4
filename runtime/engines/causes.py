"""What TensorRT's own words mean, and what to do about them. Adding one is adding a row."""

from __future__ import annotations

import re

# Looked for in this order, in everything that it said.
CAUSES: tuple[tuple[str, str], ...] = (
    (r"BuildCanceled", "Start the build again."),
    (
        r"for Turing \(SM75\)",
        "Leave 75 out of the compute capabilities: TensorRT-RTX has no fp32 matrix products for Turing.",
    ),
    (
        r"cudaError 35|driver version is insufficient|OLD_CUDA_DRIVER",
        (
            "There is no NVIDIA driver, or it is older than this runtime: install or update it, or take backend openvino or "
            "onnxruntime."
        ),
    ),
    (
        r"cudaError 100\b|[Nn]o CUDA-capable device|CUDA initialization failure|CUDA_ERROR",
        "No GPU can be used: check nvidia-smi (Jetson: reboot), or take backend openvino or onnxruntime.",
    ),
    (
        r"incompatible device|expecting compute|UNSUPPORTED_CC|[Pp]latform specific tag|no kernel image",
        "It was built for another GPU: build it again here; the graph is in the bundle.",
    ),
    (
        r"magic|serialization version|expecting library version|VERSION_MISMATCH|OLD_CUDA_RUNTIME|Version tag",
        "It was built by another TensorRT: build it again here; the graph is in the bundle.",
    ),
    (
        r"header\.size == blobSize|MALFORMED_ENGINE|cursor < blobSize",
        "The plan is damaged: build it again; the graph is in the bundle.",
    ),
    (
        r"[Oo]ut of memory|OutOfMemory|INSUFFICIENT_GPU_MEMORY|cudaError 2\b|memory allocation",
        "Close other programs, lower workspace_bytes, or lower the profile's largest batch.",
    ),
    (
        r"no implementation|no runners|Could not find any implementation|composite_op|not supported",
        "`posekit lint` names the rule and the way round it; or run this graph on another backend.",
    ),
)
OTHERWISE = "Run `posekit doctor`; the messages are TensorRT's own."


def remedy_for(messages: str) -> str:
    """What to do, for what was said."""
    return next((remedy for pattern, remedy in CAUSES if re.search(pattern, messages)), OTHERWISE)
