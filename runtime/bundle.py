"""Read-only access to a bundle: a stored zip or a folder.

Nothing is ever extracted or unpickled. Every member is named, sized and hashed by manifest.json, which comes first.
The format is specified in README.md, "The bundle".
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
import struct
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING

from posekit.runtime.errors import BankError, BundleError, InputError
from posekit.runtime.manifest import Manifest, Member, manifest_from_json

if TYPE_CHECKING:
    from typing_extensions import Self

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 1 << 20
MAX_MEMBER_BYTES = 4 << 30
LOCAL_HEADER_BYTES = 30  # PKWARE APPNOTE 4.3.7
ZIP_PROBLEMS = (OSError, ValueError, zipfile.BadZipFile, NotImplementedError, OverflowError, struct.error)
COPY_AGAIN = "Copy or export the bundle again."


class Bundle:
    """An open bundle. Use as a context manager, or close()."""

    def __init__(self, path: Path | str, banks: Mapping[int, Path | str] | None = None) -> None:
        """Open and verify every member. BundleError if anything is not as the manifest says.

        banks: by object id, bank files that take the place of the bundle's own (posekit bank build -o X.safetensors), so
        that several bundles can share them; what the bundle knows of its own bank's scores does not hold for them.
        """
        self.path = Path(path)
        open_members = _folder_members if os.path.isdir(path) else _zip_members
        self._views, self._close = open_members(self.path)
        try:
            self.manifest = self._verified_manifest()
            for object_id, file in (banks or {}).items():
                self._take_bank(object_id, Path(file))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def read(self, member: str) -> memoryview:
        """The bytes of a member, not copied; read-only; valid while the bundle is open or the view lives."""
        if member not in self._views:
            raise BundleError(
                f"{self.path}: member {member!r}", got="nothing", expected=sorted(self._views), remedy="Name a member."
            )
        return self._views[member]

    def close(self) -> None:
        """Give back the file. Twice is harmless; arrays that still look into it stay valid until they go."""
        self._views = {}
        self._close()

    def _verified_manifest(self) -> Manifest:
        if MANIFEST not in self._views:
            raise _damaged(self.path, f"no {MANIFEST}", f"{MANIFEST} as the first member")
        manifest = manifest_from_json(bytes(self._views[MANIFEST]))
        members = set(self._views) - {MANIFEST}
        if members != set(manifest.files):
            odd = sorted(members ^ set(manifest.files))
            raise _damaged(self.path, f"members that differ from the manifest: {odd[:4]}", "exactly those it lists")
        with ThreadPoolExecutor() as pool:  # hashing is most of opening, and leaves the other cores free to hash too
            list(pool.map(self._verify_member, manifest.files, manifest.files.values()))
        return manifest

    def _take_bank(self, object_id: int, file: Path) -> None:
        """As a member with the file's own name, in every path that has a bank of the object."""
        name, key = str(file), str(object_id)
        paths = {n: path for n, path in self.manifest.paths.items() if key in path.banks}
        if not paths:
            raise InputError(
                f"bank {file}",
                got=f"object {object_id}",
                expected="an object that a path of the bundle has a bank of",
                remedy="posekit bank add adds an object; see posekit inspect.",
            )
        try:
            self._views[name] = _file_view(file.parent, file.name)
        except (OSError, ValueError) as error:
            raise BankError(
                f"bank {file}", got=error, expected="a readable bank file", remedy="Check the path."
            ) from error
        member = Member(len(self._views[name]), hashlib.sha256(self._views[name]).hexdigest())
        changed = {
            n: replace(
                path,
                banks=path.banks | {key: name},
                rejection={i: rejection for i, rejection in path.rejection.items() if i != key},
            )
            for n, path in paths.items()
        }
        self.manifest = replace(
            self.manifest, paths=self.manifest.paths | changed, files=self.manifest.files | {name: member}
        )

    def _verify_member(self, name: str, member: Member) -> None:
        view = self._views[name]
        if len(view) != member.size:
            raise _damaged(self.path, f"{name} of {len(view)} bytes", f"{member.size} bytes")
        digest = hashlib.sha256(view).hexdigest()
        if digest != member.sha256:
            raise _damaged(self.path, f"{name} with sha256 {digest[:12]}…", f"{member.sha256[:12]}…")


def _damaged(path: Path, got: object, expected: object) -> BundleError:
    return BundleError(f"bundle {path}", got=got, expected=expected, remedy=COPY_AGAIN)


def _check_name(path: Path, name: str) -> None:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or str(pure) != name or not name.isascii() or set(name) & set("\\\0:"):
        raise _damaged(path, f"member name {name!r}", "a plain relative path")


Members = tuple[dict[str, memoryview], Callable[[], None]]


def _zip_members(path: Path) -> Members:
    """Views into the memory-mapped file, one per stored member."""
    try:
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            with zipfile.ZipFile(file) as archive:
                views = _checked_views(path, archive.infolist(), memoryview(mapped))
    except ZIP_PROBLEMS as error:
        raise _damaged(path, error, "a posekit bundle (stored zip or folder)") from error
    return views, lambda: None  # the mapping goes with its last view


def _checked_views(path: Path, infos: list[zipfile.ZipInfo], file: memoryview) -> dict[str, memoryview]:
    names = [info.filename for info in infos]
    if len(set(names)) != len(names):
        raise _damaged(path, "one member name twice", "distinct members")
    if names[:1] != [MANIFEST]:
        raise _damaged(path, f"first member {names[:1]}", MANIFEST)
    spans = [_span(path, info, file) for info in infos]
    ends = [0, *(end for _, _, end in sorted(spans))]
    if spans[0][0] != 0 or any(start < end for (start, _, _), end in zip(sorted(spans), ends, strict=False)):
        raise _damaged(path, "members that overlap", "members one after the other, from the first byte")
    return {name: file[start:end] for name, (_, start, end) in zip(names, spans, strict=True)}


def _span(path: Path, info: zipfile.ZipInfo, file: memoryview) -> tuple[int, int, int]:
    """Where a member's header, bytes and end lie; the local header is read by hand because zipfile only copies."""
    name, start = info.filename, info.header_offset
    _check_name(path, name)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 0x1:
        raise _damaged(path, f"{name} compressed or encrypted", "stored members")
    _check_size(path, name, info.file_size)
    header = bytes(file[max(start, 0) : max(start, 0) + LOCAL_HEADER_BYTES])
    name_bytes, extra_bytes = (int.from_bytes(header[i : i + 2], "little") for i in (26, 28))
    first = start + LOCAL_HEADER_BYTES + name_bytes + extra_bytes
    local_name = bytes(file[first - extra_bytes - name_bytes : first - extra_bytes])
    if start < 0 or header[:4] != b"PK\3\4" or local_name != name.encode():
        raise _damaged(path, f"{name} with a broken header", "a local file header")
    if first + info.file_size > len(file):
        raise _damaged(path, f"{name} past the end of the file", "a complete file")
    return start, first, first + info.file_size


def _check_size(path: Path, name: str, size: int) -> None:
    limit = MAX_MANIFEST_BYTES if name == MANIFEST else MAX_MEMBER_BYTES
    if size > limit:
        raise _damaged(path, f"{name} of {size} bytes", f"at most {limit}")


def _folder_members(path: Path) -> Members:
    """Views of the files of an unpacked bundle; links are refused, so that nothing outside is read."""
    views: dict[str, memoryview] = {}
    try:
        for root, folders, files in os.walk(path):
            for entry in (Path(root) / name for name in (*folders, *files)):
                _check_plain(path, entry)
            for entry in (Path(root) / name for name in files):
                name = entry.relative_to(path).as_posix()
                _check_name(path, name)
                views[name] = _file_view(path, name)
    except (OSError, ValueError) as error:
        raise _damaged(path, error, "readable files") from error
    return views, lambda: None


def _check_plain(path: Path, entry: Path) -> None:
    mode = entry.lstat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a pipe would wait for ever
        kind = "link" if stat.S_ISLNK(mode) else "device or pipe"
        raise _damaged(path, f"{kind} {entry.relative_to(path)}", "plain files")


def _file_view(path: Path, name: str) -> memoryview:
    with open(path / name, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        _check_size(path, name, size)
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b"")
