"""The folder in which an export works, beside its output: gone when the export ends, however it ends."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from posekit.runtime.errors import OutputError

PREFIX = ".posekit-export-"


@contextmanager
def scratch_beside(out: Path) -> Iterator[Path]:
    """A folder on the file system of `out`. OutputError where none can be made.

    The folder is locked while its process lives. What a killed export left (gigabytes, for large networks) is removed by
    the next one in the same place.
    """
    parent = out.resolve().parent
    _remove_abandoned(parent)
    try:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        lock = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise OutputError(
            f"output {out}", got=error, expected="a writable folder", remedy="Choose another place."
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _remove_abandoned(parent: Path) -> None:
    for folder in parent.glob(f"{PREFIX}*"):
        with suppress(OSError):  # somebody else's: its owner removes it
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: its export is alive
                shutil.rmtree(folder)
            finally:
                os.close(lock)
