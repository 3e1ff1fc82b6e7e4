"""The view bank: its patches obey the crop geometry, and an interrupted run continues where it stopped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from small_views import CLUTTER_COUNT, CLUTTER_VIEWS, VIEWS, render_small_views

from posekit.export.reference import views as bank
from posekit.export.reference.views import CHANNELS, REFERENCE_CAMERA, ViewSet, read_views
from posekit.runtime.errors import SourceError


@pytest.fixture(scope="module")
def sets(small_views_folder: Path) -> dict[str, ViewSet]:
    return read_views(small_views_folder)


def test_sets_and_shapes(sets: dict[str, ViewSet]) -> None:
    clutter = CLUTTER_COUNT * CLUTTER_VIEWS
    expected = {"bracket": VIEWS, "duckling": VIEWS, "bottle": VIEWS, "clutter": clutter}
    assert {name: len(s) for name, s in sets.items()} == expected
    for one in sets.values():
        for name, (dtype, shape) in CHANNELS.items():
            assert one.arrays[name].dtype == np.dtype(dtype)
            assert one.arrays[name].shape == (len(one), *shape)
    assert sets["clutter"].arrays["object_id"].tolist() == [1001] * CLUTTER_VIEWS + [1002] * CLUTTER_VIEWS


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
    small_views_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, calls = tmp_path / "views", []

    def stop(name: str, done: int, total: int) -> None:
        calls.append(name)
        if calls.count("duckling") == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(bank, "VIEWS_PER_COMMIT", 2)
    with pytest.raises(KeyboardInterrupt):
        render_small_views(folder, stop)
    assert (folder / "bracket").is_dir()
    assert json.loads((folder / "duckling.partial" / "done.json").read_text())["done"] == 4
    with pytest.raises(SourceError, match="views"):
        read_views(folder)
    render_small_views(folder)
    for name in ("bracket", "duckling", "bottle", "clutter"):
        for channel in CHANNELS:
            file = Path(name) / f"{channel}.npy"
            assert (folder / file).read_bytes() == (small_views_folder / file).read_bytes()


def test_missing_or_foreign_bank_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="FileNotFoundError"):
        read_views(tmp_path)
    (tmp_path / "views.json").write_text('{"format": "other"}')
    with pytest.raises(SourceError, match="other"):
        read_views(tmp_path)
