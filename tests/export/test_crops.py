"""Which crops a recipe means, and how many of them meet in a frame."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from recordings import write_recording

from posekit.export.crops import measured_crops_per_pass, search_samples, verification_samples
from posekit.export.recipe import CropsRecipe, ExportRecipe
from posekit.runtime.errors import EngineError

FRAMES = 12


def recipe(folder: Path, **sections: CropsRecipe | None) -> ExportRecipe:
    return ExportRecipe("toy", "path", (), (), path=str(folder / "toy.toml"), **sections)  # type: ignore[arg-type]


@pytest.fixture
def crowded(tmp_path: Path) -> Path:
    """Frame 0 shows the object once, frame 1 twice, and so on; from frame 6 on it is not there."""
    root = write_recording(tmp_path / "recording", FRAMES)
    scene = root / "test" / "000001"
    for name in ("scene_gt", "scene_gt_info"):
        rows = json.loads((scene / f"{name}.json").read_text())
        for i, key in enumerate(rows):
            rows[key] = rows[key] * (i + 1) if i < 6 else []
        (scene / f"{name}.json").write_text(json.dumps(rows))
    return tmp_path


def test_crops_per_pass_are_counted_over_frames_that_show_any(crowded: Path) -> None:
    counted = measured_crops_per_pass(recipe(crowded, calibration=CropsRecipe("recording")), {1})
    assert counted == (1, 5, 6)  # of 21 crops the median one is in a frame of five
    with pytest.raises(EngineError, match="histogram"):
        measured_crops_per_pass(recipe(crowded, calibration=CropsRecipe("recording")), {2})


def test_what_is_made_on_frames_is_not_judged_on_them(tmp_path: Path) -> None:
    """Neither where the verification is left out nor where it names the same recording, in whatever words."""
    write_recording(tmp_path / "recording", FRAMES)
    write_recording(tmp_path / "other", FRAMES)
    section = CropsRecipe("recording")
    for verification in (None, section, CropsRecipe("other/../recording")):
        shared = recipe(tmp_path, calibration=section, verification=verification)
        judged, searched = ({s.name for s in read(shared, {1})} for read in (verification_samples, search_samples))
        assert len(judged) == len(searched) == FRAMES // 2
        assert not judged & searched
    apart = recipe(tmp_path, calibration=section, verification=CropsRecipe("other"))
    assert len(verification_samples(apart, {1})) == len(search_samples(apart, {1})) == FRAMES


def test_a_search_is_on_no_more_crops_than_it_can_run_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posekit.export.crops.SEARCH_CROPS", 4)
    write_recording(tmp_path / "recording", FRAMES)
    assert len(search_samples(recipe(tmp_path, calibration=CropsRecipe("recording")), {1})) == 4
