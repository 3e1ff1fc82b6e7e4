"""Engines on disk, found by what they were built from. A plan is a file of its own that any other tool reads.

`KEY.plan` is the plan as TensorRT serialised it, `KEY.json` says what the key was made of and what the plan's bytes must
be. The plan is renamed into place before the record, so a plan without a record is a build that was cut short, and is
never picked up. A lock per key lets one process build while the others wait; the kernel drops it when its holder dies.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from posekit.runtime.atomic import write_whole
from posekit.runtime.cache_folder import cache_folder
from posekit.runtime.engines.build import BuildReport, BuiltPlan
from posekit.runtime.engines.options import BuildOptions
from posekit.runtime.errors import EngineError, OutputError, PosekitError
from posekit.runtime.records import json_from_record, plain_from, record_from

FORMAT = 1
MAX_BYTES = 4 << 30
LOCK_TIMEOUT_S = 1800.0  # a large graph on a small Jetson takes many minutes
POLL_S = 0.05
OWN_FILE = re.compile(r"\.?([0-9a-f]{64})\.(plan|json)(\.[0-9a-f]+\.part)?$")  # nothing else is ever removed


@dataclass(frozen=True)
class Device:
    """gpu: its name.  compute_capability: "8.7".  l4t: of a Jetson, "36.4.3"."""

    gpu: str
    compute_capability: str
    l4t: str | None = None


@dataclass(frozen=True)
class EngineKey:
    """Everything that an engine depends on. version: of TensorRT.  device: None where it is compiled ahead of time.

    The driver is not in it: its updates do not invalidate an engine, and on a Jetson it comes with L4T.
    """

    graph_sha256: str
    options: BuildOptions
    version: str
    device: Device | None = None

    @property
    def digest(self) -> str:
        """The name of its files."""
        return hashlib.sha256(json_from_record(self).encode()).hexdigest()


@dataclass(frozen=True)
class CacheRecord:
    """KEY.json. size, sha256: of the plan.  built_at: UTC, ISO 8601."""

    format: int
    key: EngineKey
    size: int
    sha256: str
    built_at: str
    report: BuildReport


@dataclass(frozen=True, eq=False)
class CachedPlan:
    """path: None when it could not be kept.  built: now, instead of found.  reason: one sentence, for people."""

    plan: bytes
    report: BuildReport
    path: Path | None
    built: bool
    reason: str


@dataclass(frozen=True)
class CacheEntry:
    """For looking at. used_at: seconds since the epoch, when it was last built or loaded."""

    digest: str
    path: Path
    size: int
    used_at: float
    record: CacheRecord


class _Unusable(Exception):
    """Why what lies under a key is of no use."""


def default_folder() -> Path:
    """POSEKIT_CACHE/engines, else XDG_CACHE_HOME/posekit/engines, else ~/.cache/posekit/engines."""
    return cache_folder("engines")


class EngineCache:
    """A folder of engines, bounded in size; the ones not used for longest go first."""

    def __init__(
        self, folder: Path | None = None, *, max_bytes: int = MAX_BYTES, lock_timeout_s: float = LOCK_TIMEOUT_S
    ) -> None:
        self.folder = folder or default_folder()
        self.max_bytes, self.lock_timeout_s = max_bytes, lock_timeout_s

    def plan_for(self, key: EngineKey, build: Callable[[], BuiltPlan]) -> CachedPlan:
        """The plan under this key, built and kept if it is not there or damaged.

        Where the folder cannot be written, the plan is built and used all the same, and `reason` says so. Raises what
        `build` raises, and EngineError when another process has been building this key for longer than the time-out.
        """
        try:
            return self._found(key)
        except _Unusable as problem:
            why = str(problem)
        with ExitStack() as stack:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(self._locked(key.digest))
            except OSError as error:
                built = build()
                return CachedPlan(built.plan, built.report, None, True, f"built: {why}. Not kept: {error}.")
            try:
                return self._found(key)  # another process was faster
            except _Unusable as problem:
                why = str(problem)
            self._remove(key.digest)
            built = build()
            try:
                path = self._keep(key, built)
            except (OutputError, _Unusable) as error:
                got = error.got if isinstance(error, OutputError) else error
                return CachedPlan(built.plan, built.report, None, True, f"built: {why}. Not kept: {got}.")
        self._bound(keep=key.digest)
        return CachedPlan(built.plan, built.report, path, True, f"built: {why}. Kept as {path}.")

    def entries(self) -> tuple[CacheEntry, ...]:
        """What is there, last used first. A damaged record is left out; the plans themselves are not read."""
        found = []
        for path in self.folder.glob("*.json"):
            try:
                record, used_at = _record(path), path.stat().st_mtime
            except (_Unusable, OSError):
                continue
            found.append(CacheEntry(path.stem, self._plan(path.stem), record.size, used_at, record))
        return tuple(sorted(found, key=lambda entry: -entry.used_at))

    def clear(self) -> int:
        """Remove every engine that is not being built. Returns the bytes freed."""
        return self._bound(keep="", max_bytes=0)

    def _plan(self, digest: str) -> Path:
        return self.folder / f"{digest}.plan"

    def _found(self, key: EngineKey) -> CachedPlan:
        """Verified against its record, and marked as used. _Unusable says why there is none."""
        path, record_path = self._plan(key.digest), self.folder / f"{key.digest}.json"
        try:
            record = _record(record_path)
            plan = path.read_bytes()
        except FileNotFoundError as error:
            raise _Unusable(f"no engine {key.digest[:12]} in {self.folder}") from error
        except OSError as error:
            raise _Unusable(f"engine {key.digest[:12]} cannot be read ({error})") from error
        found = hashlib.sha256(plan).hexdigest()
        if record.key != key or len(plan) != record.size or found != record.sha256:
            wrong = f"{len(plan)} bytes of {found[:12]} instead of {record.size} of {record.sha256[:12]}"
            raise _Unusable(f"engine {key.digest[:12]} was damaged ({wrong})")
        with suppress(OSError):  # read-only: the order of use is not kept, and nothing is removed there either
            os.utime(record_path)
        return CachedPlan(plan, record.report, path, False, f"found {path}, built {record.built_at}.")

    def _keep(self, key: EngineKey, built: BuiltPlan) -> Path:
        if len(built.plan) > self.max_bytes:
            raise _Unusable(f"{len(built.plan)} bytes are more than the cache's {self.max_bytes}")
        path = self._plan(key.digest)
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        digest = hashlib.sha256(built.plan).hexdigest()
        record = CacheRecord(FORMAT, key, len(built.plan), digest, now, built.report)
        write_whole(path, built.plan)
        write_whole(path.with_suffix(".json"), (json.dumps(plain_from(record), indent=1) + "\n").encode())
        return path

    def _remove(self, digest: str) -> None:
        """Everything of one key, the record first; the caller holds its lock. What cannot be removed is overwritten."""
        for path in (self.folder / f"{digest}.json", self._plan(digest), *self.folder.glob(f".{digest}.*.part")):
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def _bound(self, keep: str, max_bytes: int | None = None) -> int:
        """Remove what was cut short, then the engines not used for longest. Keys that others work on are left alone."""
        limit = self.max_bytes if max_bytes is None else max_bytes
        files: dict[str, int] = {}
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if own := OWN_FILE.match(path.name):
                files[own[1]] = files.get(own[1], 0) + _size(path)
        order = {entry.digest: entry.used_at for entry in self.entries()}
        total, freed = sum(files.values()), 0
        for digest in sorted(set(files) - {keep}, key=lambda d: order.get(d, 0.0)):
            if digest in order and total - freed <= limit:
                break
            try:
                with self._locked(digest, timeout_s=0):
                    self._remove(digest)
                    freed += files[digest]
            except (OSError, PosekitError):
                continue
        return freed

    @contextmanager
    def _locked(self, digest: str, timeout_s: float | None = None) -> Iterator[None]:
        """Hold the key's lock. OSError where the folder allows none, EngineError after the time-out.

        The file is removed by its holder, so a lock counts only if its file is still the one in the folder.
        """
        import fcntl  # Unix alone has it, and so has TensorRT on the devices that matter

        path = self.folder / f"{digest}.lock"
        limit_s = self.lock_timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + limit_s
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _same_file(descriptor, path):
                    break
            except BlockingIOError:  # held by another
                pass
            except OSError:
                os.close(descriptor)
                raise
            os.close(descriptor)
            if time.monotonic() >= deadline:
                raise EngineError(
                    f"engine {digest[:12]}",
                    got=f"another process building it for more than {limit_s:g} s",
                    expected="its engine",
                    remedy=f"Wait for it, end it, or set POSEKIT_CACHE to another folder than {self.folder}.",
                )
            time.sleep(POLL_S)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            os.close(descriptor)


def _record(path: Path) -> CacheRecord:
    try:
        record = record_from(CacheRecord, json.loads(path.read_bytes()))
    except (ValueError, RecursionError, EngineError) as error:  # RecordProblem is a ValueError
        raise _Unusable(f"the record {path.name[:12]} was damaged ({str(error)[:120]})") from error
    if record.format != FORMAT or record.key.digest != path.stem:
        raise _Unusable(f"the record {path.name[:12]} is of another posekit or another key")
    return record


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
