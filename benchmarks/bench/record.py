"""From what was measured to the evidence folder's record: runs, reasons against them, notes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from posekit.benchmarks.accuracy import accuracy_from
from posekit.benchmarks.bench.bench import Done, Measured, Subject
from posekit.benchmarks.bench.frames import HeldFrames
from posekit.benchmarks.bench.lane import CAPTURE, WAIT
from posekit.benchmarks.bench.plan import BACK_TO_BACK, Plan
from posekit.benchmarks.bench.result import FORMAT, TOTAL, BenchResult, Clock, Readings, Run, Samples, Stage
from posekit.benchmarks.bench.statistics import summary_from
from posekit.benchmarks.bench.truth_errors import truth_errors_from
from posekit.benchmarks.bench.warm_up import STABLE_COV
from posekit.runtime.bundle import MANIFEST
from posekit.runtime.file_hash import file_sha256
from posekit.runtime.machine import machine_from_root
from posekit.runtime.profiler import STAGES

HOST_STAGES = (CAPTURE, WAIT, *STAGES)
LAST = len(HOST_STAGES)
PACKAGES = (
    "numpy", "opencv-python", "opencv-python-headless", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt",
    "tensorrt-rtx-cu13-libs", "cuda-bindings", "pycuda", "poselib",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Recorded:
    """What `write_evidence` writes."""

    result: BenchResult
    samples: Samples
    readings: Readings


def evidence_from(measured: Measured, subject: Subject, plan: Plan, posekit: str, command: str) -> Recorded:
    """posekit: its version.  command: exactly as given. BundleError if the bundle is not readable any more."""
    done = [one for one in measured.done if len(one.kept)]
    stages = {one.mode.name: _stages(one, measured.frames) for one in done}
    scores, opening = measured.scores, subject.opening
    reasons = (*measured.problems, *_without_boxes(done), *measured.watch.reasons)
    result = BenchResult(
        format=FORMAT,
        posekit=posekit,
        command=command,
        date=measured.date,
        bundle=str(opening.bundle),
        bundle_sha256=bundle_sha256(opening.bundle),
        path=measured.path,
        precision=opening.precision,
        backends=measured.backends,
        frames_source=_frames_source(subject.source, measured.frames),
        frame_wh_px=measured.frames.wh_px,
        boxes=measured.boxes_from,
        machine=machine_from_root(),
        packages=_packages(),
        valid=not reasons,
        reasons=reasons,
        cold_start=measured.cold_start,
        warm_up=measured.warm_up,
        runs=tuple(_run(one, measured, stages[one.mode.name]) for one in done),
        watched=measured.watch.watched,
        accuracy=accuracy_from(scores, measured.object_names) if scores else None,
        notes=(*_notes(measured, plan), *measured.watch.notes),
        truth_errors=truth_errors_from(scores) if scores else None,
    )
    samples = {mode: {name: ns for name, (_, ns) in found.items()} for mode, found in stages.items()}
    return Recorded(result, samples, measured.watch.readings)


def bundle_sha256(path: Path) -> str:
    """Of the file; of a folder, of its manifest, which has the hash of everything else."""
    return file_sha256(path / MANIFEST if path.is_dir() else path)


def _stages(one: Done, frames: HeldFrames) -> dict[str, tuple[Clock, tuple[int, ...]]]:
    """Host stages in the order in which a frame goes through them, the total, the device's."""
    kept, found = one.kept, dict[str, tuple[Clock, tuple[int, ...]]]()
    if one.mode.name == BACK_TO_BACK:
        found[CAPTURE] = ("host", frames.capture_ns)  # every frame was read once, before
    in_order = sorted(kept.host_ns, key=lambda name: HOST_STAGES.index(name) if name in HOST_STAGES else LAST)
    found |= {name: ("host", tuple(kept.host_ns[name])) for name in in_order}
    found[TOTAL] = ("host", tuple(kept.total_ns))
    return found | {name: ("device", tuple(ns)) for name, ns in kept.device_ns.items()}


def _run(one: Done, measured: Measured, stages: dict[str, tuple[Clock, tuple[int, ...]]]) -> Run:
    kept = one.kept
    energy = measured.watch.energy(one.mode.name, kept.poses) if kept.poses else None
    return Run(
        mode=one.mode.name,
        settings=one.mode.settings,
        frames=len(kept),
        seconds=kept.seconds,
        objects=kept.objects / len(kept),
        throughput_hz=len(kept) / kept.seconds,
        stages=tuple(Stage(name, clock, summary_from(ns)) for name, (clock, ns) in stages.items()),
        deadlines=one.deadlines,
        drift=one.drift,
        energy_j_per_pose=energy.j_per_pose if energy else None,
        energy_above_idle_j_per_pose=energy.above_idle_j_per_pose if energy else None,
        reasons=dict(kept.reasons.most_common()),
    )


def _without_boxes(done: list[Done]) -> Iterator[str]:
    for one in done:
        if not one.kept.objects:
            yield f"{one.mode.name}: no box in any of {len(one.kept)} frames, so nothing behind the boxes was measured."


def _notes(measured: Measured, plan: Plan) -> Iterator[str]:
    yield f"Host clock: {measured.clock.name}, steps of {measured.clock.step_ns} ns."
    for one in measured.done:
        if reasons := one.kept.reasons:
            counts = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
            yield f"{one.mode.name}: {reasons.total()} of {one.kept.objects} boxes ended without a pose: {counts}."
    most = max((len(one.kept) for one in measured.done), default=0)
    if most > len(measured.frames):
        times = -(-most // len(measured.frames))
        yield f"Frames repeat, as allowed: {len(measured.frames)} of them, each up to {times} times in a mode."
    if plan.objects:
        yield "Where a frame has fewer boxes than the sweep asks for, its own are used over and over."
    warm = {"first": measured.warm_up, **{one.mode.name: one.warm_up for one in measured.done}}
    restless = [f"{name} {found.cov:.0%}" for name, found in warm.items() if not found.stable]
    if restless:
        yield f"Warm-up ended by time, one frame's repeats still varying by more than {STABLE_COV:.0%}: {', '.join(restless)}."


def _frames_source(source: str, frames: HeldFrames) -> str:
    return f"{source}: {len(frames)} frame{'s' * (len(frames) > 1)} of {frames.wh_px[0]} x {frames.wh_px[1]} px"


def _packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
