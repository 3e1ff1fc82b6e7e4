"""Hostile bundles: whatever the file, opening it ends in a bundle or in a BundleError."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posekit.runtime import bundle as bundle_module
from posekit.runtime.bundle import MANIFEST, Bundle
from posekit.runtime.errors import BundleError

CONTENT = {"pose.onnx": b"graph" * 40, "models/1.safetensors": b"mesh"}


def manifest_of(content: dict[str, bytes], **changes: Any) -> bytes:
    files = {name: {"size": len(c), "sha256": hashlib.sha256(c).hexdigest()} for name, c in content.items()}
    crops = {"name": "crops", "dtype": "uint8", "shape": ["batch", 8, 8, 3]}
    graph = {"role": "pose", "variants": {"fp32": "pose.onnx"}, "inputs": [crops], "outputs": []}
    entry = {"id": 1, "name": "box", "diameter_m": 0.1, "bbox_min_m": [0, 0, 0], "bbox_max_m": [1, 1, 1]}
    path = {"kind": "regressor", "graph": "pose", "crop": {"rule": "square", "size_px": 8}, "object_ids": [1]}
    manifest = {
        "format": 1,
        "name": "toy",
        "system": "own",
        "provenance": {},
        "graphs": {"pose": graph},
        "objects": [{**entry, "model": "models/1.safetensors"}],
        "paths": {"main": path},
        "default_path": "main",
        "files": files,
        **changes,
    }
    return json.dumps(manifest).encode()


def zip_of(members: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members:
            entry = zipfile.ZipInfo("placeholder")
            entry.filename, entry.compress_type = name, compression  # ZipInfo() itself would tidy the name
            archive.writestr(entry, content)
    return buffer.getvalue()


def bundle_of(content: dict[str, bytes], **changes: Any) -> bytes:
    return zip_of([(MANIFEST, manifest_of(content, **changes)), *content.items()])


GOOD = bundle_of(CONTENT)


def replaced(file: bytes, old: bytes, new: bytes, count: int = -1) -> bytes:
    assert old in file
    return file.replace(old, new, count)


def with_field(file: bytes, member: int, offset: int, value: int, size: int) -> bytes:
    """Change a field of the central directory entry of one member."""
    at = -1
    for _ in range(member + 1):
        at = file.index(b"PK\1\2", at + 1)
    at += offset
    return file[:at] + value.to_bytes(size, "little") + file[at + size :]


def nested_zip_overlap() -> bytes:
    """The second member's header and bytes lie inside the first one's."""
    inner = zip_of([("models/1.safetensors", b"mesh")])
    inner = inner[: inner.index(b"PK\1\2")]
    content = {"pose.onnx": inner, "models/1.safetensors": b"mesh"}
    file = bundle_of(content)
    return with_field(file, 2, 42, file.index(inner), 4)


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty file": (lambda: b"", "bundle"),
    "not a zip": (lambda: b"posekit" * 100, "zip"),
    "empty zip": (lambda: zip_of([]), "first member"),
    "no manifest": (lambda: zip_of(list(CONTENT.items())), "first member"),
    "manifest not first": (
        lambda: zip_of([*CONTENT.items(), (MANIFEST, manifest_of(CONTENT))]),
        "first member",
    ),
    "something before the zip": (lambda: b"#!/bin/sh\n" + GOOD, "overlap"),
    "duplicated member": (
        lambda: replaced(bundle_of({**CONTENT, "pose.onnY": b"graph" * 40}), b"pose.onnY", b"pose.onnx"),
        "twice",
    ),
    "escaping name": (lambda: bundle_of({**CONTENT, "../../etc/x": b""}), "plain relative path"),
    "hidden escape": (lambda: bundle_of({**CONTENT, "a/../../x": b""}), "plain relative path"),
    "absolute name": (lambda: bundle_of({**CONTENT, "/etc/x": b""}), "plain relative path"),
    "backslash": (lambda: bundle_of({**CONTENT, "..\\x": b""}), "plain relative path"),
    "drive letter": (lambda: bundle_of({**CONTENT, "C:x": b""}), "plain relative path"),
    "empty name": (lambda: bundle_of({**CONTENT, "": b""}), "plain relative path"),
    "folder entry": (lambda: bundle_of({**CONTENT, "models/": b""}), "plain relative path"),
    "name beyond ASCII": (lambda: bundle_of({**CONTENT, "schön": b""}), "plain relative path"),
    "compressed member": (
        lambda: zip_of([(MANIFEST, manifest_of(CONTENT)), *CONTENT.items()], zipfile.ZIP_DEFLATED),
        "stored",
    ),
    "unknown compression": (lambda: with_field(GOOD, 1, 10, 99, 2), "stored"),
    "encrypted member": (lambda: with_field(GOOD, 1, 8, 1, 2), "stored"),
    "oversized manifest": (lambda: zip_of([(MANIFEST, b" " * ((1 << 20) + 1))]), "at most 1048576"),
    "other size in the directory": (lambda: with_field(with_field(GOOD, 1, 24, 199, 4), 1, 20, 199, 4), "200 bytes"),
    "size past the end": (lambda: with_field(with_field(GOOD, 1, 24, 10**6, 4), 1, 20, 10**6, 4), "past the end"),
    "offset past the end": (lambda: with_field(GOOD, 1, 42, 10**6, 4), "header"),
    "offset into another member": (lambda: with_field(GOOD, 2, 42, GOOD.index(b"graph"), 4), "header"),
    "two entries, one place": (lambda: with_field(GOOD, 2, 42, GOOD.index(b"PK\3\4", 4), 4), "header"),
    "member inside a member": (nested_zip_overlap, "overlap"),
    "other name in the local header": (lambda: replaced(GOOD, b"pose.onnxgraph", b"pose.onnYgraph"), "header"),
    "changed byte": (lambda: replaced(GOOD, b"mesh", b"mush"), "sha256"),
    "missing member": (lambda: zip_of([(MANIFEST, manifest_of(CONTENT)), ("pose.onnx", b"graph" * 40)]), "models/1"),
    "extra member": (
        lambda: zip_of([(MANIFEST, manifest_of(CONTENT)), *CONTENT.items(), ("virus", b"")]),
        "virus",
    ),
    "unknown manifest key": (lambda: bundle_of(CONTENT, run="rm -rf"), "'run'"),
    "later format": (lambda: bundle_of(CONTENT, format=2), "format: got 2, expected 1"),
    "manifest that is no JSON": (lambda: zip_of([(MANIFEST, b"{"), *CONTENT.items()]), "manifest.json"),
    "manifest that is no text": (lambda: zip_of([(MANIFEST, b"\xff\xfe\xff"), *CONTENT.items()]), "manifest.json"),
    "nested JSON bomb": (lambda: zip_of([(MANIFEST, b"[" * 1_000_000), *CONTENT.items()]), "manifest.json"),
    "huge number": (lambda: zip_of([(MANIFEST, b'{"format": ' + b"9" * 10_000 + b"}")]), "manifest.json"),
}


@pytest.mark.parametrize(("make", "named"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_bundle_is_refused(make: Callable[[], bytes], named: str, tmp_path: Path) -> None:
    path = tmp_path / "toy.posekit"
    path.write_bytes(make())
    with pytest.raises(BundleError) as caught:
        Bundle(path)
    assert named in str(caught.value)


@pytest.mark.parametrize("held_back", [{"int8": "Slower."}, {"fp32": "Slower."}, {"fp32": ""}, {"fp64": "Slower."}])
def test_only_some_of_the_variants_are_held_back_and_with_a_reason(held_back: dict[str, str], tmp_path: Path) -> None:
    graphs = json.loads(manifest_of(CONTENT))["graphs"]
    graphs["pose"]["held_back"] = held_back
    path = tmp_path / "toy.posekit"
    path.write_bytes(bundle_of(CONTENT, graphs=graphs))
    with pytest.raises(BundleError, match="held_back"):
        Bundle(path)


def test_of_several_damaged_members_the_first_one_listed_is_named(tmp_path: Path) -> None:
    """However long each of them takes to verify, whichever follow."""
    content = {f"models/{n}.safetensors": bytes([n]) * (2_000_000 >> n) for n in range(8)} | CONTENT
    path = tmp_path / "toy.posekit"
    for first in range(8):
        damaged = {name: b"x" * len(c) if f"models/{first}" <= name else c for name, c in content.items()}
        path.write_bytes(zip_of([(MANIFEST, manifest_of(content)), *damaged.items()]))
        with pytest.raises(BundleError, match=rf"models/{first}\.safetensors with sha256"):
            Bundle(path)


def test_a_good_bundle_opens(tmp_path: Path) -> None:
    path = tmp_path / "toy.posekit"
    path.write_bytes(GOOD)
    with Bundle(path) as bundle:
        view = bundle.read("pose.onnx")
        assert bytes(view) == CONTENT["pose.onnx"]
        assert view.readonly
        with pytest.raises(BundleError, match=r"models/1\.safetensors"):
            bundle.read("absent")
    bundle.close()
    assert bytes(view) == CONTENT["pose.onnx"]  # what was read stays readable


def test_no_bundle_there(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="No such file"):
        Bundle(tmp_path / "absent.posekit")
    with pytest.raises(BundleError, match="name too long"):
        Bundle(tmp_path / ("x" * 5000))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bundles") / "toy.posekit"


def opened(path: Path, file: bytes) -> None:
    """Open, and if that works, everything is as it was packed."""
    path.write_bytes(file)
    with Bundle(path) as bundle:
        assert {name: bytes(bundle.read(name)) for name in CONTENT} == CONTENT


@settings(max_examples=150)
@given(st.integers(0, len(GOOD) - 1))
def test_a_truncated_bundle_is_refused(scratch: Path, length: int) -> None:
    with pytest.raises(BundleError):
        opened(scratch, GOOD[:length])


@settings(max_examples=400)
@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 7)), min_size=1, max_size=3))
def test_flipped_bits_change_nothing_or_are_refused(scratch: Path, flips: list[tuple[int, int]]) -> None:
    file = bytearray(GOOD)
    for at, bit in flips:
        file[at] ^= 1 << bit
    with suppress(BundleError):
        opened(scratch, bytes(file))


@settings(max_examples=150)
@given(st.integers(GOOD.index(b"PK\1\2"), len(GOOD) - 1), st.binary(min_size=1, max_size=8))
def test_a_rewritten_directory_changes_nothing_or_is_refused(scratch: Path, at: int, noise: bytes) -> None:
    with suppress(BundleError):
        opened(scratch, GOOD[:at] + noise + GOOD[at + len(noise) :])


json_values: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just([]) | st.just({})
)


@settings(max_examples=150)
@given(st.data())
def test_a_manifest_with_other_values_is_read_or_refused(scratch: Path, data: st.DataObject) -> None:
    manifest = json.loads(manifest_of(CONTENT))
    place: Any = manifest
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not isinstance(place[key], (dict, list)) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(json_values)
    with suppress(BundleError):
        opened(scratch, zip_of([(MANIFEST, json.dumps(manifest).encode()), *CONTENT.items()]))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "toy.posekit"
    for name, content in {MANIFEST: manifest_of(CONTENT), **CONTENT}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_a_folder_is_the_same_bundle(folder: Path) -> None:
    with Bundle(folder) as bundle:
        assert {name: bytes(bundle.read(name)) for name in CONTENT} == CONTENT


def _link_file(folder: Path) -> None:
    (folder / "pose.onnx").rename(folder.parent / "pose.onnx")
    (folder / "pose.onnx").symlink_to(folder.parent / "pose.onnx")


def _link_folder(folder: Path) -> None:
    (folder / "models").rename(folder.parent / "models")
    (folder / "models").symlink_to(folder.parent / "models")


def _pipe(folder: Path) -> None:
    (folder / "pose.onnx").unlink()
    os.mkfifo(folder / "pose.onnx")


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "link to a file": (_link_file, "link"),
    "link to a folder": (_link_folder, "link"),
    "pipe": (_pipe, "pipe"),
    "missing file": (lambda folder: (folder / "pose.onnx").unlink(), "pose.onnx"),
    "missing manifest": (lambda folder: (folder / MANIFEST).unlink(), MANIFEST),
    "extra file": (lambda folder: (folder / "models" / "x").touch(), "models/x"),
    "odd name": (lambda folder: (folder / "a\\b").touch(), "plain relative path"),
    "empty file": (lambda folder: (folder / "pose.onnx").write_bytes(b""), "0 bytes"),
    "changed file": (lambda folder: (folder / "pose.onnx").write_bytes(b"GRAPH" * 40), "sha256"),
    "long manifest": (lambda folder: (folder / MANIFEST).write_bytes(b" " * ((1 << 20) + 1)), "at most"),
}


@pytest.mark.parametrize(("spoil", "named"), SPOILT.values(), ids=SPOILT.keys())
def test_a_spoilt_folder_is_refused(spoil: Callable[[Path], object], named: str, folder: Path) -> None:
    spoil(folder)
    with pytest.raises(BundleError) as caught:
        Bundle(folder)
    assert named in str(caught.value)


def test_a_file_too_large_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_module, "MAX_MEMBER_BYTES", 100)
    (tmp_path / "file").write_bytes(GOOD)
    for path in (folder, tmp_path / "file"):
        with pytest.raises(BundleError, match="at most 100"):
            Bundle(path)


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    path = tmp_path / "toy.posekit"
    for file in (GOOD, GOOD[:-30], GOOD.replace(b"mesh", b"mush")):
        path.write_bytes(file)
        with suppress(BundleError), Bundle(path):
            pass
    still_open = [os.readlink(fd) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
    assert str(path) not in still_open


@pytest.mark.parametrize(
    "stale",
    [
        {"solver": {"method": "p3p-ransac", "iterations": 9, "reprojection_px": 2}},
        {"matcher": "pose"},
        {"banks": {"1": "models/1.safetensors"}},
    ],
)
def test_what_a_path_of_that_kind_never_reads_is_refused(stale: dict[str, Any], tmp_path: Path) -> None:
    path = {"kind": "regressor", "graph": "pose", "crop": {"rule": "square", "size_px": 8}, "object_ids": [1]}
    file = tmp_path / "toy.posekit"
    file.write_bytes(bundle_of(CONTENT, paths={"main": path | stale}))
    with pytest.raises(BundleError, match="regressor"):
        Bundle(file)
