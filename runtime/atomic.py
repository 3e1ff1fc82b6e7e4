"""Files that appear whole or not at all, and the folders that they go to."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from posekit.runtime.errors import OutputError


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A writable, seekable file that takes the place of `path` when the block ends well; else `path` stays as it was.

    Raises OutputError when the folder cannot be written or the disk is full.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(part, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise OutputError(
            f"output {path}",
            got=error,
            expected="a writable folder with room",
            remedy="Make room or choose another place; what stood there is unchanged.",
        ) from error
    finally:
        _remove(part)


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write one file through `replacing`."""
    with replacing(path) as file:
        file.write(content)


def make_folder(folder: Path, what: str) -> None:
    """With its parents; one that is there is fine. what: of the OutputError where it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{what} {folder}", got=error, expected="a folder that can be made", remedy="Name another one."
        ) from error


def _remove(part: Path) -> None:
    try:
        part.unlink(missing_ok=True)
    except OSError:  # the folder itself is unusable, which has been said already
        return
