"""A lane: parts of a frame are disjoint, the device's times are its own, and boxes are those that were asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_bundles import write_toy_bundle

from posekit.benchmarks.bench.lane import DeviceEvents, Lane
from posekit.runtime.bundle import Bundle
from posekit.runtime.detection import Detection, PoseEstimate, Reason
from posekit.runtime.estimator import PoseEstimator
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.manifest import DEFAULT_CROPS_PER_PASS
from posekit.runtime.sources import Frame

CAMERA = Intrinsics(np.array([[100.0, 0, 50], [0, 100, 50], [0, 0, 1]]), 101, 101)
FRAME = Frame(np.full((101, 101, 3), (200, 30, 30), np.uint8), CAMERA, "red.png", 0)
BOX = np.array([40.0, 40, 60, 60])
MOST = DEFAULT_CROPS_PER_PASS[-1]


class TimedSession:
    """A session whose device takes one millisecond to it, two to compute and a half from it, more from run to run."""

    def __init__(self, session: Any) -> None:
        self._session, self.runs = session, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, feed: Any) -> Any:
        self.runs += 1
        return self._session.run(feed)

    def stage_ms(self) -> dict[str, float]:
        return {"h2d": 1.0, "gpu": 2.0 * self.runs, "d2h": 0.5}


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Bundle]:
    with Bundle(write_toy_bundle(tmp_path / "toy.posekit")) as opened:
        yield opened


def lane(bundle: Bundle, path: str, boxes: list[Detection], timed: bool = False, **options: Any) -> Lane:
    def opened(stage: Any, around: Any) -> PoseEstimator:
        wrapped = (lambda name, session: around(name, TimedSession(session))) if timed else around
        return PoseEstimator(bundle, path=path, backend="onnxruntime", stage=stage, around=wrapped)

    return Lane(opened, lambda frame: boxes, **options)


@pytest.mark.parametrize(
    ("path", "stages"),
    [
        ("regressor", {"crop", "network", "decode"}),
        ("bank", {"crop", "network", "retrieve", "decode"}),
        ("epnp", {"crop", "network", "solve"}),
    ],
)
def test_stages_are_parts_of_the_total(bundle: Bundle, path: str, stages: set[str]) -> None:
    with lane(bundle, path, [Detection(1, 0.9, BOX)] * 3) as worker:
        passed = worker.run(FRAME)
    assert set(passed.host_ns) == stages
    assert 0 < sum(passed.host_ns.values()) <= passed.total_ns
    assert (passed.objects, passed.device_ns) == (3, {})


def test_boxes_of_objects_that_the_path_does_not_know_are_left_out(bundle: Bundle) -> None:
    with lane(bundle, "epnp", [Detection(2, 0.9, BOX), Detection(1, 0.9, BOX)]) as worker:
        assert worker.run(FRAME).objects == 1


@pytest.mark.parametrize(("given", "asked", "run"), [(2, 5, 5), (5, 2, 2), (1, 1, 1), (0, 4, 0)])
def test_a_sweep_uses_the_frames_own_boxes_over_and_over(bundle: Bundle, given: int, asked: int, run: int) -> None:
    boxes = [Detection(1, 0.9, BOX + i) for i in range(given)]
    seen: list[Any] = []
    with lane(bundle, "regressor", boxes, seen=lambda frame, outcomes: seen.append(outcomes)) as worker:
        assert worker.run(FRAME, objects=asked).objects == run
    (outcomes,) = seen
    assert [o.detection.box_xyxy_px[0] for o in outcomes] == [40 + i % max(given, 1) for i in range(run)]
    assert all(isinstance(outcome, PoseEstimate) for outcome in outcomes)


def test_boxes_without_a_pose_are_told_apart(bundle: Bundle) -> None:
    boxes = [Detection(1, 0.9, box) for box in (BOX, BOX + 500, BOX)]
    with lane(bundle, "regressor", boxes) as worker:
        passed = worker.run(FRAME)
    assert (passed.objects, passed.unposed) == (3, (Reason.BOX_OUTSIDE_IMAGE,))


def test_a_frame_that_lay_in_memory_has_waited(bundle: Bundle) -> None:
    with lane(bundle, "regressor", [Detection(1, 0.9, BOX)]) as worker:
        plain = worker.run(FRAME)
        arrived_ns = plain.start_ns
        passed = worker.run(FRAME, arrived_ns=arrived_ns)
    assert passed.start_ns == arrived_ns
    assert passed.host_ns["wait"] >= plain.total_ns
    assert sum(passed.host_ns.values()) <= passed.total_ns


def test_device_times_are_summed_over_the_runs_of_a_frame(bundle: Bundle) -> None:
    """Two passes of crops are two runs of the graph; the next frame begins anew."""
    with lane(bundle, "regressor", [Detection(1, 0.9, BOX)] * (MOST + 1), timed=True) as worker:
        first, second = worker.run(FRAME), worker.run(FRAME)
    assert first.device_ns == {"pose h2d": 2_000_000, "pose gpu": 6_000_000, "pose d2h": 1_000_000}
    assert second.device_ns["pose gpu"] == (6 + 8) * 1_000_000


def test_every_graph_has_device_times_of_its_own(bundle: Bundle) -> None:
    with lane(bundle, "bank", [Detection(1, 0.9, BOX)], timed=True) as worker:
        found = worker.run(FRAME).device_ns
    assert set(found) == {f"{graph} {stage}" for graph in ("embedder", "matcher") for stage in ("h2d", "gpu", "d2h")}


def test_a_graph_that_did_not_run_has_no_device_times(bundle: Bundle) -> None:
    with lane(bundle, "bank", [], timed=True) as worker:
        assert worker.run(FRAME).device_ns == {}


def test_a_session_without_events_is_left_as_it_is() -> None:
    session: Any = object()
    assert DeviceEvents().around("graph", session) is session
