"""What became of detections, on disk: JSON lines with everything posekit knows, or the CSV that BOP's evaluation takes.

A JSON line is a pose, or a detection without one and the reason; the CSV has poses only.

Every frame's lines are on disk before the next frame starts, under NAME.partial; close() gives the file its name. What
stops a run, a full disk included, leaves the partial file with whole lines only.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, final

import numpy as np

from posekit.runtime.detection import PoseEstimate, Reason, Unposed, checked_box
from posekit.runtime.errors import InputError, OutputError, PosekitError, SourceError
from posekit.runtime.pose import Array, Pose, nearest_rotation
from posekit.runtime.sources import Frame
from posekit.runtime.symmetry import MM_PER_M

BOP_COLUMNS = ("scene_id", "im_id", "obj_id", "score", "R", "t", "time")
UNTIMED = -1.0  # BOP's value for an unknown time
PRINTED_DIGITS = 1e-4  # a rotation written by others with few digits is still that rotation
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class PoseRecord:
    """One estimate as written. box_xyxy_px: of the detection, (4,).  time_s: for the whole image, all its objects.

    stages_s: stage -> seconds within that time.  alternative: see `detection.Hypothesis`.
    Box, time and alternative are None where a file does not say.
    """

    frame: str
    scene_id: int
    im_id: int
    object_id: int
    score: float
    cam_from_obj: Pose
    box_xyxy_px: Array | None = None
    time_s: float | None = None
    stages_s: Mapping[str, float] = field(default_factory=dict)
    alternative: Pose | None = None


@dataclass(frozen=True, eq=False)
class UnposedRecord:
    """One detection without a pose, as written, and why. The rest as in `PoseRecord`."""

    frame: str
    scene_id: int
    im_id: int
    object_id: int
    reason: Reason
    box_xyxy_px: Array
    time_s: float | None = None
    stages_s: Mapping[str, float] = field(default_factory=dict)


Record = PoseRecord | UnposedRecord


def records_from(
    frame: Frame,
    outcomes: Sequence[PoseEstimate | Unposed],
    time_s: float | None = None,
    stages_s: Mapping[str, float] | None = None,
) -> list[Record]:
    """What became of the detections of one frame, ready to be written."""
    return [_record_from(frame, outcome, time_s, dict(stages_s or {})) for outcome in outcomes]


def _record_from(
    frame: Frame, outcome: PoseEstimate | Unposed, time_s: float | None, stages_s: dict[str, float]
) -> Record:
    image = (frame.name, frame.scene_id, frame.im_id, outcome.detection.object_id)
    box = outcome.detection.box_xyxy_px
    if isinstance(outcome, Unposed):
        return UnposedRecord(*image, outcome.reason, box, time_s, stages_s)
    return PoseRecord(*image, outcome.score, outcome.cam_from_obj, box, time_s, stages_s, outcome.alternative)


@final
class ResultsWriter:
    """Appends records to PATH.partial, line by line; close() renames. As a context manager, only success renames;
    what failed before the first record leaves nothing."""

    def __init__(self, path: Path | str) -> None:
        """Start a file; its suffix, .jsonl or .csv, says the form. OutputError if it cannot be written."""
        self.path = Path(path)
        self.partial_path = self.path.with_name(self.path.name + ".partial")
        self.n_records = 0
        self._line, header = _row(self.path, FORMS)
        if self.path.is_dir():
            raise self._failed(IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)))
        try:
            self._file = open(self.partial_path, "xb", buffering=0)  # noqa: SIM115  the writer owns it until close()
        except FileExistsError as error:
            raise OutputError(
                f"results {self.path}",
                got=f"{self.partial_path.name} of an earlier or a running one",
                expected="no partial file",
                remedy="Move or delete that file; it holds results that were not finished.",
            ) from error
        except OSError as error:
            raise self._failed(error) from error
        try:
            self._append(header)
        except OutputError:
            self.partial_path.unlink()
            raise

    def __enter__(self) -> ResultsWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if error is None:
            self.close()
        elif self.n_records:
            self._file.close()
        else:
            self._file.close()
            self.partial_path.unlink(missing_ok=True)

    def write(self, records: Sequence[Record]) -> None:
        """Append what the form takes of the records of one image, all or none. OutputError if the disk refuses."""
        lines = [line for record in records if (line := self._line(record))]
        self._append("".join(lines))
        self.n_records += len(lines)

    def close(self) -> None:
        """Make it last and give the file its name. Twice is harmless."""
        if self._file.closed:
            return
        try:
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self.partial_path, self.path)
        except OSError as error:
            raise self._failed(error) from error

    def _append(self, text: str) -> None:
        good = self._file.tell()
        left = memoryview(text.encode())
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            self._file.truncate(good)
            self._file.close()
            raise self._failed(error) from error
        except KeyboardInterrupt:
            self._file.truncate(good)
            raise

    def _failed(self, error: OSError) -> OutputError:
        kept = f"{self.n_records} results are kept in {self.partial_path}. " if self.n_records else ""
        return OutputError(
            f"results {self.path}",
            got=error.strerror or str(error),
            expected="a folder that can be written, with room",
            remedy=f"{kept}Make room or name another place.",
        )


def read_results(path: Path | str) -> list[Record]:
    """Read either form back, a partial file too. SourceError names the line that does not fit."""
    path = Path(path)
    read = _row(path, READERS)
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"results {path}", got=error, expected="a text file", remedy="Check the path.") from error
    return read(path, lines)


# Forms.


def _json_line(record: Record) -> str:
    row: dict[str, Any] = {
        "frame": record.frame,
        "scene_id": record.scene_id,
        "im_id": record.im_id,
        "object_id": record.object_id,
    }
    if isinstance(record, UnposedRecord):
        row["reason"] = record.reason.value
    else:
        row["score"] = record.score
        row["cam_from_obj"] = record.cam_from_obj.as_matrix().tolist()
        row["alternative"] = None if record.alternative is None else record.alternative.as_matrix().tolist()
    row["box_xyxy_px"] = None if record.box_xyxy_px is None else record.box_xyxy_px.tolist()
    row |= {"time_s": record.time_s, "stages_s": dict(record.stages_s)}
    return json.dumps(row, allow_nan=False) + "\n"


def _csv_line(record: Record) -> str:
    """BOP challenge results: R row-major, t in millimetres, both separated by blanks; time in seconds. Poses only."""
    if isinstance(record, UnposedRecord):
        return ""
    R = " ".join(repr(float(x)) for x in record.cam_from_obj.R.ravel())
    t_mm = " ".join(repr(float(x)) for x in record.cam_from_obj.t_m * MM_PER_M)
    time_s = UNTIMED if record.time_s is None else record.time_s
    return f"{record.scene_id},{record.im_id},{record.object_id},{record.score!r},{R},{t_mm},{time_s!r}\n"


def _records_from_jsonl(path: Path, lines: list[str]) -> list[Record]:
    return [_parsed(path, n, _record_from_json, line) for n, line in enumerate(lines, 1)]


def _record_from_json(line: str) -> Record:
    row = json.loads(line)
    if "reason" in row:
        return UnposedRecord(**row | {"reason": Reason(row["reason"]), "box_xyxy_px": checked_box(row["box_xyxy_px"])})
    row["cam_from_obj"] = Pose.from_matrix(row["cam_from_obj"])
    row["alternative"] = None if row.get("alternative") is None else Pose.from_matrix(row["alternative"])
    row["box_xyxy_px"] = None if row["box_xyxy_px"] is None else np.array(row["box_xyxy_px"], dtype=np.float64)
    return PoseRecord(**row)


def _records_from_csv(path: Path, lines: list[str]) -> list[Record]:
    header = ",".join(BOP_COLUMNS)
    return [_parsed(path, n, _record_from_csv, line) for n, line in enumerate(lines, 1) if line != header]


def _record_from_csv(line: str) -> PoseRecord:
    scene_id, im_id, obj_id, score, R_text, t_text, time_text = line.split(",")
    matrix = np.array(R_text.split(), dtype=np.float64).reshape(3, 3)
    R = nearest_rotation(matrix)
    if not float(np.abs(R - matrix).max()) < PRINTED_DIGITS:
        raise ValueError(f"R {R_text} is no rotation")
    pose = Pose(R, np.array(t_text.split(), dtype=np.float64) / MM_PER_M)
    time_s = float(time_text)
    name = f"{int(scene_id):06d}/{int(im_id):06d}"
    timed = None if time_s == UNTIMED else _finite(time_s)
    return PoseRecord(name, int(scene_id), int(im_id), int(obj_id), _finite(float(score)), pose, None, timed)


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{value} where a number is due")
    return value


def _parsed(path: Path, number: int, parse: Callable[[str], Record], line: str) -> Record:
    try:
        return parse(line)
    except (ValueError, KeyError, TypeError, RecursionError, PosekitError, np.linalg.LinAlgError) as error:
        raise SourceError(
            f"results {path}, line {number}",
            got=f"{type(error).__name__}: {error}",
            expected="a line as posekit writes it",
            remedy="Remove the line if it was cut off; otherwise write the file again.",
        ) from error


FORMS: dict[str, tuple[Callable[[Record], str], str]] = {
    ".jsonl": (_json_line, ""),
    ".csv": (_csv_line, ",".join(BOP_COLUMNS) + "\n"),
}
READERS: dict[str, Callable[[Path, list[str]], list[Record]]] = {
    ".jsonl": _records_from_jsonl,
    ".csv": _records_from_csv,
}


def _row(path: Path, table: Mapping[str, T]) -> T:
    """The row of a table for a results file's suffix."""
    suffix = path.with_suffix("").suffix if path.suffix == ".partial" else path.suffix
    if suffix not in table:
        raise InputError(
            f"results {path}",
            got=f"suffix {suffix!r}",
            expected=f"one of {', '.join(table)}",
            remedy="Name the file by the form you want: .jsonl for posekit, .csv for BOP.",
        )
    return table[suffix]
