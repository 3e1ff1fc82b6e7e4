"""What runs in the fresh process of a cold start. Run with -m; only the standard library is imported before the clock is read.

The first argument is the parent's clock when it started this process: perf_counter is the system's, the same for both.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

NS_PER_MS = 1e6


def main(started_ns: int, request_file: str, frame_file: str, answer_file: str) -> None:
    """Import, open the bundle, create the sessions, run the frame; write a ColdStart as JSON."""
    from posekit.runtime.bundle import Bundle
    from posekit.runtime.estimator import PoseEstimator

    imported_ns = time.perf_counter_ns()
    request = json.loads(Path(request_file).read_bytes())
    image_rgb_u8, intrinsics, boxes = _frame(frame_file)
    origins: list[str] = []

    def noted(name: str, session: Any) -> Any:
        origins.append(f"{name} {origin}" if (origin := getattr(session, "engine_origin", "")) else "")
        return session

    begun_ns = time.perf_counter_ns()
    with Bundle(request["bundle"]) as bundle:
        opened_ns = time.perf_counter_ns()
        options = {key: request[key] for key in ("path", "backend", "precision")}
        with PoseEstimator(bundle, **options, around=noted) as estimator:
            ready_ns = time.perf_counter_ns()
            estimator.estimate(image_rgb_u8, intrinsics, boxes if request["has_boxes"] else None)
            done_ns = time.perf_counter_ns()
    engines = [origin for origin in origins if origin]
    spans_ns = {
        "import_ms": imported_ns - started_ns,
        "open_bundle_ms": opened_ns - begun_ns,
        "sessions_ms": ready_ns - opened_ns,
        "first_frame_ms": done_ns - ready_ns,
        "total_ms": imported_ns - started_ns + done_ns - begun_ns,
    }
    answer = {name: span_ns / NS_PER_MS for name, span_ns in spans_ns.items()}
    Path(answer_file).write_text(json.dumps(answer | {"engine": " ".join(engines) or "none"}))


def _frame(frame_file: str) -> tuple[Any, Any, Any]:
    import numpy as np

    from posekit.runtime.detection import Detection
    from posekit.runtime.intrinsics import Intrinsics

    with np.load(frame_file, allow_pickle=False) as arrays:
        image_rgb_u8 = arrays["image_rgb_u8"]
        height, width = image_rgb_u8.shape[:2]
        intrinsics = Intrinsics(arrays["K"], width, height, tuple(arrays["distortion"].tolist()))
        rows = zip(arrays["object_ids"], arrays["scores"], arrays["boxes_xyxy_px"], strict=True)
        return image_rgb_u8, intrinsics, [Detection(int(i), float(score), box) for i, score, box in rows]


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
