"""Thresholds of scores: no more gets through than was stated, and nothing is decided on a few crops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_bundles import write_toy_bundle

from posekit.export.reference.clutter import clutter_models
from posekit.export.rejection import (
    MIN_NEGATIVES,
    RENDERED_FRAMES,
    Labelled,
    calibrated_rejection,
    rejection_from_scores,
    rendered_frames,
)
from posekit.runtime.backends.ort import OrtSession
from posekit.runtime.bundle import Bundle
from posekit.runtime.detection import Detection
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.sources import Frame
from posekit.runtime.tensor import Feed

CAMERA = Intrinsics(np.array([[100.0, 0, 79.5], [0, 100, 59.5], [0, 0, 1]]), 160, 120)
seeds = st.integers(0, 2**32 - 1)


@given(seeds, st.sampled_from([0.01, 0.05, 0.2]))
def test_no_more_than_the_stated_share_gets_through(seed: int, rate: float) -> None:
    rng = np.random.default_rng(seed)
    negative, positive = rng.beta(3, 5, 300), rng.beta(8, 3, 60)
    rejection = rejection_from_scores(positive, negative, rate)
    assert (negative >= rejection.threshold).mean() <= rate
    assert (negative >= rejection.threshold - 3e-4).mean() >= rate - 0.02  # and not much less than may
    assert rejection.false_reject_rate == pytest.approx((positive < rejection.threshold).mean())
    assert (rejection.n_negative, rejection.n_positive) == (300, 60)


def test_the_rate_in_the_record_is_of_crops_that_the_threshold_was_not_chosen_on() -> None:
    rng = np.random.default_rng(0)
    rates = [rejection_from_scores(np.ones(30), rng.random(200), 0.05).false_accept_rate for _ in range(200)]
    assert np.mean(rates) == pytest.approx(0.05, abs=0.01)


def test_everything_may_get_through() -> None:
    assert rejection_from_scores(np.ones(20), np.linspace(0, 1, 100), 1.0).threshold == 0


def coloured(count: int) -> list[Labelled]:
    """Object 1 is red, object 2 is anything between grey and green; the rest of the frame is grey."""
    rng, frames = np.random.default_rng(0), []
    for index in range(count):
        image = np.full((120, 160, 3), 90, np.uint8)
        image[30:60, 20:50] = (200, 5, 5)
        image[30:60, 90:120] = (60 + rng.integers(20), 120, 60)
        boxes = [Detection(1, 1.0, np.array([20.0, 30, 49, 59])), Detection(2, 1.0, np.array([90.0, 30, 119, 59]))]
        frames.append((Frame(image, CAMERA, str(index), index), boxes))
    return frames


def test_other_objects_and_backgrounds_are_refused_and_the_object_is_not(tmp_path: Path) -> None:
    """The toy embedder sees mean colours: red scores 1 in a bank of pure colours, greys about 0.9."""
    with Bundle(write_toy_bundle(tmp_path / "toy.posekit")) as bundle:
        report = calibrated_rejection(bundle, "bank", coloured(30), 0.05, "recorded")
        few = calibrated_rejection(bundle, "bank", coloured(3), 0.05, "recorded")
    red = report.thresholds["1"]
    assert red.n_negative >= MIN_NEGATIVES
    assert 0.6 < red.threshold < 0.999
    assert red.false_reject_rate == 0
    assert red.false_accept_rate <= 0.1
    assert few.thresholds == {}
    assert few.undecided["1"] == "3 crops of it, 15 of anything else; 20 and 100 say something"


def test_a_threshold_that_would_refuse_most_of_the_objects_own_crops_is_none(tmp_path: Path) -> None:
    """The second object is as grey-green as the background is grey, for this embedder."""
    with Bundle(write_toy_bundle(tmp_path / "toy.posekit")) as bundle:
        report = calibrated_rejection(bundle, "bank", coloured(30), 0.05, "recorded")
    assert report.undecided["2"].startswith("its scores do not tell it from others")


def test_rendered_frames_show_every_object_and_others() -> None:
    models = clutter_models(2, seed=7)
    frames = list(rendered_frames({3: models[min(models)], 5: models[max(models)]}, [3, 5]))
    assert len(frames) == RENDERED_FRAMES
    shown = [{d.object_id for d in boxes} for _, boxes in frames]
    assert all([3, 5][k % 2] in ids for k, ids in enumerate(shown))
    assert np.mean([len(ids) for ids in shown]) > 2.5
    again, _ = next(rendered_frames({3: models[min(models)], 5: models[max(models)]}, [3, 5]))
    np.testing.assert_array_equal(again.image_rgb_u8, frames[0][0].image_rgb_u8)


def test_a_crop_is_embedded_once_for_all_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran, run = [], OrtSession.run

    def watched(session: OrtSession, feed: Feed) -> dict[str, Any]:
        ran.append(frozenset(feed))
        return run(session, feed)

    monkeypatch.setattr(OrtSession, "run", watched)
    with Bundle(write_toy_bundle(tmp_path / "toy.posekit")) as bundle:
        calibrated_rejection(bundle, "bank", coloured(3), 0.05, "recorded")
        objects = len(bundle.manifest.paths["bank"].object_ids)
    assert objects > 1
    assert len([names for names in ran if "descriptors" in names]) == 3 * objects
    assert len([names for names in ran if "descriptors" not in names]) == 3
