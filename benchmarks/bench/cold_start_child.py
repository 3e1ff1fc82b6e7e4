"""What runs in the fresh process of a cold start. Run with -m; only the standard library is imported before the clock is read.

The first argument is the parent's clock when it started this process: perf_counter is the system's, the same for both.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

NS_PER_MS = 1e6
MARK = "posekit-cold-start\t"  # before what is said to the parent; libraries print too


def main(started_ns: int, request_file: str, frame_file: str, answer_file: str) -> None:
    """Import, open the bundle, create the sessions, run the frame; write a ColdStart, or the error, as JSON."""
    from posekit.runtime.bundle import Bundle
    from posekit.runtime.engines.progress import builds_watched
    from posekit.runtime.errors import PosekitError
    from posekit.runtime.estimator import PoseEstimator

    imported_ns = time.perf_counter_ns()
    request = json.loads(Path(request_file).read_bytes())
    image_rgb_u8, intrinsics, boxes = _frame(frame_file)
    origins: list[str] = []

    def noted(name: str, session: Any) -> Any:
        if origin := getattr(session, "engine_origin", ""):
            origins.append(f"{name}: {origin}")
        return session

    options = {key: request[key] for key in ("path", "backend", "precision")}
    begun_ns = time.perf_counter_ns()
    try:
        with Bundle(request["bundle"]) as bundle, builds_watched(_told()):
            opened_ns = time.perf_counter_ns()
            with PoseEstimator(bundle, **options, around=noted) as estimator:
                ready_ns = time.perf_counter_ns()
                estimator.estimate(image_rgb_u8, intrinsics, boxes if request["has_boxes"] else None)
                done_ns = time.perf_counter_ns()
    except PosekitError as error:
        clauses = {"what": error.what, "got": error.got, "expected": error.expected, "remedy": error.remedy}
        Path(answer_file).write_text(json.dumps({"error": type(error).__name__, **clauses}))
        return
    spans_ns = {
        "import_ms": imported_ns - started_ns,
        "open_bundle_ms": opened_ns - begun_ns,
        "sessions_ms": ready_ns - opened_ns,
        "first_frame_ms": done_ns - ready_ns,
        "total_ms": imported_ns - started_ns + done_ns - begun_ns,
    }
    answer = {name: span_ns / NS_PER_MS for name, span_ns in spans_ns.items()}
    Path(answer_file).write_text(json.dumps(answer | {"engine": " ".join(origins) or "none"}))


def _told() -> Any:
    """Every tenth of a build, to the parent: on a device it takes minutes."""
    told = {"tenths": 0}

    def tell(build: Any) -> None:
        if (tenths := int(build.fraction * 10)) != told["tenths"]:
            told["tenths"] = tenths
            print(f"{MARK}cold start: building an engine, {build.fraction:.0%}", flush=True)

    return tell


def _frame(frame_file: str) -> tuple[Any, Any, Any]:
    import numpy as np

    from posekit.runtime.detection import Detection
    from posekit.runtime.intrinsics import Intrinsics

    with np.load(frame_file, allow_pickle=False) as arrays:
        image_rgb_u8 = arrays["image_rgb_u8"]
        height, width = image_rgb_u8.shape[:2]
        intrinsics = Intrinsics(arrays["K"], width, height, tuple(arrays["distortion"].tolist()), str(arrays["model"]))
        rows = zip(arrays["object_ids"], arrays["scores"], arrays["boxes_xyxy_px"], strict=True)
        return image_rgb_u8, intrinsics, [Detection(int(i), float(score), box) for i, score, box in rows]


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
