"""A lane takes one frame after the other from pixels to poses, and says how long each stage took on the host and the device."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from itertools import cycle, islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, cast

from posekit.benchmarks.bench.statistics import NS_PER_MS
from posekit.runtime.boxes import Boxes
from posekit.runtime.detection import PoseEstimate, Reason, Unposed
from posekit.runtime.errors import BackendError
from posekit.runtime.profiler import NETWORK_STAGES, Stage, StageProfiler
from posekit.runtime.session import ForwardingSession, Session
from posekit.runtime.sources import Frame

if TYPE_CHECKING:
    from typing_extensions import Self

    from posekit.runtime.estimator import Around, PoseEstimator
    from posekit.runtime.tensor import Feed

CAPTURE, WAIT = "capture", "wait"  # before the frame's pixels are in memory; while they lie there
Seen = Callable[[Frame, list[PoseEstimate | Unposed]], None]


@dataclass(frozen=True, eq=False)
class Passed:
    """One frame. start_ns: of the host's clock.  total_ns: from its pixels in memory to its poses.

    host_ns: disjoint parts of the total, by the host's clock; `capture` alone comes before it.  device_ns: by the
    device's events, "GRAPH h2d", "GRAPH gpu" and "GRAPH d2h".  objects: boxes that went through the pose path.
    unposed: why those have no pose that have none.
    """

    start_ns: int
    total_ns: int
    host_ns: dict[str, int]
    device_ns: dict[str, int]
    objects: int
    unposed: tuple[Reason, ...] = ()


OpenEstimator = Callable[[Stage, "Around"], "PoseEstimator"]


class Lane:
    """One estimator. Not for several threads at once: threads have a lane each.

    boxes: None for the bundle's detector.   network: held while a network runs, by whichever lane runs one; what it is
    waited for is in the total and in no stage.   seen: gets what became of each frame's boxes, after its time was taken.
    """

    def __init__(
        self,
        open_estimator: OpenEstimator,
        boxes: Boxes | None,
        network: AbstractContextManager[Any] | None = None,
        seen: Seen | None = None,
    ) -> None:
        self._boxes, self._network, self._seen = boxes, network, seen
        self._profiler, self._events = StageProfiler(), DeviceEvents()
        self.estimator = open_estimator(self._in_turn if network else self._profiler.stage, self._events.around)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        with suppress(BackendError):  # a lost device takes nothing back; what was measured is not lost with it
            self.estimator.close()

    def run(self, frame: Frame, objects: int | None = None, arrived_ns: int | None = None) -> Passed:
        """From pixels to poses. Raises what the estimator raises.

        objects: so many boxes, the frame's own over and over; a frame without any has none all the same.
        arrived_ns: when its pixels were there, if before now: the total is from then, and the time until now is `wait`.
        """
        self._profiler.samples_ns.clear()
        known = self.estimator.object_ids
        given = None if self._boxes is None else [box for box in self._boxes(frame) if box.object_id in known]
        start_ns = time.perf_counter_ns()
        boxes = self.estimator.detect(frame.image_rgb_u8, frame.intrinsics) if given is None else given
        if objects is not None:
            boxes = list(islice(cycle(boxes), objects))
        outcomes = self.estimator.outcomes(frame.image_rgb_u8, frame.intrinsics, boxes)
        end_ns = time.perf_counter_ns()
        host_ns = {name: sum(ns) for name, ns in self._profiler.samples_ns.items()}
        if arrived_ns is not None:
            host_ns[WAIT] = start_ns - arrived_ns
            start_ns = arrived_ns
        if self._seen:
            self._seen(frame, outcomes)
        unposed = tuple(outcome.reason for outcome in outcomes if isinstance(outcome, Unposed))
        return Passed(start_ns, end_ns - start_ns, host_ns, self._events.taken(), len(boxes), unposed)

    @contextmanager
    def _in_turn(self, name: str) -> Iterator[None]:
        turn = self._network if self._network and name in NETWORK_STAGES else nullcontext()
        with turn, self._profiler.stage(name):
            yield


class EventTimed(Session, Protocol):
    """A session that takes its times on the device."""

    def stage_ms(self) -> dict[str, float]: ...


class DeviceEvents:
    """Sums of the device's times over the runs of a frame; `around` is given to the estimator."""

    def __init__(self) -> None:
        self._watched: list[_Watched] = []

    def around(self, name: str, session: Session) -> Session:
        if not hasattr(session, "stage_ms"):
            return session
        self._watched.append(_Watched(name, cast(EventTimed, session)))
        return self._watched[-1]

    def taken(self) -> dict[str, int]:
        """Since the last call: "GRAPH STAGE" -> nanoseconds."""
        found: dict[str, int] = {}
        for watched in self._watched:
            found |= watched.taken()
        return found


class _Watched(ForwardingSession):
    """A session whose events are read after the frame, or, where it runs again in the frame, just before that.

    Reading them costs some microseconds of host time, which a frame with one run of each graph is thus not charged with.
    """

    def __init__(self, name: str, session: EventTimed) -> None:
        super().__init__(session)
        self._name, self._timed = name, session
        self._ran, self._ns = False, dict[str, int]()

    def run(self, feed: Feed) -> dict[str, Any]:
        self._read()
        outputs = self.session.run(feed)
        self._ran = True
        return outputs

    def taken(self) -> dict[str, int]:
        self._read()
        found, self._ns = self._ns, {}
        return found

    def _read(self) -> None:
        if self._ran:
            for stage, ms in self._timed.stage_ms().items():
                key = f"{self._name} {stage}"
                self._ns[key] = self._ns.get(key, 0) + round(ms * NS_PER_MS)
            self._ran = False
