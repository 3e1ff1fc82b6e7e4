"""Packing: equal input gives equal bytes, members are aligned, and a failure leaves the old bundle alone."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
from full_disk import full_disk

from posekit.export.pack import ALIGNMENT, check_output, pack_bundle
from posekit.runtime.atomic import replacing, write_whole
from posekit.runtime.bundle import LOCAL_HEADER_BYTES, MANIFEST, Bundle
from posekit.runtime.crop import CropPreset
from posekit.runtime.errors import ExportError, OutputError, SourceError
from posekit.runtime.manifest import GraphEntry, Manifest, ObjectEntry, PathEntry
from posekit.runtime.tensor import TensorSpec

TOY = Manifest(
    format=1,
    name="toy",
    system="own",
    provenance={"posekit": "0"},
    graphs={"pose": GraphEntry("pose", {"fp32": "pose.onnx"}, (TensorSpec("crops", "uint8", ("batch", 8, 8, 3)),), ())},
    objects=(ObjectEntry(1, "box", 0.1, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "models/1.safetensors"),),
    paths={"main": PathEntry("regressor", "pose", CropPreset("square", 8), (1,))},
    default_path="main",
    files={},
)
MEMBERS: dict[str, Any] = {"pose.onnx": b"graph" * 1000, "models/1.safetensors": b"mesh"}


def test_what_is_packed_is_read_back(tmp_path: Path) -> None:
    graph = tmp_path / "graph.onnx"
    graph.write_bytes(MEMBERS["pose.onnx"])
    packed = pack_bundle(tmp_path / "toy.posekit", TOY, {**MEMBERS, "pose.onnx": graph})
    assert packed.size == packed.path.stat().st_size
    with Bundle(packed.path) as bundle:
        assert bundle.manifest == packed.manifest
        assert {name: bytes(bundle.read(name)) for name in MEMBERS} == MEMBERS


def test_equal_input_gives_equal_bytes_in_any_order(tmp_path: Path) -> None:
    first, second = (tmp_path / name for name in ("a.posekit", "b.posekit"))
    pack_bundle(first, TOY, MEMBERS)
    pack_bundle(second, TOY, dict(reversed(MEMBERS.items())))
    assert first.read_bytes() == second.read_bytes()


def test_members_are_stored_aligned_and_the_manifest_is_first(tmp_path: Path) -> None:
    path = pack_bundle(tmp_path / "toy.posekit", TOY, MEMBERS).path
    file = path.read_bytes()
    infos = zipfile.ZipFile(path).infolist()
    assert infos[0].filename == MANIFEST
    for info in infos:
        assert info.compress_type == zipfile.ZIP_STORED
        lengths = [
            int.from_bytes(file[info.header_offset + i : info.header_offset + i + 2], "little") for i in (26, 28)
        ]
        assert (info.header_offset + LOCAL_HEADER_BYTES + sum(lengths)) % ALIGNMENT == 0


@pytest.mark.parametrize(
    ("members", "named"),
    [
        ({"pose.onnx": b""}, r"models/1\.safetensors"),
        ({**MEMBERS, "../x": b""}, r"\.\./x"),
        ({**MEMBERS, "schön": b""}, "schön"),
    ],
)
def test_a_bundle_that_would_be_refused_is_not_written(members: dict[str, bytes], named: str, tmp_path: Path) -> None:
    path = tmp_path / "toy.posekit"
    path.write_bytes(b"old")
    with pytest.raises(ExportError, match=named):
        pack_bundle(path, TOY, members)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_bundle(tmp_path: Path) -> None:
    path = tmp_path / "toy.posekit"
    path.write_bytes(b"old")
    with full_disk(1024), pytest.raises(OutputError, match=r"toy\.posekit.*unchanged"):
        pack_bundle(path, TOY, MEMBERS)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_unusable_folder_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for folder in (tmp_path / "file", tmp_path / "absent"):
        with pytest.raises(OutputError, match="writable folder"):
            pack_bundle(folder / "toy.posekit", TOY, MEMBERS)


def test_a_place_that_cannot_be_written_is_known_before_the_work(tmp_path: Path) -> None:
    """Nothing that stands there and is no bundle is replaced: a recipe, say."""
    (tmp_path / "recipe.toml").write_text("name = 1")
    for place in (tmp_path / "recipe.toml", tmp_path, tmp_path / "absent" / "x", tmp_path / "recipe.toml" / "x"):
        with pytest.raises(OutputError, match=f"output {place}"):
            check_output(place)
    pack_bundle(tmp_path / "toy.posekit", TOY, MEMBERS)
    check_output(tmp_path / "toy.posekit")
    check_output(tmp_path / "new.posekit")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["recipe.toml", "toy.posekit"]


def test_a_missing_member_file_is_a_source_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"pose\.onnx"):
        pack_bundle(tmp_path / "toy.posekit", TOY, {**MEMBERS, "pose.onnx": tmp_path / "absent"})


def test_an_interrupted_write_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, b"old")

    def interrupted() -> None:
        with replacing(path) as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_new_file_has_ordinary_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_whole(tmp_path / "written", b"")
    assert (tmp_path / "written").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_content_reaches_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    real = os.replace

    def replace(source: Path, target: Path) -> None:
        order.append("replace")
        real(source, target)

    monkeypatch.setattr(os, "fsync", lambda descriptor: order.append("fsync"))
    monkeypatch.setattr(os, "replace", replace)
    write_whole(tmp_path / "file", b"x")
    assert order == ["fsync", "replace"]
