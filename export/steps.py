"""Steps of an export on disk, by all that they were made from: an interrupted export goes on where it stopped.

`KEY/record.json` says what the step was made of and what it told, `KEY/file` is what it wrote, where it wrote a file.
A folder is filled under another name and renamed, so what was cut short is never picked up. Two processes may share
the cache: equal keys have equal content, so whoever comes second leaves what is there.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from posekit.runtime.cache_folder import cache_folder
from posekit.runtime.file_hash import file_sha256
from posekit.runtime.records import RecordProblem, plain_from, record_from

FORMAT = 1
MAX_BYTES = 8 << 30
RECORD, FILE = "record.json", "file"
OWN_FOLDER = re.compile(r"\.?[0-9a-f]{64}(\.[0-9a-f]+\.part)?")  # nothing else is ever removed
ABANDONED_S = 24 * 3600.0
R = TypeVar("R")
T = TypeVar("T")
Step = tuple[str, dict[str, str]]  # its name, and all that it depends on


class StepCacheWarning(UserWarning):
    """A step could not be kept, or what was kept is damaged; the export itself goes on."""


class Keeping(Protocol):
    """Who makes a step, or remembers it."""

    def result(
        self, kind: type[R], step: str, inputs: Mapping[str, str], make: Callable[[], R], out: Path | None = None
    ) -> R: ...

    def held(self, key: str, make: Callable[[], T]) -> T: ...


class Anew:
    """Remembers nothing: every step is made."""

    def result(
        self, kind: type[R], step: str, inputs: Mapping[str, str], make: Callable[[], R], out: Path | None = None
    ) -> R:
        return make()

    def held(self, key: str, make: Callable[[], T]) -> T:
        return make()


@dataclass(frozen=True)
class StepRecord:
    """record.json. inputs: what the step depends on, name -> fingerprint or plain words.  result: a record.

    seconds: that it took.  size, sha256: of its file, where it wrote one.
    """

    format: int
    step: str
    inputs: dict[str, str]
    seconds: float
    result: dict[str, Any]
    size: int = 0
    sha256: str | None = None


@dataclass(frozen=True)
class KeptStep:
    """What the cache has of a step. size: of its file.  seconds: that it took.  result: as plain values."""

    size: int
    seconds: float
    result: dict[str, Any]


class Steps:
    """A folder of steps, bounded in size; those not used for longest go first.

    found: names of what earlier exports made.  made: of what this one did.
    """

    def __init__(self, folder: Path | None = None, *, max_bytes: int = MAX_BYTES) -> None:
        self.folder = folder or cache_folder("steps")
        self.max_bytes = max_bytes
        self.found: list[str] = []
        self.made: list[str] = []
        self._told: set[str] = set()
        self._held: dict[str, Any] = {}

    def result(
        self, kind: type[R], step: str, inputs: Mapping[str, str], make: Callable[[], R], out: Path | None = None
    ) -> R:
        """What `make` returns, a record of type `kind`, and the file that it writes to `out`, if `out` is given.

        inputs: everything that the result depends on. Where the cache has it, `make` is not called. A cache that cannot
        be written is said once, as a StepCacheWarning, and costs nothing else. Raises what `make` raises.
        """
        place = self.folder / _digest(step, inputs)
        found = self._found(place, kind, out)
        if found is not None:
            if step not in self.made:
                self.found.append(step)
            return found
        start = time.perf_counter()
        result = make()
        seconds = round(time.perf_counter() - start, 3)
        self.made.append(step)
        record = StepRecord(FORMAT, step, dict(inputs), seconds, plain_from(result))
        try:
            if record_from(kind, json.loads(json.dumps(record.result))) == result:
                self._keep(place, record, out)
        except RecordProblem:  # an infinite figure, which no file can hold: the step is made again next time
            pass
        except OSError as error:
            self._tell(f"steps are not kept in {self.folder}: {error}. An interrupted export begins anew.")
        return result

    def held(self, key: str, make: Callable[[], T]) -> T:
        """What `make` returns, made once in this process: for what no file is to hold. key: of all that it depends on."""
        if key not in self._held:
            self._held[key] = make()
        return cast(T, self._held[key])

    def kept(self, step: str, inputs: Mapping[str, str]) -> KeptStep | None:
        """What is kept of a step, without reading its file."""
        try:
            record = _read(self.folder / _digest(step, inputs) / RECORD)
        except (OSError, ValueError):  # RecordProblem is a ValueError
            return None
        return KeptStep(record.size, record.seconds, record.result)

    def _found(self, place: Path, kind: type[R], out: Path | None) -> R | None:
        if not place.is_dir():
            return None
        try:
            record = _read(place / RECORD)
            result = record_from(kind, record.result)
            if out is not None:
                _link(place / FILE, out)
                if file_sha256(out) != record.sha256:
                    out.unlink()
                    raise ValueError("its file is not the one that was written")
            os.utime(place)
        except (OSError, ValueError, RecursionError) as error:
            self._tell(f"step {place.name[:12]} in {self.folder} was damaged and is made again ({str(error)[:120]})")
            shutil.rmtree(place, ignore_errors=True)
            return None
        return result

    def _keep(self, place: Path, record: StepRecord, out: Path | None) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self.folder / f".{place.name}.{secrets.token_hex(4)}.part"
        part.mkdir()
        try:
            if out is not None:
                _link(out, part / FILE)
                record = StepRecord(**{**vars(record), "size": out.stat().st_size, "sha256": file_sha256(out)})
            (part / RECORD).write_text(json.dumps(plain_from(record), indent=1, sort_keys=True) + "\n")
            part.rename(place)
        except OSError:
            if not (place / RECORD).exists():  # else another process was faster
                raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
        self._bound(place)

    def _bound(self, keep: Path) -> None:
        """Remove what was cut short a day ago, then the steps not used for longest."""
        places = {p: _size(p) for p in self.folder.iterdir() if OWN_FOLDER.fullmatch(p.name)}
        total, now = sum(places.values()), time.time()
        for place in sorted(places, key=_used_at):
            abandoned = place.name.startswith(".") and now - _used_at(place) > ABANDONED_S
            if abandoned or (total > self.max_bytes and place != keep and not place.name.startswith(".")):
                shutil.rmtree(place, ignore_errors=True)
                total -= places[place]

    def _tell(self, sentence: str) -> None:
        if sentence not in self._told:
            self._told.add(sentence)
            warnings.warn(StepCacheWarning(sentence), stacklevel=4)


def _digest(step: str, inputs: Mapping[str, str]) -> str:
    key = json.dumps([FORMAT, step, dict(inputs)], sort_keys=True)
    return hashlib.sha256(key.encode()).hexdigest()


def _read(path: Path) -> StepRecord:
    record = record_from(StepRecord, json.loads(path.read_bytes()))
    if _digest(record.step, record.inputs) != path.parent.name:
        raise ValueError("it was made of something else")
    return record


def _link(source: Path, target: Path) -> None:
    """The same bytes under another name, without a copy where the file system can; nobody writes into such a file."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


def _size(place: Path) -> int:
    try:
        return sum(entry.stat().st_size for entry in place.iterdir())
    except OSError:
        return 0


def _used_at(place: Path) -> float:
    try:
        return place.stat().st_mtime
    except OSError:
        return 0.0
