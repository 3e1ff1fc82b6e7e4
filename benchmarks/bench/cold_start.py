"""From nothing to the first poses: a fresh process that imports, opens, and runs one frame."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from posekit.benchmarks.bench.result import ColdStart
from posekit.runtime.detection import Detection
from posekit.runtime.errors import BackendError
from posekit.runtime.manifest import Precision
from posekit.runtime.records import RecordProblem, record_from
from posekit.runtime.sources import Frame

CHILD = "posekit.benchmarks.bench.cold_start_child"


@dataclass(frozen=True)
class Opening:
    """What is opened, as PoseEstimator takes it."""

    bundle: Path
    path: str | None = None
    backend: str = "auto"
    precision: Precision | None = None


def cold_start(opening: Opening, frame: Frame, boxes: Sequence[Detection] | None) -> ColdStart:
    """In a process of its own. The files may be in the system's page cache; the process has nothing else.

    boxes: None for the bundle's detector. The total is from the start of the process to the poses, without the
    milliseconds in which the frame is handed over. Raises BackendError with what the process said last.
    """
    with tempfile.TemporaryDirectory(prefix="posekit-cold-start-") as name:
        folder = Path(name)
        request, frame_file, answer = folder / "request.json", folder / "frame.npz", folder / "answer.json"
        wanted = {"bundle": str(opening.bundle), "path": opening.path, "backend": opening.backend}
        request.write_text(json.dumps(wanted | {"precision": opening.precision, "has_boxes": boxes is not None}))
        camera = frame.intrinsics
        np.savez(
            frame_file,
            image_rgb_u8=frame.image_rgb_u8,
            K=camera.K,
            distortion=np.array(camera.distortion),
            object_ids=np.array([box.object_id for box in boxes or ()], np.int64),
            scores=np.array([box.score for box in boxes or ()]),
            boxes_xyxy_px=np.array([box.box_xyxy_px for box in boxes or ()]).reshape(-1, 4),
        )
        files = [str(path) for path in (request, frame_file, answer)]
        done = subprocess.run(
            [sys.executable, "-m", CHILD, str(time.perf_counter_ns()), *files],
            capture_output=True,
            text=True,
            check=False,
        )
        try:
            return record_from(ColdStart, json.loads(answer.read_bytes()))
        except (OSError, ValueError, RecordProblem) as error:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise BackendError(
                "cold start",
                got=lines[-1][:500],
                expected="poses of one frame from a fresh process",
                remedy="posekit doctor BUNDLE says what runs here.",
            ) from error
