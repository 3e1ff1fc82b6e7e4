"""Does memory grow with the number of frames? One estimator, very many frames, and what the process holds at some of them.

    python -m posekit.benchmarks.studies.growth X.posekit FRAMES --boxes gt   # 100,000 frames, into benchmarks/results/
    python -m posekit.benchmarks.studies.growth --table RESULT.json

Held is what tracemalloc sees of Python's and NumPy's allocations; resident is all of the process, its libraries' own
included. Blocks from before the count are freed and others taken in their place, so that some kilobytes more are seen
at some time or other; only what grows from every mark to the next grows with the frames.
"""

from __future__ import annotations

import argparse
import gc
import shlex
import sys
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path

from posekit.benchmarks.bench.modes import resident_mb
from posekit.benchmarks.markdown_table import markdown_table
from posekit.benchmarks.studies.command import Advance, run_study, write_with_table
from posekit.benchmarks.studies.machine import RESULTS, Machine, commit_of, load_average, this_machine
from posekit.benchmarks.studies.precision_result import Run, read
from posekit.runtime.boxes import Boxes, boxes_from
from posekit.runtime.bundle import Bundle
from posekit.runtime.errors import InputError, PosekitError
from posekit.runtime.estimator import PoseEstimator
from posekit.runtime.sources import Frame, frames_from

ROOT = Path(__file__).resolve().parents[2]
THIS = "posekit.benchmarks.studies.growth"
HELD = 20
MARKS = (1_000, 10_000, 100_000)
BACKENDS = ("onnxruntime", "openvino")


@dataclass(frozen=True)
class Mark:
    """After so many frames. held_bytes: by Python and NumPy.  resident_mb: by the process."""

    frames: int
    held_bytes: int
    resident_mb: float


@dataclass(frozen=True)
class Marks:
    """Of one path on one backend. poses: found in all."""

    path: str
    backend: str
    poses: int
    marks: tuple[Mark, ...]

    @property
    def bytes_per_frame(self) -> float:
        """Held, of the marks between which it grew least: what is lost with every frame is lost between all of them."""
        steps = pairwise(self.marks)
        return min((after.held_bytes - before.held_bytes) / (after.frames - before.frames) for before, after in steps)


@dataclass(frozen=True)
class Result:
    machine: Machine
    run: Run
    workload: str
    rows: tuple[Marks, ...]


@dataclass(frozen=True)
class Request:
    """boxes: as for `posekit run`, None for the bundle's detector.  marks: frames, ascending.  out: the result file."""

    bundle: Path
    frames: str
    boxes: str | None
    marks: tuple[int, ...]
    out: Path
    command: str


def marked(
    estimator: PoseEstimator, frames: Sequence[Frame], boxes: Boxes | None, marks: Sequence[int]
) -> tuple[int, tuple[Mark, ...]]:
    """Frames again and again until the last mark: how many poses were found, and what was held at each mark."""
    poses, found = 0, []
    tracemalloc.start()
    try:
        for n in range(marks[-1]):
            frame = frames[n % len(frames)]
            given = None if boxes is None else [box for box in boxes(frame) if box.object_id in estimator.object_ids]
            poses += len(estimator.estimate(frame.image_rgb_u8, frame.intrinsics, given))
            if n + 1 in marks:
                gc.collect()
                found.append(Mark(n + 1, held_bytes(), round(resident_mb(), 1)))
    finally:
        tracemalloc.stop()
    return poses, tuple(found)


def held_bytes() -> int:
    """What tracemalloc sees, less what it and a progress bar hold themselves."""
    others = [tracemalloc.Filter(False, tracemalloc.__file__), tracemalloc.Filter(False, "*/rich/*")]
    statistics = tracemalloc.take_snapshot().filter_traces(others).statistics("filename")
    return sum(one.size for one in statistics)


def study(request: Request, advance: Advance) -> Result:
    """Raises what the bundle, the boxes or the frames are refused for."""
    commit, load = commit_of(ROOT), load_average()
    frames = list(islice(frames_from(request.frames), HELD))
    boxes = boxes_from(request.boxes) if request.boxes else None
    with Bundle(request.bundle) as bundle:
        rows = tuple(_rows(bundle, frames, boxes, request.marks, advance))
        workload = f"{bundle.manifest.name}, {len(frames)} frames over and over"
    run = Run.ended(commit, request.command, load, load_average())
    return Result(this_machine(), run, workload, rows)


def _rows(
    bundle: Bundle, frames: Sequence[Frame], boxes: Boxes | None, marks: Sequence[int], advance: Advance
) -> Iterator[Marks]:
    for backend in BACKENDS:
        for path in bundle.manifest.paths:
            with PoseEstimator(bundle, path=path, backend=backend) as estimator:
                poses, found = marked(estimator, frames, boxes, marks)
            yield Marks(path, backend, poses, found)
            advance(f"{path} on {backend}", 1, 1)


def markdown(result: Result) -> str:
    """A row per path and backend."""
    machine, run = result.machine, result.run
    counts = [mark.frames for mark in result.rows[0].marks]
    columns = ["path", "backend", "poses", *(f"held at {n:,}, bytes" for n in counts), "bytes per frame"]
    columns += [f"resident at {n:,}, MB" for n in counts]
    return (
        f"{machine.cpu}, {machine.cores} cores, {machine.system}, commit {run.commit}, `{run.command}`. "
        f"{result.workload}.\n\n" + markdown_table(columns, map(_row, result.rows))
    )


def _row(row: Marks) -> list[str]:
    held = [f"{mark.held_bytes:,}" for mark in row.marks]
    resident = [f"{mark.resident_mb:.1f}" for mark in row.marks]
    return [row.path, row.backend, f"{row.poses:,}", *held, f"{row.bytes_per_frame:+.2f}", *resident]


def requested(arguments: Sequence[str] | None = None) -> Request | Path:
    """What the command line asks for; a path is a result to print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("frames", nargs="?")
    parser.add_argument(
        "--boxes", help='"gt", "gt-amodal" or a file, as for `posekit run`; default: the bundle\'s detector'
    )
    parser.add_argument("--marks", type=int, nargs="+", default=MARKS, metavar="N", help="frames to look at, ascending")
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--table", type=Path, metavar="RESULT", help="print the Markdown of a result and stop")
    given = parser.parse_args(arguments)
    if given.table:
        return Path(given.table)
    if given.frames is None:
        parser.error("X.posekit and FRAMES")
    marks = tuple(given.marks)
    if len(marks) < 2 or marks[0] < 1 or list(marks) != sorted(set(marks)):
        raise InputError("--marks", got=marks, expected="two or more, ascending", remedy="Growth is between marks.")
    out = given.out or ROOT / RESULTS / f"growth-{this_machine().slug}.json"
    boxes = ["--boxes", given.boxes] if given.boxes else []
    command = ["python", "-m", THIS, given.bundle.name, Path(given.frames).name, *boxes, "--marks", *map(str, marks)]
    return Request(given.bundle, given.frames, given.boxes, marks, out, shlex.join(command))


def measure(request: Request, advance: Advance) -> list[PosekitError]:
    """Into the result file, and its Markdown beside it."""
    result = study(request, advance)
    write_with_table(request.out, result, markdown(result))
    return []


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when everything is measured, 2 for invalid input, 130 when stopped."""
    return run_study(
        f"-m {THIS}", "Paths", lambda: requested(arguments), lambda path: markdown(read(path, Result)), measure
    )


if __name__ == "__main__":
    sys.exit(main())
