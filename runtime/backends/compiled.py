"""What a backend compiled of a graph, kept on disk and found by what it was compiled from. Only ever a cache.

`KEY.compiled` begins with the SHA-256 of the rest, so a backend is never given a damaged file. It is renamed into place,
and two processes that compile the same write the same, so there are no locks.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from posekit.runtime.atomic import make_folder, write_whole
from posekit.runtime.cache_folder import cache_folder
from posekit.runtime.errors import EngineError, OutputError

DIGEST_BYTES = hashlib.sha256().digest_size
MAX_BYTES = 1 << 30


class Unusable(Exception):
    """Why there is nothing to be had under a key."""


class CompiledCache:
    """A folder of compiled graphs, bounded in size; the ones not used for longest go first."""

    def __init__(self, folder: Path, *, max_bytes: int = MAX_BYTES) -> None:
        self.folder, self.max_bytes = folder, max_bytes

    def path(self, made_of: Mapping[str, object]) -> Path:
        """The file of what was compiled from all of this; the values are plain JSON."""
        key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
        return self.folder / f"{key}.compiled"

    def found(self, path: Path) -> bytes:
        """What `keep` wrote, verified, and marked as used. Raises Unusable."""
        try:
            content = path.read_bytes()
        except FileNotFoundError as error:
            raise Unusable(f"nothing is kept as {path}") from error
        except OSError as error:
            raise Unusable(f"{path} cannot be read ({error})") from error
        compiled = content[DIGEST_BYTES:]
        if hashlib.sha256(compiled).digest() != content[:DIGEST_BYTES]:
            raise Unusable(f"{path} was damaged")
        with suppress(OSError):  # a read-only folder keeps no order of use, and nothing is removed there either
            os.utime(path)
        return compiled

    def keep(self, path: Path, compiled: bytes) -> str:
        """Write the file, or carry on without it: a sentence, for people, says which."""
        if len(compiled) > self.max_bytes:
            return f"Not kept: {len(compiled)} bytes are more than the cache's {self.max_bytes}."
        try:
            make_folder(self.folder, "cache")
            write_whole(path, hashlib.sha256(compiled).digest() + compiled)
        except OutputError as error:
            return f"Not kept: {error.got}."
        self._bound(path)
        return f"Kept as {path}."

    def _bound(self, kept: Path) -> None:
        """Remove the oldest, and among them what a killed process left half written."""
        left = self.max_bytes
        with suppress(OSError):  # others write and remove here too
            files = [*self.folder.glob("*.compiled"), *self.folder.glob(".*.compiled.*.part")]
            for path in sorted(files, key=lambda file: (file == kept, file.stat().st_mtime), reverse=True):
                left -= path.stat().st_size
                if left < 0 and path != kept:
                    path.unlink(missing_ok=True)


def user_cache(kind: str) -> CompiledCache | None:
    """In the user's cache folder; None for a user without a home, who has named no other folder."""
    try:
        return CompiledCache(cache_folder(kind))
    except EngineError:
        return None
