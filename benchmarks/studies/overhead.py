"""What posekit itself costs per frame: all that is neither a network's run nor the solver's work.

    python -m posekit.benchmarks.studies.overhead X.posekit FRAMES   # measures, into benchmarks/results/
    python -m posekit.benchmarks.studies.overhead --table RESULT.json

Every path of the bundle on real frames, from pixels to poses; then a frame of 720p with 8 given boxes and a pose graph
that takes 128 px crops and answers at once. Floor: the OpenCV calls alone that a frame cannot do without, among the same
networks.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from posekit.benchmarks.studies.command import Advance, run_study, write_with_table
from posekit.benchmarks.studies.machine import RESULTS, commit_of, load_average, this_machine
from posekit.benchmarks.studies.overhead_result import Case, Result, markdown
from posekit.benchmarks.studies.precision_result import Run, read
from posekit.runtime.bundle import Bundle
from posekit.runtime.crop import Image, crop
from posekit.runtime.detection import Detection
from posekit.runtime.detector import FAMILIES, letterbox
from posekit.runtime.errors import InputError, PosekitError
from posekit.runtime.estimator import Around, PoseEstimator
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.manifest import Manifest
from posekit.runtime.profiler import no_stage
from posekit.runtime.session import ForwardingSession, Session
from posekit.runtime.sources import Frame, frames_from
from posekit.runtime.tensor import Feed

ROOT = Path(__file__).resolve().parents[2]
Ran = tuple[Session, Feed]
THIS = "posekit.benchmarks.studies.overhead"
HELD, MIN_PASSES = 20, 100
LARGE_WH_PX, LARGE_CROPS, LARGE_CROP_PX = (1280, 720), 8, 128
LARGE_BOXES_PX = [np.array([x, y, x + 190.0, y + 140.0]) for y in (90.0, 430.0) for x in (60.0, 370.0, 680.0, 990.0)]


@dataclass(frozen=True)
class Request:
    """frames: what `posekit run` takes.  passes: per case.  out: the result file."""

    bundle: Path
    frames: str
    passes: int
    out: Path
    command: str


class Watch:
    """Sums the nanoseconds of a frame that are not posekit's own: `around` those of networks, `stage` the solver's."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """A frame."""
        self.network_ns = self.solver_ns = 0
        self.ran: list[Ran] = []

    def around(self, name: str, session: Session) -> Session:
        return _Timed(session, self)

    def stage(self, name: str) -> AbstractContextManager[None]:
        """The solver's refinement is within its stage."""
        return self._solving() if name == "solve" else no_stage(name)

    @contextmanager
    def _solving(self) -> Iterator[None]:
        start_ns = time.perf_counter_ns()
        yield
        self.solver_ns += time.perf_counter_ns() - start_ns


class _Timed(ForwardingSession):
    def __init__(self, session: Session, watch: Watch) -> None:
        super().__init__(session)
        self._watch = watch

    def run(self, feed: Feed) -> dict[str, Any]:
        start_ns = time.perf_counter_ns()
        outputs = self.session.run(feed)
        self._watch.network_ns += time.perf_counter_ns() - start_ns
        self._watch.ran.append((self.session, feed))
        return outputs


class _Instant(ForwardingSession):
    """In place of a pose graph: takes crops of any size and finds every object a metre away."""

    def run(self, feed: Feed) -> dict[str, Any]:
        n = len(next(iter(feed.values())))
        R, t = np.tile(np.eye(3, dtype=np.float32), (n, 1, 1)), np.tile(np.array([0, 0, 1], np.float32), (n, 1))
        return {"R": R, "t": t, "score": np.ones(n, np.float32)}


def study(request: Request, advance: Advance) -> Result:
    """Raises what the bundle, its path or the frames are refused for."""
    commit, load = commit_of(ROOT), load_average()
    frames = list(islice(frames_from(request.frames), HELD))
    with Bundle(request.bundle) as bundle:
        cases = tuple(measured(bundle, frames, request.passes, advance))
    run = Run.ended(commit, request.command, load, load_average())
    return Result(this_machine(), run, cases)


def measured(bundle: Bundle, frames: Sequence[Frame], passes: int, advance: Advance) -> Iterator[Case]:
    """One case after the other. The bundle's manifest is another one afterwards. InputError without a regressor path."""
    manifest = bundle.manifest
    for name in manifest.paths:
        yield _case(bundle, f"{name}, {frames[0].intrinsics.width_px} px wide", name, frames, passes, advance)
    poses = [name for name, path in manifest.paths.items() if path.kind == "regressor"]
    if not poses:
        raise InputError("bundle", got="no regressor path", expected="one", remedy="Measure one that has.")
    bundle.manifest = _with_crops(manifest, poses[0], LARGE_CROP_PX)
    graph = manifest.paths[poses[0]].graph
    boxes = [Detection(manifest.paths[poses[0]].object_ids[0], 1.0, box) for box in LARGE_BOXES_PX]
    large = [_enlarged(frame) for frame in frames]
    what = f"720p, {LARGE_CROPS} crops of {LARGE_CROP_PX} px"

    def instant(name: str, session: Session) -> Session:
        return _Instant(session) if name == graph else session

    yield _case(bundle, f"{what}, boxes given", poses[0], large, passes, advance, instant, boxes)
    if manifest.detector:
        yield _case(bundle, f"{what}, and the detector", poses[0], large, passes, advance, instant, boxes, True)


def _with_crops(manifest: Manifest, path: str, size_px: int) -> Manifest:
    entry = manifest.paths[path]
    return replace(manifest, paths={path: replace(entry, crop=replace(entry.crop, size_px=size_px))}, default_path=path)


def _enlarged(frame: Frame) -> Frame:
    """To 720p, its aspect not kept: nobody looks at it."""
    import cv2

    image = np.asarray(cv2.resize(frame.image_rgb_u8, LARGE_WH_PX), np.uint8)
    scale = np.array(LARGE_WH_PX) / (frame.intrinsics.width_px, frame.intrinsics.height_px)
    return replace(
        frame, image_rgb_u8=image, intrinsics=Intrinsics(np.diag([*scale, 1.0]) @ frame.intrinsics.K, *LARGE_WH_PX)
    )


def _same(name: str, session: Session) -> Session:
    return session


def _case(
    bundle: Bundle,
    name: str,
    path: str,
    frames: Sequence[Frame],
    passes: int,
    advance: Advance,
    instead: Around = _same,
    boxes: Sequence[Detection] | None = None,
    detects: bool = False,
) -> Case:
    """boxes: of every frame, instead of the detector's.  detects: run it all the same."""
    watch = Watch()
    floors: dict[int, _Floor] = {}
    samples: list[tuple[int, int, int, int]] = []
    crops = 0
    with PoseEstimator(
        bundle, path=path, stage=watch.stage, around=lambda graph, session: watch.around(graph, instead(graph, session))
    ) as estimator:
        detects = detects or boxes is None
        for n in range(len(frames) + passes):
            frame = frames[n % len(frames)]
            watch.begin()
            begin_ns = time.perf_counter_ns()
            found = estimator.detect(frame.image_rgb_u8, frame.intrinsics) if detects else []
            given = found if boxes is None else boxes
            estimator.estimate(frame.image_rgb_u8, frame.intrinsics, given)
            total_ns = time.perf_counter_ns() - begin_ns
            network_ns, solver_ns = watch.network_ns, watch.solver_ns
            if n < len(frames):  # to warm up
                floors[n] = _Floor(bundle.manifest, path, frame, given, detects, tuple(watch.ran))
                continue
            # of a frame that was not touched for as long as this one was not
            floor_ns = floors[(n + len(frames) // 2) % len(frames)].measured_ns()
            samples.append((total_ns, network_ns, solver_ns, floor_ns))
            crops += len(given)
    advance(name, 1, 1)  # not within: a bar that is drawn takes time from the frames
    total, network, solver, floor = (tuple(ns // 1000 for ns in column) for column in zip(*samples, strict=True))
    return Case(name, crops / passes, total, network, solver, floor)


class _Floor:
    """A frame with nothing but its networks, and between them the OpenCV calls that it cannot do without.

    They are found as a frame finds them: right after a network has had the caches to itself.
    """

    def __init__(
        self, manifest: Manifest, path: str, frame: Frame, boxes: Sequence[Detection], detects: bool, ran: Sequence[Ran]
    ) -> None:
        """ran: what the frame's networks were fed, the detector's first if there is one."""
        self._image, self._wh_px = frame.image_rgb_u8, manifest.paths[path].crop.wh_px
        self._crops = [crop(self._image, box.box_xyxy_px, frame.intrinsics, manifest.paths[path].crop) for box in boxes]
        self._letterbox = _letterbox_inner(manifest, self._image) if detects else None
        self._detector, self._others = ran[: int(detects)], ran[int(detects) :]

    def measured_ns(self) -> int:
        _run(self._others)
        resize_ns = _timed_ns(self._resize)
        _run(self._detector)
        return resize_ns + _timed_ns(self._warp)

    def _resize(self) -> None:
        import cv2

        if self._letterbox:
            inner, wh_px = self._letterbox
            cv2.resize(self._image, wh_px, dst=inner, interpolation=cv2.INTER_LINEAR_EXACT)

    def _warp(self) -> None:
        import cv2

        for one in self._crops:
            cv2.warpAffine(self._image, one.warp, self._wh_px, dst=one.pixels, flags=cv2.INTER_LINEAR)


def _run(ran: Sequence[Ran]) -> None:
    for session, feed in ran:
        session.run(feed)


def _timed_ns(work: Callable[[], None]) -> int:
    begin_ns = time.perf_counter_ns()
    work()
    return time.perf_counter_ns() - begin_ns


def _letterbox_inner(manifest: Manifest, image: Image) -> tuple[Image, tuple[int, int]]:
    """Where the letterbox puts the scaled image, and that one's width and height."""
    entry = manifest.detector
    assert entry is not None  # who detects has one
    boxed = letterbox(image, entry.input_wh_px, entry.letterbox_value, FAMILIES[entry.family].placement)
    width, height = (round(float(n)) for n in boxed.scale * (image.shape[1], image.shape[0]))
    left, top = (int(n) for n in boxed.offset_px)
    return boxed.pixels[top : top + height, left : left + width], (width, height)


def requested(arguments: Sequence[str] | None = None) -> Request | Path:
    """What the command line asks for; a path is a result to print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("frames", nargs="?")
    parser.add_argument("--passes", type=int, default=500, help="frames per case")
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--table", type=Path, metavar="RESULT", help="print the Markdown of a result and stop")
    given = parser.parse_args(arguments)
    if given.table:
        return Path(given.table)
    if given.frames is None:
        parser.error("X.posekit and FRAMES")
    if given.passes < MIN_PASSES:
        raise InputError("--passes", got=given.passes, expected=f"at least {MIN_PASSES}", remedy="Medians need them.")
    out = given.out or ROOT / RESULTS / f"overhead-{this_machine().slug}.json"
    names = [given.bundle.name, Path(given.frames).name]
    command = shlex.join(["python", "-m", THIS, *names, "--passes", str(given.passes)])
    return Request(given.bundle, given.frames, given.passes, out, command)


def measure(request: Request, advance: Advance) -> list[PosekitError]:
    """Into the result file, and its Markdown beside it."""
    result = study(request, advance)
    write_with_table(request.out, result, markdown(result))
    return []


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when everything is measured, 2 for invalid input, 130 when stopped."""
    return run_study(
        f"-m {THIS}", "Cases", lambda: requested(arguments), lambda path: markdown(read(path, Result)), measure
    )


if __name__ == "__main__":
    sys.exit(main())
