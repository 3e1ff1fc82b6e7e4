"""Write a bundle: a stored zip whose bytes follow from its content alone."""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from posekit.runtime.atomic import replacing
from posekit.runtime.bundle import LOCAL_HEADER_BYTES, MANIFEST, MAX_MANIFEST_BYTES, MAX_MEMBER_BYTES, Bundle
from posekit.runtime.errors import BundleError, ExportError, OutputError, SourceError
from posekit.runtime.manifest import Manifest, Member, json_from_manifest

Content = bytes | Path
ALIGNMENT = 64  # bytes: members can be mapped and used where they lie
PADDING_ID = (0xD935).to_bytes(2, "little")  # extra field of Android's zipalign: "alignment padding"
ZIP64_EXTRA_BYTES = 20
EPOCH = (1980, 1, 1, 0, 0, 0)  # the first date that a zip can hold
CHUNK_BYTES = 1 << 20
ZIP_START = b"PK\3\4"


@dataclass(frozen=True)
class Packed:
    """manifest: complete, as written.  size: of the file in bytes."""

    path: Path
    manifest: Manifest
    size: int


def pack_bundle(path: Path, manifest: Manifest, members: Mapping[str, Content]) -> Packed:
    """Write `path`; `manifest.files` is filled in here. Equal input gives equal bytes.

    members: name -> bytes, or a file to copy. What was written is opened and verified before it replaces an older bundle.
    Raises ExportError for a bundle that would be refused, SourceError for an unreadable member, OutputError.
    """
    files = {name: _member(name, members[name]) for name in sorted(members)}
    complete = replace(manifest, files=files)
    text = json_from_manifest(complete).encode()
    if len(text) > MAX_MANIFEST_BYTES:
        raise _refused(f"a manifest of {len(text)} bytes", f"at most {MAX_MANIFEST_BYTES}")
    with replacing(path) as file:
        _write_zip(file, {MANIFEST: (text, len(text))} | {n: (members[n], files[n].size) for n in files})
        file.flush()
        try:
            Bundle(Path(file.name)).close()
        except BundleError as error:
            raise _refused(error, "a bundle that opens") from error
        size = file.seek(0, 2)
    return Packed(path, complete, size)


def check_output(path: Path) -> None:
    """OutputError where `pack_bundle` would fail at its end, or replace something that is no bundle."""
    try:
        if not os.path.exists(path):
            with tempfile.TemporaryFile(dir=path.parent):
                return
        with open(path, "rb") as file:
            if file.read(len(ZIP_START)) == ZIP_START:
                return
        problem: object = "a file that is no bundle"
    except OSError as error:
        problem = error
    raise OutputError(
        f"output {path}",
        got=problem,
        expected="a new file in a writable folder, or a bundle to replace",
        remedy="Choose another place; what stands there is unchanged.",
    )


def _write_zip(file: BinaryIO, members: Mapping[str, tuple[Content, int]]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, (content, size) in members.items():
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.create_system, entry.external_attr, entry.file_size = 3, 0o644 << 16, size
            entry.extra = _padding(file.tell(), name, size)
            with archive.open(entry, "w") as target:
                for chunk in _chunks(name, content):
                    target.write(chunk)


def _padding(offset: int, name: str, size: int) -> bytes:
    """The extra field after which a member's bytes start at a multiple of ALIGNMENT."""
    zip64 = ZIP64_EXTRA_BYTES if size * 1.05 > zipfile.ZIP64_LIMIT else 0  # zipfile's own rule
    gap = -(offset + LOCAL_HEADER_BYTES + len(name.encode()) + zip64 + 4) % ALIGNMENT
    return PADDING_ID + gap.to_bytes(2, "little") + bytes(gap)


def _member(name: str, content: Content) -> Member:
    digest, size = hashlib.sha256(), 0
    for chunk in _chunks(name, content):
        digest.update(chunk)
        size += len(chunk)
    if size > MAX_MEMBER_BYTES:
        raise _refused(f"{name} of {size} bytes", f"members of at most {MAX_MEMBER_BYTES}")
    return Member(size, digest.hexdigest())


def _chunks(name: str, content: Content) -> Iterator[bytes | memoryview]:
    if isinstance(content, Path):
        try:
            with open(content, "rb") as source:
                while chunk := source.read(CHUNK_BYTES):
                    yield chunk
        except OSError as error:
            raise SourceError(
                f"bundle member {name}", got=error, expected="a readable file", remedy="Export it again."
            ) from error
    else:
        yield memoryview(content)


def _refused(got: object, expected: object) -> ExportError:
    return ExportError("bundle", got=got, expected=expected, remedy="Correct the recipe; nothing was written.")
