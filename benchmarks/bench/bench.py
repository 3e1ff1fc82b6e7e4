"""`posekit bench`: cold start, warm-up, and every mode with the machine watched beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from threading import Lock

from posekit.benchmarks.accuracy import TruthScore, image_scores
from posekit.benchmarks.bench.clock import Clock, checked_clock
from posekit.benchmarks.bench.cold_start import Opening, cold_start
from posekit.benchmarks.bench.frames import HeldFrames, OpenFrames, held_frames
from posekit.benchmarks.bench.lane import Lane
from posekit.benchmarks.bench.modes import Kept, Paced, Say, Soak, collected
from posekit.benchmarks.bench.plan import Mode, Plan, modes_of
from posekit.benchmarks.bench.result import ColdStart, Deadlines, Drift, WarmUp
from posekit.benchmarks.bench.warm_up import warm_up
from posekit.benchmarks.bench.watch import Watch, watching
from posekit.benchmarks.pose_error import scored_object
from posekit.runtime.boxes import Boxes, detections_from_truth
from posekit.runtime.bundle import Bundle
from posekit.runtime.detection import PoseEstimate, Unposed
from posekit.runtime.errors import PosekitError
from posekit.runtime.estimator import Around, PoseEstimator, path_named
from posekit.runtime.profiler import Stage
from posekit.runtime.sources import Frame

ON_GPU = ("tensorrt", "cuda")  # in the lower-case name of a backend


@dataclass(frozen=True, eq=False)
class Subject:
    """What is measured on which frames. source: their place, for people.

    boxes: None for the bundle's detector, or the true boxes where it has none.  boxes_from: their place, for people.
    """

    opening: Opening
    source: str
    open_frames: OpenFrames
    boxes: Boxes | None = None
    boxes_from: str = ""


@dataclass(frozen=True, eq=False)
class Done:
    """One mode, as far as it came."""

    mode: Mode
    kept: Kept
    warm_up: WarmUp
    deadlines: Deadlines | None = None
    drift: Drift | None = None


@dataclass(frozen=True, eq=False)
class Measured:
    """Everything that was found out. problems: why it ended before its time.   scores: of the poses, where truth is known.

    date: when it began, UTC, ISO 8601.  boxes_from: what gave the boxes.
    """

    date: str
    clock: Clock
    frames: HeldFrames
    path: str
    backends: tuple[str, ...]
    boxes_from: str
    object_names: dict[int, str]
    cold_start: ColdStart
    warm_up: WarmUp
    done: tuple[Done, ...]
    problems: tuple[str, ...]
    scores: tuple[TruthScore, ...]
    watch: Watch


def measure(subject: Subject, plan: Plan, say: Say) -> Measured:
    """Everything that is asked for. A device that fails or a stop ends it; what was measured until then is kept.

    Raises ClockError, SourceError, InputError, BundleError and BackendError before anything was measured.
    """
    date, clock = datetime.now(timezone.utc).isoformat(timespec="seconds"), checked_clock()
    frames = held_frames(subject.open_frames, plan.frames, plan.repeat)
    with ExitStack() as stack:
        bundle = stack.enter_context(Bundle(subject.opening.bundle))
        boxes, boxes_from = _boxes(bundle, subject)
        open_estimator = partial(_estimator, bundle, subject.opening)
        known = path_named(bundle, subject.opening.path or bundle.manifest.default_path).object_ids
        first_boxes = None if boxes is None else [box for box in boxes(frames[0]) if box.object_id in known]
        say("cold start, in a fresh process")  # before anything is opened here: this one would build its engines
        cold = cold_start(subject.opening, frames[0], first_boxes, say)
        seen = _Seen()
        lane = stack.enter_context(Lane(open_estimator, boxes, seen=seen))
        say("warm-up")
        warm = warm_up(lane, frames)
        with watching(uses_gpu=_uses_gpu(lane.estimator)) as watch:
            floor = _Floor(lane, partial(Lane, open_estimator, boxes), frames, seen, watch, say)
            done, problems = floor.run(modes_of(plan, subject.open_frames))
        return Measured(
            date,
            clock,
            frames,
            lane.estimator.path_name,
            lane.estimator.backends,  # now that it ran: a refused CUDA graph is known only by then
            boxes_from,
            {entry.id: entry.name for entry in bundle.manifest.objects},
            cold,
            warm,
            tuple(done),
            tuple(problems),
            tuple(_scores(bundle, known, frames, seen)),
            watch,
        )


@dataclass(eq=False)
class _Seen:
    """What became of the boxes of every frame in its first pass, by the frame's index."""

    outcomes: dict[int, list[PoseEstimate | Unposed]] = field(default_factory=dict)

    def __call__(self, frame: Frame, outcomes: list[PoseEstimate | Unposed]) -> None:
        self.outcomes.setdefault(frame.index, outcomes)


@dataclass(frozen=True, eq=False)
class _Floor:
    """Where modes are run, one after the other. another_lane: with a lock for its networks, or None."""

    lane: Lane
    another_lane: Callable[[Lock | None], Lane]
    frames: HeldFrames
    seen: _Seen
    watch: Watch
    say: Say

    def run(self, modes: Iterator[Mode]) -> tuple[list[Done], list[str]]:
        """All modes, until one fails or is stopped; and why."""
        done: list[Done] = []
        try:
            self.watch.idle()
            for mode in modes:
                frames = self.frames if mode.objects is None else self._with_boxes()
                if not len(frames):
                    return done, [f"{mode.name} was not run: no frame has a box to repeat"]
                done.append(self._mode(mode, frames))
                if done[-1].kept.problem:
                    return done, [done[-1].kept.problem]
        except PosekitError as error:
            return done, [f"the run ended after {_named(done)}: {error}"]
        except KeyboardInterrupt:
            return done, [f"the run was stopped after {_named(done)}"]
        return done, []

    def _mode(self, mode: Mode, frames: HeldFrames) -> Done:
        with ExitStack() as stack:
            network = Lock() if mode.one_network else None
            more = mode.lanes if mode.lanes > 1 else 0
            lanes = tuple(stack.enter_context(self.another_lane(network)) for _ in range(more)) or (self.lane,)
            warm = [warm_up(lane, frames, mode.objects) for lane in lanes][-1]
            passes = mode.passes(lanes, frames)
            self.say(f"{mode.name}: {', '.join(f'{name} {value:g}' for name, value in mode.settings.items())}")
            with self.watch.during(mode.name):
                kept = collected(mode.name, iter(passes), self.say)
        deadlines = passes.deadlines(len(kept)) if isinstance(passes, Paced) else None
        return Done(mode, kept, warm, deadlines, passes.drift(kept) if isinstance(passes, Soak) else None)

    def _with_boxes(self) -> HeldFrames:
        rows = zip(self.frames.frames, self.frames.capture_ns, strict=True)
        kept = [row for row in rows if self.seen.outcomes.get(row[0].index)]
        return HeldFrames(tuple(frame for frame, _ in kept), tuple(ns for _, ns in kept))


def _named(done: Sequence[Done]) -> str:
    return ", ".join(one.mode.name for one in done) or "nothing"


def _estimator(bundle: Bundle, opening: Opening, stage: Stage, around: Around) -> PoseEstimator:
    return PoseEstimator(
        bundle,
        path=opening.path,
        backend=opening.backend,
        precision=opening.precision,
        stage=stage,
        around=around,
    )


def _boxes(bundle: Bundle, subject: Subject) -> tuple[Boxes | None, str]:
    if subject.boxes is not None:
        return subject.boxes, subject.boxes_from
    if bundle.manifest.detector is not None:
        return None, "detector of the bundle"
    return detections_from_truth, "truth of the data set: the bundle has no detector"


def _uses_gpu(estimator: PoseEstimator) -> bool:
    return any(name in backend.lower() for name in ON_GPU for backend in estimator.backends)


def _scores(bundle: Bundle, known: Sequence[int], frames: HeldFrames, seen: _Seen) -> Iterator[TruthScore]:
    """Of the first pass of every frame whose truth is known."""
    true = [(frame, frame.truth) for frame in frames.frames if frame.truth is not None and frame.index in seen.outcomes]
    objects = {e.id: scored_object(bundle, e) for e in bundle.manifest.objects if true and e.id in known}
    for frame, truth in true:
        yield from image_scores(truth, seen.outcomes[frame.index], objects, frame.intrinsics)
