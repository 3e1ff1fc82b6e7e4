"""What a bench measures: back to back always, and the modes that are asked for, in this order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from posekit.benchmarks.bench.frames import HeldFrames, OpenFrames
from posekit.benchmarks.bench.lane import Lane, Passed
from posekit.benchmarks.bench.modes import Extent, Paced, Soak, back_to_back, sequential
from posekit.benchmarks.bench.overlap import LANES, offline, pipelined
from posekit.runtime.errors import InputError

BACK_TO_BACK = "back-to-back"
DEFAULT_FRAMES = 200  # two samples beyond the 99th percentile
MLPERF = Extent(1024, 600.0)  # MLCommons inference, mlperf.conf: min_query_count and min_duration of SingleStream


@dataclass(frozen=True)
class Plan:
    """frames: per mode, but for those that go on for a time.  repeat: they may repeat.  objects: boxes per frame, one run
    each.  soak_s: seconds.
    """

    frames: int = DEFAULT_FRAMES
    repeat: bool = False
    paced_hz: float | None = None
    objects: tuple[int, ...] = ()
    pipelined: bool = False
    mlperf: bool = False
    soak_s: float | None = None

    def __post_init__(self) -> None:
        numbers = (self.frames, *self.objects, *(x for x in (self.paced_hz, self.soak_s) if x is not None))
        if not all(0 < number < 1e6 for number in numbers) or len(set(self.objects)) != len(self.objects):
            raise InputError(
                "what to measure",
                got=str(self),
                expected="frames, rate, objects and minutes above 0, no number of objects twice",
                remedy="Correct the options.",
            )
        if (self.mlperf or self.soak_s is not None) and not self.repeat:
            raise InputError(
                "frames of the source",
                got="a mode that goes on for minutes, and frames that may not repeat",
                expected="frames that may",
                remedy="Let them repeat (--repeat), which the result will say.",
            )


@dataclass(frozen=True, eq=False)
class Mode:
    """passes: begins it, with `lanes` lanes.  objects: boxes per frame, of frames that have any; None for the frame's own.

    one_network: lanes take turns with their networks.
    """

    name: str
    settings: dict[str, float]
    passes: Callable[[tuple[Lane, ...], HeldFrames], Iterable[Passed]]
    lanes: int = 1
    one_network: bool = False
    objects: int | None = None


def modes_of(plan: Plan, open_frames: OpenFrames) -> Iterator[Mode]:
    """The first one is back to back."""
    extent, n = Extent(plan.frames), float(plan.frames)
    yield Mode(BACK_TO_BACK, {"frames": n}, lambda lanes, frames: back_to_back(lanes[0], frames, extent))
    if plan.paced_hz is not None:
        rate_hz = plan.paced_hz
        paced = {"frames": n, "rate_hz": rate_hz}
        yield Mode("paced", paced, lambda lanes, frames: Paced(lanes[0], frames, rate_hz, plan.frames))
    for count in plan.objects:
        yield Mode(
            f"objects-{count}",
            {"frames": n, "objects": float(count)},
            partial(_sweep, extent=extent, objects=count),
            objects=count,
        )
    if plan.pipelined:
        both = {"frames": n}
        yield Mode("sequential", both, lambda lanes, frames: sequential(lanes[0], open_frames, plan.frames))
        yield Mode(
            "pipelined",
            both | {"lanes": float(LANES)},
            lambda lanes, frames: pipelined(lanes, open_frames, plan.frames),
            lanes=LANES,
            one_network=True,
        )
    if plan.mlperf:
        least = {"frames": float(MLPERF.frames), "seconds": MLPERF.seconds}
        yield Mode("single-stream", least, lambda lanes, frames: back_to_back(lanes[0], frames, MLPERF))
        yield Mode(
            "offline",
            least | {"lanes": float(LANES)},
            lambda lanes, frames: offline(lanes, frames, MLPERF),
            lanes=LANES,
        )
    if plan.soak_s is not None:
        soak_s = plan.soak_s
        yield Mode("soak", {"seconds": soak_s}, lambda lanes, frames: Soak(lanes[0], frames, soak_s))


def _sweep(lanes: tuple[Lane, ...], frames: HeldFrames, extent: Extent, objects: int) -> Iterator[Passed]:
    return back_to_back(lanes[0], frames, extent, objects)
