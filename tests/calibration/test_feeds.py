"""Calibration sees the device's bytes, twice the same, evenly chosen, one frame at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_bundles import write_toy_bundle
from toy_networks import scene

from posekit.calibration.feeds import Arrays, CropFeeds, ImageFeeds, recorded_frames, spread
from posekit.runtime.backends.ort import OrtSession
from posekit.runtime.bop import TrueObject
from posekit.runtime.boxes import boxes_from, detections_from_truth
from posekit.runtime.bundle import Bundle
from posekit.runtime.detection import Detection
from posekit.runtime.detector import letterbox
from posekit.runtime.errors import CalibrationError, InputError, SourceError, SpecError
from posekit.runtime.estimator import PoseEstimator
from posekit.runtime.image_file import read_image
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.manifest import DetectorEntry
from posekit.runtime.pose import Pose
from posekit.runtime.sources import Frame, Frames
from posekit.runtime.tensor import Feed, TensorSpec

SIDE = 96
CAMERA = Intrinsics(np.array([[100.0, 0, 48], [0, 100, 48], [0, 0, 1]]), SIDE, SIDE)
IMAGE = TensorSpec("image", "uint8", (1, 48, 64, 3))
DETECTOR = DetectorEntry("detector", "yolov8", (64, 48), 114, (1, 2), 0.25, 0.7)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Nine pictures and their boxes: object 1 twice a picture, object 2 in every third, object 9 is foreign."""
    from pictures import save

    images = tmp_path / "images"
    images.mkdir()
    boxes = {}
    for n in range(9):
        save(images / f"{n}.png", scene(n, SIDE))
        rows = [(1, [5 + n, 10, 45, 50]), (1, [40, 30 + n, 80, 90])] + [(2, [20, 20, 60, 61])] * (n % 3 == 0)
        rows += [(9, [0, 0, 30, 30])]
        boxes[f"{n}.png"] = [{"object_id": i, "box_xyxy_px": box} for i, box in rows]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    return images


def crop_feeds(folder: Path, path: str = "regressor", **changes: Any) -> CropFeeds:
    with Bundle(write_toy_bundle(folder.parent / "toy.posekit")) as bundle:
        manifest = bundle.manifest
    entry = manifest.paths[path]
    objects = [o for o in manifest.objects if o.id in entry.object_ids]
    frames, boxes = recorded_frames(folder, CAMERA), boxes_from(folder.parent / "boxes.json")
    feeds = CropFeeds(frames, boxes, objects, entry.crop, manifest.graphs[entry.graph].inputs)
    return replace(feeds, **changes)


def joined(feeds: CropFeeds) -> Arrays:
    portions = [portion.feed for portion in feeds]
    return {name: np.concatenate([feed[name] for feed in portions]) for name in portions[0]}


@pytest.mark.parametrize("path", ["regressor", "bank"])
def test_the_bytes_are_the_estimators_own(folder: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that the estimator feeds its first graph, frame by frame, against all that calibration feeds."""
    feeds = crop_feeds(folder, path)
    fed: list[Arrays] = []
    run = OrtSession.run

    def recording(session: OrtSession, feed: Feed) -> Any:
        if "descriptors" not in feed:  # the matcher's
            fed.append({name: array.copy() for name, array in feed.items()})
        return run(session, feed)

    monkeypatch.setattr(OrtSession, "run", recording)
    with (
        Bundle(folder.parent / "toy.posekit") as bundle,
        PoseEstimator(bundle, path=path, backend="onnxruntime") as est,
    ):
        for frame in feeds.open_frames():
            boxes = [box for box in feeds.boxes(frame) if box.object_id in est.object_ids]
            est.estimate(frame.image_rgb_u8, frame.intrinsics, boxes)
    calibrated = joined(feeds)
    assert len(calibrated["crops" if path == "bank" else "box"]) == 21
    for name, array in calibrated.items():
        own = np.concatenate([feed[name] for feed in fed])
        assert (array.dtype, array.tobytes()) == (own.dtype, own.tobytes())


def test_two_passes_are_equal_and_owned(folder: Path) -> None:
    feeds = crop_feeds(folder, "bank")
    first = list(feeds)
    second = list(feeds)
    assert [len(p.samples) for p in first] == [8, 8, 5]
    for a, b in zip(first, second, strict=True):
        assert all(a.feed[n].tobytes() == b.feed[n].tobytes() for n in a.feed)
    assert len({portion.feed["crops"].tobytes() for portion in first}) == 3


def test_batches_do_not_change_the_rows(folder: Path) -> None:
    rows = [joined(crop_feeds(folder, "bank", batch=batch))["crops"].tobytes() for batch in (1, 3, 21)]
    assert len(set(rows)) == 1


def test_foreign_objects_are_passed_over_and_samples_name_the_rest(folder: Path) -> None:
    samples = [sample for portion in crop_feeds(folder) for sample in portion.samples]
    assert {sample.object_id for sample in samples} == {1, 2}
    assert [s.frame for s in samples[:4]] == ["0.png", "0.png", "0.png", "1.png"]
    assert all(sample.cam_from_obj is None for sample in samples)


def test_boxes_of_which_no_crop_can_be_cut_are_passed_over(folder: Path) -> None:
    feeds = crop_feeds(folder)
    bad = [Detection(1, 0.9, np.array(box)) for box in ([500.0, 5, 520, 25], [5.0, 5, 5.5, 25])]
    mixed = replace(feeds, boxes=lambda frame: [bad[0], *feeds.boxes(frame), bad[1]])
    np.testing.assert_array_equal(joined(mixed)["box"], joined(feeds)["box"])


def test_a_limit_takes_the_same_from_each_object(folder: Path) -> None:
    samples = [sample for portion in crop_feeds(folder, max_crops=6) for sample in portion.samples]
    assert [s.object_id for s in samples].count(2) == 3
    assert [s.object_id for s in samples].count(1) == 3
    assert len({s.frame for s in samples if s.object_id == 1}) == 3


@given(st.dictionaries(st.integers(1, 20), st.integers(0, 300), max_size=8), st.integers(0, 600))
def test_spread_is_even_fair_and_bounded(counts: dict[int, int], most: int) -> None:
    chosen = spread(counts, most)
    assert set(chosen) == set(counts)
    assert sum(map(len, chosen.values())) == min(most, sum(counts.values()))
    full = [k for k in counts if len(chosen[k]) < counts[k]]
    sizes = [len(chosen[k]) for k in full]
    assert max(sizes, default=0) - min(sizes, default=0) <= 1
    for key, places in chosen.items():
        assert len(places) <= counts[key]
        assert all(0 <= place < counts[key] for place in places)
        gaps = np.diff(places)
        assert (gaps >= 1).all()
        assert gaps.max(initial=1) - gaps.min(initial=counts[key]) <= 1


def test_truth_goes_with_the_box_that_shows_it() -> None:
    poses = [Pose(np.eye(3), np.array([0.0, 0, z])) for z in (1, 2)]
    boxes = [np.array([0.0, 0, 30, 30]), np.array([50.0, 50, 90, 90])]
    truth = tuple(TrueObject(1, pose, box, box, 1.0) for pose, box in zip(poses, boxes, strict=True))
    frame = Frame(scene(0, SIDE), CAMERA, "one", 0, truth=truth)
    with_truth = _in_memory([frame], detections_from_truth)
    samples = [sample for portion in with_truth for sample in portion.samples]
    assert [s.cam_from_obj for s in samples] == poses
    elsewhere = replace(
        with_truth, boxes=lambda frame: [replace(detections_from_truth(frame)[0], box_xyxy_px=boxes[0] + 20)]
    )
    assert [s.cam_from_obj for p in elsewhere for s in p.samples] == [None]


def _in_memory(frames: list[Frame], boxes: Any) -> CropFeeds:
    from toy_bundles import CROP, CROPS

    from posekit.runtime.manifest import ObjectEntry

    entry = ObjectEntry(1, "box", 0.2, (-0.1, -0.1, -0.1), (0.1, 0.1, 0.1), "x")
    return CropFeeds(lambda: Frames(iter(frames), len(frames)), boxes, (entry,), CROP, (CROPS,))


def test_images_are_letterboxed_as_the_detector_does(folder: Path) -> None:
    feeds = ImageFeeds(recorded_frames(folder, CAMERA), DETECTOR, (IMAGE,), max_images=4)
    portions = list(feeds)
    assert [p.samples[0].frame for p in portions] == ["1.png", "3.png", "5.png", "7.png"]
    for portion in portions:
        boxed = letterbox(read_image(folder / portion.samples[0].frame), (64, 48), 114, "centre")
        assert portion.feed["image"].tobytes() == boxed.pixels.tobytes()
        assert portion.feed["image"].shape == (1, 48, 64, 3)
    assert portions[0].feed["image"].tobytes() != portions[1].feed["image"].tobytes()


def test_preprocessing_says_what_changes_the_bytes(folder: Path) -> None:
    feeds = crop_feeds(folder)
    others: list[CropFeeds | ImageFeeds] = [
        replace(feeds, crop=replace(feeds.crop, pad=1.3)),
        replace(feeds, objects=tuple(feeds.objects)[::-1]),
        ImageFeeds(feeds.open_frames, DETECTOR, (IMAGE,)),
        ImageFeeds(feeds.open_frames, replace(DETECTOR, letterbox_value=0), (IMAGE,)),
    ]
    assert len({feeds.preprocessing, *(other.preprocessing for other in others)}) == 5
    assert crop_feeds(folder, max_crops=4).preprocessing == feeds.preprocessing  # the data's hash says that


def test_damaged_missing_and_foreign_frames_are_named(folder: Path) -> None:
    (folder / "4.png").write_bytes((folder / "4.png").read_bytes()[:200])
    with pytest.raises(SourceError, match=r"4\.png.*cut off"):
        list(crop_feeds(folder))
    with pytest.raises(SourceError, match="nothing there"):
        list(crop_feeds(folder, open_frames=recorded_frames(folder / "absent", CAMERA)))
    with pytest.raises(InputError, match=r"96 x 96 px.*640 x 480"):
        list(crop_feeds(folder, open_frames=recorded_frames(folder, replace(CAMERA, width_px=640, height_px=480))))


def test_a_live_camera_and_an_unknown_input_are_refused(folder: Path) -> None:
    with pytest.raises(CalibrationError, match=r"live camera.*Record"):
        recorded_frames("0", CAMERA)
    with pytest.raises(SpecError, match="'depth'"):
        crop_feeds(folder, inputs=(TensorSpec("depth", "float32", ("batch",)),))


def test_frames_that_change_between_the_passes_are_refused(folder: Path) -> None:
    feeds = crop_feeds(folder)
    calls: list[int] = []

    def shrinking() -> Frames:
        calls.append(1)
        frames = feeds.open_frames()
        return Frames(_some(frames, 9 - 2 * len(calls)), None)

    with pytest.raises(CalibrationError, match="as in the first reading"):
        list(replace(feeds, open_frames=shrinking))


def _some(frames: Iterator[Frame], count: int) -> Iterator[Frame]:
    for _ in range(count):
        yield next(frames)
