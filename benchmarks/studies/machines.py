"""Are the poses the same on every machine? One bundle and the same frames in each environment that is at hand.

    python -m posekit.benchmarks.studies.machines --data FOLDER     # exports and measures, into benchmarks/results/
    python -m posekit.benchmarks.studies.machines --table RESULT.json

FOLDER has `ycbv/` in BOP's layout (real frames, meshes); without it the demo's scenes alone are used. Environments differ
in the versions of Python and ONNX Runtime, in the backend and in the processor's architecture (aarch64 under qemu-user);
one that cannot be made here is named with the reason. Exit code 1 where a pose differs by more than the limits.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from posekit.benchmarks.accuracy import box_iou
from posekit.benchmarks.markdown_table import markdown_table
from posekit.benchmarks.pose_error import rotation_translation_errors
from posekit.benchmarks.studies.command import Advance, run_study, write_with_table
from posekit.benchmarks.studies.machine import RESULTS, Machine, commit_of, load_average, this_machine
from posekit.benchmarks.studies.machine_environments import ENVIRONMENTS, ROOT, Started
from posekit.benchmarks.studies.machine_poses import DETECTOR, FoundPose, FoundPoses
from posekit.benchmarks.studies.precision_result import Run, read
from posekit.runtime.atomic import make_folder, write_whole
from posekit.runtime.bundle import Bundle
from posekit.runtime.errors import BackendError, GateError, InputError, PosekitError
from posekit.runtime.object_model import symmetries_from_entry
from posekit.runtime.pose import Array, Pose
from posekit.runtime.records import record_from
from posekit.runtime.symmetry import MM_PER_M

THIS = "posekit.benchmarks.studies.machines"
RUNNER = Path(__file__).with_name("machine_poses.py")
SURE = 0.9
ROTATION_DEG, TRANSLATION_MM = 0.02, 0.02  # limits
SAME_BOX_IOU = 0.5
SYMMETRY_STEPS = 720
YCBV = {2: "cracker-box", 9: "potted-meat", 14: "mug"}  # one in each scene of the real frames
YCBV_EVERY, YCBV_FOLDER = 10, "ycbv"
YCBV_RECIPE = """
name = "ycbv"
default_path = "bank"
{objects}
[[networks]]
name = "bank"
system = "template-pose"
checkpoint = {checkpoint}
crop = {{ rule = "square", size_px = 96 }}
options = {{ backbone = "nano", channels = 16, hidden = 96, max_pool = true }}
bank = {{ sphere = 42, in_plane_steps = 36, in_plane = "rotate" }}
"""


@dataclass(frozen=True)
class Workload:
    """boxes: DETECTOR, or as for `posekit run --boxes`.  every: 10 takes each tenth frame."""

    name: str
    bundle: Path
    frames: Path
    boxes: str
    every: int


@dataclass(frozen=True)
class Difference:
    """Of one path's poses to those of the first environment, symmetries that the objects state taken out.

    poses: compared ones, whatever their score.  sure: those of them with a score above SURE in the first environment.
    lost: poses of the first environment without one of the same object in the same box here.  gained: the reverse.
    """

    workload: str
    environment: str
    path: str
    poses: int
    sure: int
    rotation_max_deg: float
    rotation_p95_deg: float
    translation_max_mm: float
    translation_p95_mm: float
    lost: int
    gained: int

    @property
    def within(self) -> bool:
        near = self.rotation_max_deg <= ROTATION_DEG and self.translation_max_mm <= TRANSLATION_MM
        return self.poses > 0 and near and not self.lost and not self.gained


@dataclass(frozen=True)
class Result:
    """found: environment -> workload -> poses; differences are to the first.  absent: environment -> why."""

    machine: Machine
    run: Run
    differences: tuple[Difference, ...]
    found: dict[str, dict[str, FoundPoses]]
    absent: dict[str, str]


Copies = Mapping[int, Array]  # object id -> (S, 4, 4) transforms that leave the object looking the same


def differences(
    workload: str, environment: str, reference: FoundPoses, found: FoundPoses, copies: Copies
) -> Iterator[Difference]:
    """One per path."""
    for path in reference.ran_on:
        there = [pose for pose in reference.poses if pose.path == path]
        here = [pose for pose in found.poses if pose.path == path]
        pairs = list(_pairs(there, here))
        moved = np.array([_moved_deg_mm(a, b, copies[a.object_id]) for a, b in pairs]).reshape(-1, 2)
        yield Difference(
            workload,
            environment,
            path,
            len(pairs),
            sum(pose.score > SURE for pose, _ in pairs),
            *(_largest(moved[:, 0]), _p95(moved[:, 0]), _largest(moved[:, 1]), _p95(moved[:, 1])),
            lost=len(there) - len(pairs),
            gained=len(here) - len(pairs),
        )


def _pairs(there: Sequence[FoundPose], here: Sequence[FoundPose]) -> Iterator[tuple[FoundPose, FoundPose]]:
    """Poses of the same object in the same box of the same frame, best score first, each once."""
    left = list(here)
    for pose in sorted(there, key=lambda one: -one.score):
        rivals = [(_overlap(pose, other), i) for i, other in enumerate(left) if _same_object(pose, other)]
        overlap, i = max(rivals, default=(0.0, -1))
        if overlap >= SAME_BOX_IOU:
            yield pose, left.pop(i)


def _same_object(a: FoundPose, b: FoundPose) -> bool:
    return (a.frame, a.object_id) == (b.frame, b.object_id)


def _overlap(a: FoundPose, b: FoundPose) -> float:
    return box_iou(np.array(a.box_xyxy_px), np.array(b.box_xyxy_px))


def _moved_deg_mm(a: FoundPose, b: FoundPose, copies: Array) -> tuple[float, float]:
    there, here = (Pose(np.array(pose.R).reshape(3, 3), np.array(pose.t_m)) for pose in (a, b))
    rotation_rad, translation_m = rotation_translation_errors(here, there, copies)
    return float(np.rad2deg(rotation_rad)), translation_m * MM_PER_M


def copies_of(bundle_path: Path) -> Copies:
    """Half degrees about an axis of symmetry: what a bank's equal views differ by is a multiple."""
    with Bundle(bundle_path) as bundle:
        return {o.id: symmetries_from_entry(o).transforms(n_steps=SYMMETRY_STEPS) for o in bundle.manifest.objects}


def _largest(values: Array) -> float:
    return float(values.max(initial=0.0))


def _p95(values: Array) -> float:
    return float(np.percentile(values, 95)) if len(values) else 0.0


def poses_of(started: Started, workload: Workload, backend: str, out: Path) -> FoundPoses:
    """BackendError where the environment gives none."""
    out.unlink(missing_ok=True)
    bundle, frames = str(workload.bundle), str(workload.frames)
    done = started.run([str(RUNNER), bundle, frames, workload.boxes, str(workload.every), backend, str(out)])
    if done.returncode or not out.is_file():
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise BackendError(
            f"poses by {started.command[0]}", got=said, expected="poses", remedy=f"Run {RUNNER} by hand."
        )
    return record_from(FoundPoses, json.loads(out.read_text()))


@dataclass(frozen=True)
class Request:
    """data: folder of real frames, or None.  folder: bundles and environments are made, and found again, there."""

    data: Path | None
    folder: Path
    out: Path
    command: str


def workloads(request: Request, advance: Advance) -> tuple[Workload, ...]:
    """Exports what is measured, where it is not in the folder already. Raises what recipes or meshes are refused for."""
    from posekit.export.pipeline import export_recipe
    from posekit.export.recipe import recipe_from_toml
    from posekit.export.reference.demo import write_demo

    demo = write_demo(request.folder / "demo", advance)
    made = [Workload("rendered scenes", request.folder / "reference.posekit", demo.scenes, DETECTOR, 1)]
    recipes = [demo.recipe]
    if request.data:
        recipe = request.folder / "ycbv.toml"
        write_whole(recipe, _ycbv_recipe(request.data / YCBV_FOLDER, demo.recipe.parent).encode())
        recipes.append(recipe)
        frames = request.data / YCBV_FOLDER
        made.append(Workload("real frames", request.folder / "ycbv.posekit", frames, "gt", YCBV_EVERY))
    for workload, recipe in zip(made, recipes, strict=True):
        if workload.bundle.is_file():
            continue
        export_recipe(recipe_from_toml(recipe), workload.bundle, advance)
    return tuple(made)


def _ycbv_recipe(ycbv: Path, reference: Path) -> str:
    rows = "".join(
        f'\n[[objects]]\nid = {i}\nname = {json.dumps(name)}\nunit = "mm"\n'
        f"mesh = {json.dumps(str((ycbv / 'models' / f'obj_{i:06d}.ply').resolve()))}\n"
        for i, name in YCBV.items()
    )
    return YCBV_RECIPE.format(objects=rows, checkpoint=json.dumps(str((reference / "embedder.safetensors").resolve())))


def study(request: Request, advance: Advance) -> Result:
    """Raises what workloads raises; an environment that cannot be made is an entry of `absent`."""
    commit, load = commit_of(ROOT), load_average()
    work = workloads(request, advance)
    found: dict[str, dict[str, FoundPoses]] = {}
    absent: dict[str, str] = {}
    make_folder(request.folder / "poses", "poses")
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # each is a process of its own, and nothing is timed
        futures: dict[tuple[str, str], Future[FoundPoses]] = {}
        for number, environment in enumerate(ENVIRONMENTS):
            packages = [backend for backend in environment.backends if backend != "onnxruntime"]
            try:
                started = environment.made(request.folder / f"environment-{number}", packages)
            except BackendError as error:
                absent[environment.name] = str(error)
                continue
            advance("environments", number + 1, len(ENVIRONMENTS))
            for name, backend in environment.named_backends:
                for workload in work:
                    out = request.folder / "poses" / f"{len(futures)}.json"
                    futures[name, workload.name] = pool.submit(poses_of, started, workload, backend, out)
        for n, ((name, workload_name), future) in enumerate(futures.items()):
            found.setdefault(name, {})[workload_name] = future.result()
            advance("poses", n + 1, len(futures))
    run = Run.ended(commit, request.command, load, load_average())
    return Result(this_machine(), run, tuple(_to_first(work, found)), found, absent)


def _to_first(work: Sequence[Workload], found: Mapping[str, Mapping[str, FoundPoses]]) -> Iterator[Difference]:
    reference, *others = found
    for workload in work:
        copies = copies_of(workload.bundle)
        for name in others:
            yield from differences(
                workload.name, name, found[reference][workload.name], found[name][workload.name], copies
            )


def markdown(result: Result) -> str:
    """A row per environment, workload and path."""
    machine, run = result.machine, result.run
    compared = {row.environment for row in result.differences}
    first = next(name for name in result.found if name not in compared)
    columns = ["environment", "frames", "path", f"poses (score > {SURE})", "rotation max (p95), deg"]
    columns += ["translation max (p95), mm", "lost, gained"]
    absent = "".join(f"\nNot at hand: {name}: {why}\n" for name, why in result.absent.items())
    return (
        f"{machine.cpu}, {machine.cores} cores, {machine.system}, commit {run.commit}, `{run.command}`. "
        f"Differences to {first}, over all poses whatever their score; symmetries that objects state are taken "
        f"out. aarch64 is emulated (qemu-user, Cortex-A76). Limits: {ROTATION_DEG} deg, {TRANSLATION_MM} mm.\n\n"
        + markdown_table(columns, map(_row, result.differences))
        + absent
    )


def _row(row: Difference) -> list[str]:
    return [
        row.environment,
        row.workload,
        row.path,
        f"{row.poses} ({row.sure})",
        f"{row.rotation_max_deg:.4f} ({row.rotation_p95_deg:.4f})",
        f"{row.translation_max_mm:.4f} ({row.translation_p95_mm:.4f})",
        f"{row.lost}, {row.gained}",
    ]


def short_markdown(result: Result) -> str:
    """For README: a row per environment, the largest of all frames and paths, and the path that it is of."""
    columns = ["environment", "poses", "rotation max, deg", "translation max, mm", "lost, gained"]
    names = dict.fromkeys(row.environment for row in result.differences)
    return markdown_table(columns, [_short_row(result, name) for name in names])


def _short_row(result: Result, name: str) -> list[str]:
    rows = [row for row in result.differences if row.environment == name]
    turned = max(rows, key=lambda row: row.rotation_max_deg)
    shifted = max(rows, key=lambda row: row.translation_max_mm)
    return [
        name,
        str(sum(row.poses for row in rows)),
        f"{turned.rotation_max_deg:.4f} ({turned.path})",
        f"{shifted.translation_max_mm:.4f} ({shifted.path})",
        f"{sum(row.lost for row in rows)}, {sum(row.gained for row in rows)}",
    ]


def failures(result: Result) -> list[PosekitError]:
    """One per row beyond the limits, or without a pose to compare."""
    return [
        GateError(
            f"{row.path} on {row.environment}, {row.workload}",
            got=f"{row.poses} poses, {row.rotation_max_deg:.4f} deg, {row.translation_max_mm:.4f} mm, "
            f"{row.lost} lost, {row.gained} gained",
            expected=f"poses within {ROTATION_DEG} deg and {TRANSLATION_MM} mm, none lost, none gained",
            remedy="Compare crops, outputs and solutions of that path between the two, in that order.",
        )
        for row in result.differences
        if not row.within
    ]


def requested(arguments: Sequence[str] | None = None) -> Request | Path:
    """Read what the command line asks for; a path is a result to print. InputError, before any work, for no real frames."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of real frames, with ycbv/")
    parser.add_argument("--folder", type=Path, help="keep bundles and environments there; default: a temporary one")
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--table", type=Path, metavar="RESULT", help="print the Markdown of a result and stop")
    given = parser.parse_args(arguments)
    if given.table:
        return Path(given.table)
    if given.data and not (given.data / YCBV_FOLDER).is_dir():
        raise InputError(
            f"--data {given.data}",
            got=f"no folder {YCBV_FOLDER} in it",
            expected="a folder of real frames, in BOP's layout",
            remedy="Leave it out to measure on rendered scenes alone.",
        )
    folder = given.folder or Path(tempfile.mkdtemp(prefix="posekit-machines-"))
    out = given.out or ROOT / RESULTS / f"machines-{this_machine().slug}.json"
    command = ["python", "-m", THIS, *(["--data", given.data.name] if given.data else [])]
    return Request(given.data, folder.resolve(), out, shlex.join(command))


def measure(request: Request, advance: Advance) -> list[PosekitError]:
    """Into the result file, and its Markdown beside it."""
    result = study(request, advance)
    write_with_table(request.out, result, markdown(result))
    return failures(result)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when all poses are the same, 1 when some are not, 2 for invalid input, 130 when stopped."""
    return run_study(
        f"-m {THIS}", "Environments", lambda: requested(arguments), lambda path: markdown(read(path, Result)), measure
    )


if __name__ == "__main__":
    sys.exit(main())
