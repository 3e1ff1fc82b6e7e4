"""Which crops a recipe means, and how many of them meet in a frame."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from recordings import write_recording

from posekit.export.crops import (
    frames_with,
    labelled_frames,
    measured_crops_per_pass,
    search_samples,
    verification_samples,
)
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


def test_frames_are_spread_over_those_that_are_calibrated_on(crowded: Path) -> None:
    """As many as were asked for, from the first to the last; frames without an object show backgrounds."""
    write_recording(crowded / "other", 1)
    section = CropsRecipe("recording")
    shared = recipe(crowded, calibration=section)
    apart = recipe(crowded, calibration=section, verification=CropsRecipe("other"))
    seen = [(frame.index, len(boxes)) for frame, boxes in labelled_frames(shared, FRAMES)]
    assert seen == [(0, 1), (2, 3), (4, 5), (6, 0), (8, 0), (10, 0)]
    assert [frame.index for frame, _ in labelled_frames(shared, 4)] == [0, 4, 6, 10]
    assert [frame.index for frame, _ in labelled_frames(apart, FRAMES)] == list(range(FRAMES))


def test_frames_with_an_object_are_spread_over_those_that_show_it(crowded: Path) -> None:
    section = recipe(crowded, calibration=CropsRecipe("recording"))
    assert [(frame.index, len(boxes)) for frame, boxes in frames_with(section, {1}, 12)] == [
        (i, i + 1) for i in range(6)
    ]
    assert [frame.index for frame, _ in frames_with(section, {1}, 6)] == [0, 2, 4]
    assert frames_with(section, {2}, 12) == []
