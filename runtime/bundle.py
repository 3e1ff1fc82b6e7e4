"""Read-only access to a bundle: a stored zip or a folder.

Nothing is ever extracted or unpickled. Every member is named, sized and hashed by manifest.json, which comes first.
The format is specified in README.md, "The bundle".
"""

from __future__ import annotations

import hashlib
import mmap
import os
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from types import TracebackType

from posekit.runtime.errors import BundleError
from posekit.runtime.manifest import Manifest, Member, manifest_from_json

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 1 << 20
MAX_MEMBER_BYTES = 4 << 30
LOCAL_HEADER_BYTES = 30  # PKWARE APPNOTE 4.3.7
COPY_AGAIN = "Copy or export the bundle again."


class Bundle:
    """An open bundle. Use as a context manager, or close()."""

    def __init__(self, path: Path | str) -> None:
        """Open and verify every member. BundleError if anything is not as the manifest says."""
        self.path = Path(path)
        open_members = _folder_members if self.path.is_dir() else _zip_members
        self._views, self._close = open_members(self.path)
        try:
            self.manifest = self._verified_manifest()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Bundle:
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
        for name, member in manifest.files.items():
            _verify_member(self.path, name, self._views[name], member)
        return manifest


def _verify_member(path: Path, name: str, view: memoryview, member: Member) -> None:
    if len(view) != member.size:
        raise _damaged(path, f"{name} of {len(view)} bytes", f"{member.size} bytes")
    digest = hashlib.sha256(view).hexdigest()
    if digest != member.sha256:
        raise _damaged(path, f"{name} with sha256 {digest[:12]}…", f"{member.sha256[:12]}…")


def _damaged(path: Path, got: object, expected: object) -> BundleError:
    return BundleError(f"bundle {path}", got=got, expected=expected, remedy=COPY_AGAIN)


def _check_name(path: Path, name: str) -> None:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or str(pure) != name or "\0" in name:
        raise _damaged(path, f"member name {name!r}", "a plain relative path")


Members = tuple[dict[str, memoryview], Callable[[], None]]


def _zip_members(path: Path) -> Members:
    """Views into the memory-mapped file, one per stored member."""
    try:
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            with zipfile.ZipFile(file) as archive:
                views = _checked_views(path, archive.infolist(), memoryview(mapped))
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as error:
        raise _damaged(path, error, "a posekit bundle (stored zip or folder)") from error
    return views, lambda: None  # the mapping goes with its last view


def _checked_views(path: Path, infos: list[zipfile.ZipInfo], file: memoryview) -> dict[str, memoryview]:
    names = [info.filename for info in infos]
    if len(set(names)) != len(names):
        raise _damaged(path, "one member name twice", "distinct members")
    if names[:1] != [MANIFEST]:
        raise _damaged(path, f"first member {names[:1]}", MANIFEST)
    spans = [_span(path, info, file) for info in infos]
    for (_, end), (start, _) in zip(sorted(spans), sorted(spans)[1:], strict=False):
        if start < end:
            raise _damaged(path, "members that overlap", "members one after the other")
    return {name: file[start:end] for name, (start, end) in zip(names, spans, strict=True)}


def _span(path: Path, info: zipfile.ZipInfo, file: memoryview) -> tuple[int, int]:
    """Where a member's bytes lie; its local header is read by hand because zipfile only copies."""
    name, start = info.filename, info.header_offset
    _check_name(path, name)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 0x1:
        raise _damaged(path, f"{name} compressed or encrypted", "stored members")
    limit = MAX_MANIFEST_BYTES if name == MANIFEST else MAX_MEMBER_BYTES
    if info.file_size > limit:
        raise _damaged(path, f"{name} of {info.file_size} bytes", f"at most {limit}")
    header = file[start : start + LOCAL_HEADER_BYTES]
    if bytes(header[:4]) != b"PK\3\4":
        raise _damaged(path, f"{name} with a broken header", "a local file header")
    name_bytes, extra_bytes = (int.from_bytes(header[i : i + 2], "little") for i in (26, 28))
    start += LOCAL_HEADER_BYTES + name_bytes + extra_bytes
    if start + info.file_size > len(file):
        raise _damaged(path, f"{name} past the end of the file", "a complete file")
    return start, start + info.file_size


def _folder_members(path: Path) -> Members:
    """Views of the files of an unpacked bundle; links are refused, so that nothing outside is read."""
    views: dict[str, memoryview] = {}
    for root, folders, files in os.walk(path):
        for entry in (Path(root) / name for name in (*folders, *files)):
            if entry.is_symlink():
                raise _damaged(path, f"link {entry.relative_to(path)}", "plain files")
        for entry in (Path(root) / name for name in files):
            limit = MAX_MANIFEST_BYTES if entry == path / MANIFEST else MAX_MEMBER_BYTES
            if entry.stat().st_size > limit:
                raise _damaged(path, f"{entry.name} of {entry.stat().st_size} bytes", f"at most {limit}")
            try:
                with open(entry, "rb") as file:
                    size = os.fstat(file.fileno()).st_size
                    view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b"")
            except OSError as error:
                raise _damaged(path, error, "readable files") from error
            views[entry.relative_to(path).as_posix()] = view
    return views, lambda: None
