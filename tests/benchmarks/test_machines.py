"""The study of machines: differences between two environments' poses, one process per environment, one table."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from recordings import write_recording
from toy_bundles import write_toy_bundle

from posekit.benchmarks.studies import machine_environments
from posekit.benchmarks.studies.machine import this_machine
from posekit.benchmarks.studies.machine_environments import (
    ENVIRONMENTS,
    Started,
    emulated,
    emulation_missing,
    python_of,
    this_python,
)
from posekit.benchmarks.studies.machine_poses import FoundPose, FoundPoses
from posekit.benchmarks.studies.machines import (
    Difference,
    Result,
    Workload,
    copies_of,
    differences,
    failures,
    markdown,
    poses_of,
    requested,
    short_markdown,
)
from posekit.benchmarks.studies.precision_result import Run, read
from posekit.runtime.errors import BackendError, InputError
from posekit.runtime.pose import Pose
from posekit.runtime.records import plain_from, record_from
from posekit.runtime.symmetry import Symmetries

ROOT = Path(__file__).resolve().parents[2]
BOX = (10.0, 20.0, 50.0, 60.0)
COPIES = {1: np.eye(4)[None], 2: Symmetries(continuous=((np.array([0.0, 0, 1]), np.zeros(3)),)).transforms(n_steps=720)}


def pose(
    rotvec_deg: tuple[float, float, float] = (10, 20, 30),
    t_m: tuple[float, float, float] = (0.1, 0, 1),
    object_id: int = 1,
    score: float = 0.95,
    box: tuple[float, ...] = BOX,
) -> FoundPose:
    made = Pose.from_rotvec(np.deg2rad(rotvec_deg), t_m)
    return FoundPose("bank", "0", object_id, score, box, tuple(made.R.ravel().tolist()), t_m)


def found(*poses: FoundPose) -> FoundPoses:
    return FoundPoses("x86_64", {}, {"bank": "a session"}, poses)


def difference(there: FoundPoses, here: FoundPoses) -> Difference:
    (row,) = differences("scenes", "other", there, here, COPIES)
    return row


def test_equal_poses_do_not_differ() -> None:
    same = found(pose(), pose(object_id=2, score=0.4))
    row = difference(same, same)
    assert (row.poses, row.sure, row.rotation_max_deg, row.translation_max_mm, row.lost, row.gained) == (
        2,
        1,
        0,
        0,
        0,
        0,
    )
    assert row.within


@pytest.mark.parametrize(("deg", "mm", "within"), [(0.019, 0.019, True), (0.021, 0, False), (0, 0.021, False)])
def test_what_moved_is_measured_whatever_the_score(deg: float, mm: float, within: bool) -> None:
    there = found(pose((0, 0, 0), score=0.3), pose((0, 0, 0), box=(200, 200, 240, 240)))
    here = found(pose((0, deg, 0), (0.1, mm / 1000, 1), score=0.3), there.poses[1])
    row = difference(there, here)
    assert row.rotation_max_deg == pytest.approx(deg, abs=1e-9)
    assert row.translation_max_mm == pytest.approx(mm, abs=1e-9)
    assert row.within is within


def test_the_other_object_and_the_other_box_are_no_partners() -> None:
    row = difference(found(pose(), pose(object_id=2)), found(pose(), pose(object_id=2, box=(90, 90, 130, 130))))
    assert (row.poses, row.lost, row.gained, row.within) == (1, 1, 1, False)


def test_a_turn_about_an_axis_of_symmetry_is_no_difference() -> None:
    there, here = (found(pose((0, 0, angle), object_id=2)) for angle in (0.0, 72.001))
    assert difference(there, here).rotation_max_deg == pytest.approx(0.001, abs=1e-9)
    there, here = (found(pose((0, 0, angle), object_id=1)) for angle in (0.0, 72.001))
    assert difference(there, here).rotation_max_deg == pytest.approx(72.001, abs=1e-9)


def test_nothing_to_compare_is_not_within() -> None:
    assert not difference(found(), found()).within


def test_a_process_of_its_own_gives_the_poses(tmp_path: Path) -> None:
    bundle = write_toy_bundle(tmp_path / "toy.posekit")
    workload = Workload("toy", bundle, write_recording(tmp_path / "recording", 4), "gt", 2)
    here, other = (
        poses_of(this_python(tmp_path), workload, backend, tmp_path / f"{backend}.json")
        for backend in ("onnxruntime", "openvino")
    )
    rows = {row.path: row for row in differences("toy", "OpenVINO", here, other, copies_of(bundle))}
    assert {path: row.poses for path, row in rows.items()} == {"regressor": 2, "bank": 2, "epnp": 0}
    assert rows["regressor"].within
    assert rows["bank"].within
    assert "OpenVINO" in other.ran_on["regressor"]


def test_an_environment_without_poses_is_told(tmp_path: Path) -> None:
    workload = Workload("toy", tmp_path / "none.posekit", tmp_path, "gt", 1)
    with pytest.raises(BackendError, match="no intrinsics"):
        poses_of(this_python(tmp_path), workload, "onnxruntime", tmp_path / "out.json")


def test_no_qemu_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_environments, "QEMU", "qemu-of-another-planet")
    assert emulation_missing("3.11") == "no qemu-of-another-planet on this machine"
    with pytest.raises(BackendError, match="no qemu-of-another-planet"):
        emulated("3.11", tmp_path)


def test_pythons_are_found_by_what_they_are() -> None:
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert python_of(here) == sys.executable
    with pytest.raises(BackendError, match=r"Python 2\.1"):
        python_of("2.1")


def test_what_is_run_says_how_it_ended() -> None:
    done = Started((sys.executable,), {"ADDED": "7"}).run(["-c", "import os; print(os.environ['ADDED'])"])
    assert (done.returncode, done.stdout) == (0, "7\n")


def test_the_table_says_what_the_file_says() -> None:
    row = Difference("scenes", "other", "bank", 7, 5, 0.012345, 0.01, 0.0023, 0.001, 0, 1)
    run = Run("2026-01-01T00:00:00+00:00", "abc", "a command", 0.5, 1.0, False)
    result = Result(this_machine(), run, (row,), {"first": {"scenes": found(pose())}}, {"third": "no qemu"})
    table = markdown(result)
    assert "| other | scenes | bank | 7 (5) | 0.0123 (0.0100) | 0.0023 (0.0010) | 0, 1 |" in table
    assert "Differences to first" in table
    assert "Not at hand: third: no qemu" in table
    assert "| other | 7 | 0.0123 (bank) | 0.0023 (bank) | 0, 1 |" in short_markdown(result)
    assert record_from(Result, json.loads(json.dumps(plain_from(result)))) == result
    assert [error.what for error in failures(result)] == ["bank on other, scenes"]
    assert failures(replace(result, differences=(replace(row, gained=0),))) == []


@pytest.mark.parametrize("kept", sorted((ROOT / "benchmarks/results").glob("machines-*.json")), ids=lambda p: p.stem)
def test_committed_results_are_within_the_limits_and_shown(kept: Path) -> None:
    result = read(kept, Result)
    assert failures(result) == []
    reference, *others = (name for environment in ENVIRONMENTS for name, _ in environment.named_backends)
    assert {row.environment for row in result.differences} == set(others)
    assert set(result.found) == {reference, *others}
    assert kept.with_suffix(".md").read_text() == markdown(result)
    readme = (ROOT / "README.md").read_text()
    assert f"(benchmarks/results/{kept.stem}.md)" in readme
    assert short_markdown(result) in readme


def test_a_folder_without_real_frames_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder ycbv in it"):
        requested(["--data", str(tmp_path), "--folder", str(tmp_path / "kept")])
    assert not (tmp_path / "kept").exists()
