"""`posekit bench`: a bundle's latency on this machine and real frames, with all evidence in a folder."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

from posekit import __version__
from posekit.benchmarks.bench.bench import Subject, measure
from posekit.benchmarks.bench.cold_start import Opening
from posekit.benchmarks.bench.plan import Plan
from posekit.benchmarks.bench.record import evidence_from
from posekit.benchmarks.bench.result import RESULT, BenchResult, write_evidence
from posekit.runtime.boxes import TRUE_BOXES, boxes_from
from posekit.runtime.camera_file import intrinsics_from_file
from posekit.runtime.errors import InputError, OutputError
from posekit.runtime.manifest import Precision
from posekit.runtime.sources import frames_from


@dataclass(frozen=True)
class BenchRequest:
    """What `posekit bench` was asked. boxes: a key of TRUE_BOXES, a box file, or None for the bundle's detector.

    output: None for a new folder beside the user.  command: exactly as given.
    """

    bundle: Path
    source: str
    plan: Plan
    camera: Path | None = None
    boxes: str | None = None
    path: str | None = None
    backend: str = "auto"
    precision: Precision | None = None
    output: Path | None = None
    command: str = ""


def run_bench(request: BenchRequest, say: Callable[[str], None]) -> tuple[BenchResult, Path]:
    """Measure and write the evidence. Returns it with its folder; an invalid run is written too.

    Raises OutputError for a folder that cannot be written or has another result, and what measuring raises.
    """
    with _new_folder(request) as folder:
        intrinsics = intrinsics_from_file(request.camera) if request.camera else None
        subject = Subject(
            Opening(request.bundle, request.path, request.backend, request.precision),
            request.source,
            partial(frames_from, request.source, intrinsics),
            boxes_from(request.boxes) if request.boxes else None,
            f"truth of the data set ({request.boxes})" if request.boxes in TRUE_BOXES else f"file {request.boxes}",
        )
        measured = measure(subject, request.plan, say)
        evidence = evidence_from(measured, subject, request.plan, __version__, request.command)
        write_evidence(folder, evidence.result, evidence.samples, evidence.readings)
    return evidence.result, folder


def objects_from(text: str) -> tuple[int, ...]:
    """ "1,2,4" -> (1, 2, 4). InputError for anything else."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(
            "--objects", got=repr(text), expected="numbers of boxes, such as 1,2,4,8,16", remedy="Correct it."
        ) from error


@contextmanager
def _new_folder(request: BenchRequest) -> Iterator[Path]:
    """Made and tried before anything is measured; gone again where nothing came into it."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = request.output or Path(f"{request.bundle.stem}-bench-{stamp}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            taken = (folder / RESULT).exists()
    except OSError as error:
        raise OutputError(
            f"folder {folder}", got=error, expected="a folder that can be written", remedy="Name another one."
        ) from error
    if taken:
        raise OutputError(
            f"folder {folder}", got=f"another {RESULT}", expected="a folder without one", remedy="Name another one."
        )
    try:
        yield folder
    finally:
        with suppress(OSError):  # it is not empty: as it should be
            folder.rmdir()
