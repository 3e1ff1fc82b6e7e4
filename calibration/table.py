"""Range tables on disk: each under the hash of all that it depends on, so that none is ever used for something else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from posekit.calibration.ranges import RangeTable, method_named
from posekit.runtime.atomic import write_whole
from posekit.runtime.backends.ort import imported_onnxruntime
from posekit.runtime.errors import OutputError
from posekit.runtime.records import RecordProblem, json_from_record, plain_from, record_from

FORMAT = 1  # of the file
COMPUTING = ("ranges", "nodes", "sessions")  # the modules of this package that ranges follow from


@dataclass(frozen=True)
class TableKey:
    """All that ranges depend on. Hashes are sha256, hexadecimal.

    graph: of the ONNX file.   data: `Fitness.fingerprint`.   preprocessing: `CalibrationSource.preprocessing`.   code: of
    the modules that compute ranges: what one version of posekit found, another does not take for its own.
    """

    graph: str
    data: str
    preprocessing: str
    method: str
    options: dict[str, float]
    onnxruntime: str
    code: str
    format: int = FORMAT

    @property
    def sha256(self) -> str:
        return _sha256(json_from_record(self))


@dataclass(frozen=True)
class StoredTable:
    """The file. content: sha256 of the table's JSON."""

    key: TableKey
    content: str
    table: RangeTable


@dataclass(frozen=True)
class CachedTable:
    """table: for exactly the key that was asked for.   origin: where it is from and why, one sentence for people.

    path: where it is kept now; None where the folder could not keep it.
    """

    table: RangeTable
    origin: str
    path: Path | None = field(default=None)


@cache
def computing_code() -> str:
    """sha256 of the sources of COMPUTING."""
    sources = (Path(__file__).with_name(f"{name}.py").read_bytes() for name in COMPUTING)
    return hashlib.sha256(b"".join(sources)).hexdigest()


def table_key(graph: bytes | memoryview, data: str, preprocessing: str, method: str) -> TableKey:
    """The key of a graph's ranges. PrecisionError for an unknown method."""
    options = method_named(method).options
    digest = hashlib.sha256(graph).hexdigest()
    return TableKey(
        digest, data, preprocessing, method, options, str(imported_onnxruntime().__version__), computing_code()
    )


def cached_table(folder: Path, key: TableKey, make: Callable[[], RangeTable]) -> CachedTable:
    """The table kept in `folder` under this key, else the one that `make` gives, which is then kept.

    A file that is damaged, or whose name and content disagree, is made again and `origin` says so. A folder that
    cannot be written costs nothing but the cache: minutes of calibration are not thrown away for it, and `origin`
    says that too. Several processes may share the folder: files appear whole, and equal keys have equal contents.
    """
    path = folder / f"{key.sha256}.ranges.json"
    table, reason = _read(path, key)
    if table is not None:
        return CachedTable(table, f"read from {path}", path)
    table = make()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, json_from_table(key, table).encode())
    except (OSError, OutputError) as error:
        return CachedTable(table, f"calibrated: {reason}; not kept: {error}")
    return CachedTable(table, f"calibrated: {reason}; kept as {path}", path)


def json_from_table(key: TableKey, table: RangeTable) -> str:
    """Reproducible text, one trailing newline."""
    stored = StoredTable(key, _sha256(json_from_record(table)), table)
    return json.dumps(plain_from(stored), indent=1, sort_keys=True) + "\n"


def _read(path: Path, key: TableKey) -> tuple[RangeTable | None, str]:
    """The table, or None and why not."""
    try:
        stored = record_from(StoredTable, json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None, "no table for this graph and data yet"
    except OSError as error:
        return None, f"{path} cannot be read ({error})"
    except (RecordProblem, ValueError, RecursionError) as error:
        return None, f"{path} is damaged ({str(error)[:120]})"
    if stored.key != key:
        return None, f"{path} was made for something else"
    if stored.content != _sha256(json_from_record(stored.table)):
        return None, f"{path} is damaged (its ranges are not the ones that were written)"
    return stored.table, ""


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
