"""The poses of a bundle in frames, on every path, as one Python gives them: what `machines.py` runs in each environment.

    python machine_poses.py BUNDLE FRAMES BOXES EVERY BACKEND OUT

BOXES: "detector", or as for `posekit run --boxes`. EVERY: 20 takes each twentieth frame. Needs the runtime alone.
"""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from posekit.runtime.atomic import write_whole
from posekit.runtime.boxes import boxes_from
from posekit.runtime.bundle import Bundle
from posekit.runtime.detection import Detection
from posekit.runtime.estimator import PoseEstimator
from posekit.runtime.records import json_from_record
from posekit.runtime.sources import Frame, frames_from

DETECTOR = "detector"


@dataclass(frozen=True)
class FoundPose:
    """One estimate. R: (9,) by rows, and t_m: (3,), of cam_from_obj."""

    path: str
    frame: str
    object_id: int
    score: float
    box_xyxy_px: tuple[float, ...]
    R: tuple[float, ...]
    t_m: tuple[float, ...]


@dataclass(frozen=True)
class FoundPoses:
    """What one environment found. ran_on: path -> what its graphs really ran on."""

    machine: str
    versions: dict[str, str]
    ran_on: dict[str, str]
    poses: tuple[FoundPose, ...]


def found_poses(bundle_path: Path, frames: str, boxes: str, every: int, backend: str) -> FoundPoses:
    """Raises what the bundle, the boxes or the frames are refused for."""
    chosen = list(islice(frames_from(frames), 0, None, every))
    given = None if boxes == DETECTOR else boxes_from(boxes)
    poses: list[FoundPose] = []
    ran_on: dict[str, str] = {}
    with Bundle(bundle_path) as bundle:
        for path in bundle.manifest.paths:
            with PoseEstimator(bundle, path=path, backend=backend, precision="fp32") as estimator:
                ran_on[path] = estimator.backends[0]
                for frame in chosen:
                    known = None
                    if given is not None:
                        known = [box for box in given(frame) if box.object_id in estimator.object_ids]
                    poses += _poses(path, frame, estimator, known)
    versions = {"Python": platform.python_version(), "NumPy": np.__version__, "OpenCV": cv2.__version__}
    return FoundPoses(platform.machine(), versions | {backend: version(backend)}, ran_on, tuple(poses))


def _poses(path: str, frame: Frame, estimator: PoseEstimator, boxes: list[Detection] | None) -> list[FoundPose]:
    return [
        FoundPose(
            path,
            frame.name,
            one.object_id,
            one.score,
            tuple(one.detection.box_xyxy_px.tolist()),
            tuple(one.cam_from_obj.R.ravel().tolist()),
            tuple(one.cam_from_obj.t_m.tolist()),
        )
        for one in estimator.estimate(frame.image_rgb_u8, frame.intrinsics, boxes)
    ]


if __name__ == "__main__":
    bundle_file, source, boxes_source, step, wanted, out = sys.argv[1:]
    found = found_poses(Path(bundle_file), source, boxes_source, int(step), wanted)
    write_whole(Path(out), json_from_record(found).encode())
