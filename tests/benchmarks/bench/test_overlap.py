"""Several lanes: every frame once, networks in turn where asked, and an end without threads left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from toy_bundles import write_toy_bundle
from toy_lanes import toy_frame, toy_frames

from posekit.benchmarks.bench.lane import Lane, Passed
from posekit.benchmarks.bench.modes import Extent, sequential
from posekit.benchmarks.bench.overlap import in_lanes, offline, pipelined
from posekit.runtime.bundle import Bundle
from posekit.runtime.detection import Detection
from posekit.runtime.errors import BackendError, SourceError
from posekit.runtime.estimator import PoseEstimator
from posekit.runtime.sources import Frame, Frames

BOX = np.array([2.0, 2, 9, 9])


class Worker:
    """A lane that sleeps. errors: by frame."""

    def __init__(self, errors: dict[int, BaseException] | None = None) -> None:
        self.frames: list[int] = []
        self._errors = errors or {}

    def run(self, frame: Frame) -> Passed:
        if frame.index in self._errors:
            raise self._errors[frame.index]
        time.sleep(0.001)
        self.frames.append(frame.index)
        return Passed(0, 1, {"network": 1}, {}, 1)


def source(count: int) -> Callable[[], Frames]:
    return lambda: Frames((toy_frame(i) for i in range(count)), count)


def lanes(*workers: Worker) -> tuple[Lane, ...]:
    return cast(tuple[Lane, ...], workers)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_frame_goes_through_one_lane(count: int) -> None:
    workers = [Worker() for _ in range(count)]
    passes = list(pipelined(lanes(*workers), source(5), 23))
    done = [index for worker in workers for index in worker.frames]
    assert sorted(done) == sorted(n % 5 for n in range(23))
    assert len(passes) == 23
    assert all(passed.host_ns["capture"] > 0 for passed in passes)


def test_offline_frames_are_held_and_were_not_captured() -> None:
    passes = list(offline(lanes(Worker(), Worker()), toy_frames(3), Extent(10)))
    assert len(passes) == 10
    assert all("capture" not in passed.host_ns for passed in passes)


def test_a_lost_device_ends_it_after_what_was_done() -> None:
    error = BackendError("session", got="a lost device", expected="a device", remedy="Plug it in.")
    passes = pipelined(lanes(Worker({6: error}), Worker({6: error})), source(50), 50)
    with pytest.raises(BackendError, match="a lost device"):
        list(passes)


def test_a_source_that_breaks_ends_it() -> None:
    def broken() -> Iterator[Frame]:
        yield toy_frame(0)
        raise SourceError("video", got="2 frames", expected="9", remedy="Copy it again.")

    with pytest.raises(SourceError, match="video"):
        list(pipelined(lanes(Worker(), Worker()), lambda: Frames(broken(), 9), 9))


def test_who_stops_early_leaves_no_thread_behind() -> None:
    passes = in_lanes(lanes(Worker(), Worker()), ((toy_frame(i), None) for i in range(10_000)))
    next(passes)
    passes.close()  # type: ignore[attr-defined]


def test_sequential_captures_before_each_frame() -> None:
    worker = Worker()
    passes = list(sequential(lanes(worker)[0], source(2), 5))
    assert worker.frames == [0, 1, 0, 1, 0]
    assert all(list(passed.host_ns) == ["capture", "network"] for passed in passes)


class Narrow:
    """A session in which no two threads may be."""

    def __init__(self, session: Any, inside: list[str], most: list[int]) -> None:
        self._session, self._inside, self._most = session, inside, most

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, feed: Any) -> Any:
        self._inside.append("x")
        self._most.append(len(self._inside))
        time.sleep(0.002)
        outputs = self._session.run(feed)
        self._inside.pop()
        return outputs


def test_lanes_take_turns_with_their_networks_alone(tmp_path: Path) -> None:
    inside: list[str] = []
    most: list[int] = []
    turn = threading.Lock()
    with Bundle(write_toy_bundle(tmp_path / "toy.posekit")) as bundle:

        def opened(stage: Any, around: Any) -> PoseEstimator:
            return PoseEstimator(
                bundle, stage=stage, around=lambda name, session: cast(Any, Narrow(session, inside, most))
            )

        boxes = [Detection(1, 0.9, BOX)]
        with Lane(opened, lambda frame: boxes, turn) as one, Lane(opened, lambda frame: boxes, turn) as other:
            passes = list(pipelined((one, other), source(4), 24))
    assert len(passes) == 24
    assert set(most) == {1}
    assert all(passed.total_ns >= sum(passed.host_ns.values()) - passed.host_ns["capture"] for passed in passes)
