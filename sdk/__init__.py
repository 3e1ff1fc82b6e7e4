"""posekit: trained 6D pose models to measured, verified bundles, and bundles to poses on the edge.

This page is the runtime's public face; everything is imported when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from posekit.runtime.bundle import Bundle as Bundle
    from posekit.runtime.camera_file import intrinsics_from_file as intrinsics_from_file
    from posekit.runtime.camera_file import intrinsics_from_json as intrinsics_from_json
    from posekit.runtime.crop import rgb_from_bgr as rgb_from_bgr
    from posekit.runtime.detection import Detection as Detection
    from posekit.runtime.detection import PoseEstimate as PoseEstimate
    from posekit.runtime.detection import Reason as Reason
    from posekit.runtime.detection import Unposed as Unposed
    from posekit.runtime.errors import PosekitError as PosekitError
    from posekit.runtime.estimator import PoseEstimator as PoseEstimator
    from posekit.runtime.intrinsics import Intrinsics as Intrinsics
    from posekit.runtime.pose import Pose as Pose
    from posekit.runtime.profiler import StageProfiler as StageProfiler
    from posekit.runtime.sources import frames_from as frames_from

# name -> the module that has it
_PUBLIC = {
    "Bundle": "bundle",
    "Detection": "detection",
    "Intrinsics": "intrinsics",
    "Pose": "pose",
    "PoseEstimate": "detection",
    "PoseEstimator": "estimator",
    "PosekitError": "errors",
    "Reason": "detection",
    "StageProfiler": "profiler",
    "Unposed": "detection",
    "frames_from": "sources",
    "intrinsics_from_file": "camera_file",
    "intrinsics_from_json": "camera_file",
    "rgb_from_bgr": "crop",
}
__all__ = ["__version__", *_PUBLIC]  # noqa: PLE0604


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'posekit' has no attribute {name!r}")
    return getattr(import_module(f"posekit.runtime.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
