"""From nothing to the first poses: a fresh process that imports, opens, and runs one frame."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from posekit.benchmarks.bench.cold_start_child import MARK
from posekit.benchmarks.bench.result import ColdStart
from posekit.runtime import errors
from posekit.runtime.detection import Detection
from posekit.runtime.errors import BackendError, PosekitError
from posekit.runtime.manifest import Precision
from posekit.runtime.records import record_from
from posekit.runtime.sources import Frame

CHILD = "posekit.benchmarks.bench.cold_start_child"


@dataclass(frozen=True)
class Opening:
    """What is opened, as PoseEstimator takes it."""

    bundle: Path
    path: str | None = None
    backend: str = "auto"
    precision: Precision | None = None


def cold_start(
    opening: Opening, frame: Frame, boxes: Sequence[Detection] | None, say: Callable[[str], None]
) -> ColdStart:
    """In a process of its own. The files may be in the system's page cache; the process has nothing else.

    boxes: None for the bundle's detector. The total is from the start of the process to the poses, without the
    milliseconds in which the frame is handed over.
    Raises what opening and running raise there, BackendError with its last words where the process dies.
    """
    with tempfile.TemporaryDirectory(prefix="posekit-cold-start-") as name:
        request, frame_file, answer, said = (Path(name) / part for part in ("request", "frame.npz", "answer", "stderr"))
        wanted = {"bundle": str(opening.bundle), "path": opening.path, "backend": opening.backend}
        request.write_text(json.dumps(wanted | {"precision": opening.precision, "has_boxes": boxes is not None}))
        camera = frame.intrinsics
        np.savez(
            frame_file,
            image_rgb_u8=frame.image_rgb_u8,
            K=camera.K,
            distortion=np.array(camera.distortion),
            model=camera.model,
            object_ids=np.array([box.object_id for box in boxes or ()], np.int64),
            scores=np.array([box.score for box in boxes or ()]),
            boxes_xyxy_px=np.array([box.box_xyxy_px for box in boxes or ()]).reshape(-1, 4),
        )
        code = _run([str(path) for path in (request, frame_file, answer)], said, say)
        try:
            plain = json.loads(answer.read_bytes())
        except (OSError, ValueError) as error:
            lines = said.read_text(errors="replace").strip().splitlines() or [f"exit code {code}"]
            raise BackendError(
                "cold start",
                got=lines[-1][:500],
                expected="poses of one frame from a fresh process",
                remedy="posekit doctor BUNDLE says what runs here.",
            ) from error
    if "error" in plain:
        raise _error(**plain)
    return record_from(ColdStart, plain)


def _run(files: Sequence[str], said: Path, say: Callable[[str], None]) -> int:
    """The child's exit code. A stop of this process is one of the child's too."""
    command = [sys.executable, "-m", CHILD]
    with (
        open(said, "w") as stderr,
        subprocess.Popen(
            [*command, str(time.perf_counter_ns()), *files], stdout=subprocess.PIPE, stderr=stderr, text=True
        ) as process,
    ):
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith(MARK):
                    say(line.removeprefix(MARK).rstrip())
        except BaseException:
            process.terminate()
            raise
    return process.returncode


def _error(error: str, **clauses: Any) -> PosekitError:
    """As the child raised it."""
    kind: type[PosekitError] = getattr(errors, error, BackendError)
    return kind(clauses.pop("what"), **clauses)
