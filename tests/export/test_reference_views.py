"""The view bank: its patches obey the crop geometry, and an interrupted run continues where it stopped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from posekit.export.reference import views as bank
from posekit.export.reference.views import CHANNELS, REFERENCE_CAMERA, ViewSet, read_views, write_views
from posekit.runtime.errors import SourceError


def render(folder: Path, seed: int = 3, stop_after: int | None = None) -> None:
    calls: list[str] = []

    def advance(name: str, done: int, total: int) -> None:
        calls.append(name)
        if stop_after is not None and len(calls) == stop_after:
            raise KeyboardInterrupt

    write_views(folder, 4, seed, advance, clutter_count=2, clutter_views=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bank") / "views"
    render(path)
    return path


@pytest.fixture(scope="module")
def sets(folder: Path) -> dict[str, ViewSet]:
    return read_views(folder)


def test_sets_and_shapes(sets: dict[str, ViewSet]) -> None:
    assert {name: len(s) for name, s in sets.items()} == {"bracket": 4, "duckling": 4, "bottle": 4, "clutter": 4}
    for one in sets.values():
        for name, (dtype, shape) in CHANNELS.items():
            assert one.arrays[name].dtype == np.dtype(dtype)
            assert one.arrays[name].shape == (4, *shape)
    assert sets["clutter"].arrays["object_id"].tolist() == [1001, 1001, 1002, 1002]


@pytest.mark.parametrize("name", ["bracket", "duckling", "bottle"])
def test_coordinates_reproject_through_pose_and_warp(sets: dict[str, ViewSet], name: str) -> None:
    one = sets[name]
    for i in range(len(one)):
        mask = one.arrays["mask"][i] > 0
        points = one.coords_obj_m(i)[mask] @ one.arrays["R"][i].T + one.arrays["t_m"][i]
        warp = one.arrays["warp"][i]
        pixels = REFERENCE_CAMERA.project(points) @ warp[:, :2].T + warp[:, 2]
        rows, columns = np.nonzero(mask)
        np.testing.assert_allclose(pixels, np.stack([columns, rows], axis=-1), atol=0.6)  # coordinates have 8 bits
        np.testing.assert_allclose(points[:, 2] - one.arrays["t_m"][i, 2], one.arrays["depth"][i][mask], atol=1e-3)
        normals = one.arrays["normal"][i][mask] / 127.0
        np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1.0, atol=0.02)
        assert not one.arrays["albedo"][i][~mask].any()


def test_object_fills_its_share_of_the_patch(sets: dict[str, ViewSet]) -> None:
    for one in sets.values():
        for mask in one.arrays["mask"]:
            longer = max(mask.any(axis=0).sum(), mask.any(axis=1).sum())
            assert longer == pytest.approx(144 / 1.6, abs=3)


def test_poses_are_in_range(sets: dict[str, ViewSet]) -> None:
    for one in sets.values():
        z = one.arrays["t_m"][:, 2]
        assert ((z >= 0.35) & (z <= 0.9)).all()


def test_interrupted_run_continues_to_the_same_bytes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bank, "VIEWS_PER_COMMIT", 2)
    with pytest.raises(KeyboardInterrupt):
        render(tmp_path / "views", stop_after=3)  # bracket done, duckling half done
    assert (tmp_path / "views" / "bracket").is_dir()
    assert (tmp_path / "views" / "duckling.partial" / "done.json").is_file()
    with pytest.raises(SourceError, match="views"):
        read_views(tmp_path / "views")
    render(tmp_path / "views")
    for name in ("bracket", "duckling", "bottle", "clutter"):
        for channel in CHANNELS:
            file = Path(name) / f"{channel}.npy"
            assert (tmp_path / "views" / file).read_bytes() == (folder / file).read_bytes()


def test_missing_or_foreign_bank_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="FileNotFoundError"):
        read_views(tmp_path)
    (tmp_path / "views.json").write_text('{"format": "other"}')
    with pytest.raises(SourceError, match="other"):
        read_views(tmp_path)
