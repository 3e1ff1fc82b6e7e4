"""Results: what is written reads back, and nothing written is ever lost."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from full_disk import full_disk
from hypothesis import given
from hypothesis import strategies as st

from posekit.runtime.detection import Detection, PoseEstimate, Reason, Unposed
from posekit.runtime.errors import InputError, OutputError, SourceError
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.pose import Pose
from posekit.runtime.results import PoseRecord, Record, ResultsWriter, UnposedRecord, read_results, records_from
from posekit.runtime.sources import Frame

FORMS = ["jsonl", "csv"]
numbers = st.floats(-3, 3)
ids = st.tuples(st.integers(0, 99), st.integers(0, 9999), st.integers(1, 30))
times_s = st.none() | st.floats(0, 10)
poses = st.builds(
    lambda ids, score, rotvec, t_m, time_s, other: PoseRecord(
        f"{ids[0]:06d}/{ids[1]:06d}",
        ids[0],
        ids[1],
        ids[2],
        score,
        Pose.from_rotvec(rotvec, t_m),
        np.array([1.0, 2, 30, 40.5]),
        time_s,
        alternative=other and Pose.from_rotvec(other, t_m),
    ),
    ids,
    st.floats(0, 1),
    st.tuples(numbers, numbers, numbers),
    st.tuples(numbers, numbers, numbers),
    times_s,
    st.none() | st.tuples(numbers, numbers, numbers),
)
unposed = st.builds(
    lambda ids, reason, time_s: UnposedRecord(
        f"{ids[0]:06d}/{ids[1]:06d}",
        ids[0],
        ids[1],
        ids[2],
        reason,
        np.array([-5.0, 2, -5.0, 40.5]),
        time_s,
        {"crop": 0.25},
    ),
    ids,
    st.sampled_from(Reason),
    times_s,
)


def record(im_id: int = 0) -> PoseRecord:
    return PoseRecord("a/b.png", 1, im_id, 5, 0.5, Pose.from_rotvec([0.1, 0.2, 0.3], [0.01, -0.02, 0.7]), None, 0.05)


@given(st.lists(poses | unposed, max_size=5), st.sampled_from(FORMS))
def test_what_is_written_reads_back(tmp_path_factory: pytest.TempPathFactory, rows: list[Record], form: str) -> None:
    """Every record from JSON lines, the poses alone and without what BOP has no column for from a CSV."""
    path = tmp_path_factory.mktemp("results") / f"poses.{form}"
    with ResultsWriter(path) as writer:
        writer.write(rows)
    kept = [row for row in rows if form == "jsonl" or isinstance(row, PoseRecord)]
    back = read_results(path)
    assert len(back) == len(kept) == writer.n_records
    for row, read in zip(kept, back, strict=True):
        for name in ("frame", "scene_id", "im_id", "object_id", "time_s"):
            assert getattr(read, name) == getattr(row, name)
        assert type(read) is type(row)
        if form == "jsonl":
            np.testing.assert_array_equal(np.array(read.box_xyxy_px), np.array(row.box_xyxy_px))
            assert read.stages_s == row.stages_s
        if isinstance(row, PoseRecord) and isinstance(read, PoseRecord):
            assert read.score == row.score
            np.testing.assert_allclose(read.cam_from_obj.as_matrix(), row.cam_from_obj.as_matrix(), atol=1e-12)
            assert (read.alternative is None) == (row.alternative is None or form == "csv")
            if read.alternative and row.alternative:
                np.testing.assert_allclose(read.alternative.as_matrix(), row.alternative.as_matrix(), atol=1e-12)
        elif isinstance(row, UnposedRecord) and isinstance(read, UnposedRecord):
            assert read.reason is row.reason


def test_a_detection_without_a_pose_is_a_line_with_its_reason(tmp_path: Path) -> None:
    with ResultsWriter(tmp_path / "poses.jsonl") as writer:
        writer.write([UnposedRecord("a.png", 0, 3, 5, Reason.NO_CONSENSUS, np.array([1.0, 2, 30, 40]), 0.05)])
    assert json.loads((tmp_path / "poses.jsonl").read_text()) == {
        "frame": "a.png",
        "scene_id": 0,
        "im_id": 3,
        "object_id": 5,
        "reason": "no_consensus",
        "box_xyxy_px": [1, 2, 30, 40],
        "time_s": 0.05,
        "stages_s": {},
    }


def test_a_line_of_an_older_posekit_has_no_alternative(tmp_path: Path) -> None:
    with ResultsWriter(tmp_path / "poses.jsonl") as writer:
        writer.write([record()])
    row = json.loads((tmp_path / "poses.jsonl").read_text())
    assert row.pop("alternative") is None
    (tmp_path / "old.jsonl").write_text(json.dumps(row))
    (read,) = read_results(tmp_path / "old.jsonl")
    assert isinstance(read, PoseRecord)
    assert read.alternative is None


def test_json_lines_are_metres_row_major(tmp_path: Path) -> None:
    with ResultsWriter(tmp_path / "poses.jsonl") as writer:
        writer.write([record()])
    row = json.loads((tmp_path / "poses.jsonl").read_text())
    np.testing.assert_allclose(row["cam_from_obj"], record().cam_from_obj.as_matrix())
    assert list(row)[:4] == ["frame", "scene_id", "im_id", "object_id"]


def test_the_csv_is_what_bop_reads(tmp_path: Path) -> None:
    with ResultsWriter(tmp_path / "method_ycbv-test.csv") as writer:
        writer.write([record(), PoseRecord("x", 1, 2, 3, 1.0, Pose.identity())])
    header, first, second = (tmp_path / "method_ycbv-test.csv").read_text().splitlines()
    assert header == "scene_id,im_id,obj_id,score,R,t,time"
    scene_id, im_id, obj_id, score, R, t, time_s = first.split(",")
    assert (scene_id, im_id, obj_id, score, time_s) == ("1", "0", "5", "0.5", "0.05")
    np.testing.assert_allclose(np.array(R.split(), float).reshape(3, 3), record().cam_from_obj.R)
    np.testing.assert_allclose(np.array(t.split(), float), [10, -20, 700])
    assert second.endswith(",-1.0")


def test_records_carry_frame_box_and_times() -> None:
    camera = Intrinsics(np.diag([60.0, 60.0, 1.0]), 64, 48)
    frame = Frame(np.zeros((48, 64, 3), np.uint8), camera, "clip.mp4#000003", 3, im_id=3)
    estimate = PoseEstimate(5, 0.5, Pose.identity(), Detection(5, 0.9, np.array([1.0, 2, 3, 4])))
    outside = Unposed(Detection(6, 0.9, np.array([100.0, 2, 300, 4])), Reason.BOX_OUTSIDE_IMAGE)
    row, other = records_from(frame, [estimate, outside], 0.05, {"crop": 0.01})
    assert isinstance(other, UnposedRecord)
    assert (other.frame, other.im_id, other.object_id, other.reason) == (row.frame, 3, 6, Reason.BOX_OUTSIDE_IMAGE)
    assert (other.box_xyxy_px.tolist(), other.time_s, other.stages_s) == ([100, 2, 300, 4], 0.05, {"crop": 0.01})
    assert (row.frame, row.im_id, row.object_id, row.time_s, row.stages_s) == (
        "clip.mp4#000003",
        3,
        5,
        0.05,
        {"crop": 0.01},
    )


@pytest.mark.parametrize("form", FORMS)
def test_every_image_is_on_disk_before_the_next(tmp_path: Path, form: str) -> None:
    writer = ResultsWriter(tmp_path / f"poses.{form}")
    for n in range(1, 4):
        writer.write([record(n)])
        assert [r.im_id for r in read_results(writer.partial_path)] == list(range(1, n + 1))
    assert not writer.path.exists()
    writer.close()
    writer.close()
    assert writer.path.exists()
    assert not writer.partial_path.exists()


def run_that_stops(path: Path, rows: list[PoseRecord]) -> None:
    with contextlib.suppress(RuntimeError), ResultsWriter(path) as writer:
        writer.write(rows)
        raise RuntimeError


def test_a_stopped_run_keeps_what_was_written(tmp_path: Path) -> None:
    run_that_stops(tmp_path / "poses.jsonl", [record()])
    assert not (tmp_path / "poses.jsonl").exists()
    assert len(read_results(tmp_path / "poses.jsonl.partial")) == 1
    with pytest.raises(OutputError, match="of an earlier or a running one"):
        ResultsWriter(tmp_path / "poses.jsonl")


def test_a_run_that_wrote_nothing_leaves_nothing(tmp_path: Path) -> None:
    run_that_stops(tmp_path / "poses.csv", [])
    assert list(tmp_path.iterdir()) == []


def test_an_older_file_stands_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "poses.jsonl"
    path.write_text("old\n")
    with ResultsWriter(path) as writer:
        writer.write([record()])
        assert path.read_text() == "old\n"
    assert len(read_results(path)) == 1


def write_hundred(writer: ResultsWriter) -> None:
    for n in range(100):
        writer.write([record(n)])


@pytest.mark.parametrize("form", FORMS)
def test_a_full_disk_keeps_whole_lines_and_says_where(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"poses.{form}"
    writer = ResultsWriter(path)
    with full_disk(1000), pytest.raises(OutputError, match="results are kept in") as caught:
        write_hundred(writer)
    kept = read_results(writer.partial_path)
    assert 0 < len(kept) == writer.n_records < 100
    assert str(writer.partial_path) in str(caught.value)
    assert not path.exists()


def test_a_disk_without_room_for_a_header_is_left_as_it_was(tmp_path: Path) -> None:
    with full_disk(10), pytest.raises(OutputError, match="room"):
        ResultsWriter(tmp_path / "poses.csv")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_that_name_is_said_before_work_starts(tmp_path: Path) -> None:
    (tmp_path / "poses.csv").mkdir()
    with pytest.raises(OutputError, match="Is a directory"):
        ResultsWriter(tmp_path / "poses.csv")
    assert [p.name for p in tmp_path.iterdir()] == ["poses.csv"]


def test_ctrl_c_within_a_line_leaves_whole_lines(tmp_path: Path) -> None:
    class Interrupted:
        """Writes half of what it is given, then the user presses Ctrl-C."""

        def __init__(self, file: Any) -> None:
            self.file: Any = file
            self.stop: bool = False

        def write(self, data: memoryview) -> int:
            if self.stop:
                raise KeyboardInterrupt
            self.stop = True
            return int(self.file.write(data[: len(data) // 2]))

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    def interrupted() -> None:
        with ResultsWriter(tmp_path / "poses.jsonl") as writer:
            writer.write([record(1)])
            writer._file = Interrupted(writer._file)  # type: ignore[assignment]
            writer.write([record(2)])

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [r.im_id for r in read_results(tmp_path / "poses.jsonl.partial")] == [1]


def test_a_folder_that_is_not_there_is_said_before_work_starts(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file or directory"):
        ResultsWriter(tmp_path / "absent" / "poses.jsonl")
    with pytest.raises(InputError, match=r"suffix '.txt', expected one of .jsonl, .csv"):
        ResultsWriter(tmp_path / "poses.txt")


UNPOSED = (
    '{"frame": "a", "scene_id": 0, "im_id": 0, "object_id": 1, "reason": "no_consensus", "box_xyxy_px": [1, 2, 3, 4]}'
)


@pytest.mark.parametrize(
    ("form", "line"),
    [
        ("jsonl", "{"),
        ("jsonl", '{"frame": "a"}'),
        ("jsonl", "[]"),
        ("jsonl", UNPOSED.replace("no_consensus", "bad_luck")),
        ("jsonl", UNPOSED.replace("[1, 2, 3, 4]", "[1, 2]")),
        ("jsonl", UNPOSED.replace('"reason"', '"score": 0.5, "reason"')),
        ("csv", "1,2,3"),
        ("csv", "1,2,3,0.5,1 0 0 0 1 0 0 0 2,0 0 1,-1"),
        ("csv", "1,2,3,0.5,1 0 0 0 1 0 0 0 1,0 0 nan,-1"),
        ("csv", "1,2,3,nan,1 0 0 0 1 0 0 0 1,0 0 1,-1"),
        ("csv", "1,2,3,0.5,nan 0 0 0 1 0 0 0 1,0 0 1,-1"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, form: str, line: str) -> None:
    path = tmp_path / f"poses.{form}"
    with ResultsWriter(path) as writer:
        writer.write([record()])
    n_lines = len(path.read_text().splitlines())
    path.write_text(path.read_text() + line)
    with pytest.raises(SourceError, match=f"line {n_lines + 1}"):
        read_results(path)
