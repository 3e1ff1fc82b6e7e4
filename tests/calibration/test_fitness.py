"""Unfit data is refused with its figures; fit data passes, and what it covers is counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_networks import SIZE, K, Recorded, scene, scenes

from posekit.calibration.feeds import CropFeeds, Portion, Sample, recorded_frames
from posekit.calibration.fitness import MIN_CROPS, Fitness, check_fitness, fitness_of
from posekit.export.viewsphere import view_rotations, viewsphere
from posekit.runtime.bop import objects_from_models_info
from posekit.runtime.boxes import boxes_from
from posekit.runtime.crop import PRESETS, CropPreset
from posekit.runtime.detection import Detection
from posekit.runtime.errors import CalibrationError
from posekit.runtime.manifest import ObjectEntry
from posekit.runtime.pose import Pose
from posekit.runtime.sources import Frame
from posekit.runtime.tensor import TensorSpec

FEW = scenes(4)


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def normalised(seed: int) -> np.ndarray:
    """(x / 255 - 0.5) / 0.25, cast back to uint8 by mistake."""
    return ((scene(seed) / 255 - 0.5) / 0.25).astype(np.int8).view(np.uint8)


def checked(pictures: list[np.ndarray]) -> Fitness:
    fitness = fitness_of(Recorded(pictures))
    check_fitness(fitness)
    return fitness


def test_good_data_passes_with_its_figures() -> None:
    fitness = checked(list(scenes(40).pictures))
    assert (fitness.crops, fitness.distinct, fitness.copies, fitness.noisy, fitness.flat) == (40, 40, 0, 0, 0)


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        ([scene(i) for i in range(31)], r"31 crops.*at least 32"),
        ([], r"0 crops"),
        ([scene(i % 5) for i in range(64)], r"5 different crops among 64 \(59 equal"),
        ([scene(3)] * 64, r"1 different crops among 64"),
        ([scene(0) ^ np.uint8(i % 2) for i in range(64)], r"1 different crops"),  # nearly alike
        ([scene(min(i, 39)) for i in range(100)], r"60 of 100 crops equal to another"),
        ([noise(i) for i in range(64)], r"64 of 64 crops that look like noise"),
        (
            [scene(i) for i in range(56)] + [noise(i) for i in range(8)],
            r"8 of 64 crops that look like noise.*at most 6",
        ),
        ([scene(i) // 8 for i in range(64)], r"64 of 64 crops nearly black, nearly white or nearly grey"),
        ([255 - scene(i) // 8 for i in range(64)], r"64 of 64 crops nearly black, nearly white or nearly grey"),
        ([110 + scene(i) // 8 for i in range(64)], r"64 of 64 crops nearly black, nearly white or nearly grey"),
        ([np.full((SIZE, SIZE, 3), i, np.uint8) for i in range(64)], r"64 of 64 crops with fewer than 16"),
        ([scene(i) // 255 for i in range(64)], r"64 of 64 crops with fewer than 16"),
        ([normalised(i) for i in range(64)], r"crops with fewer than 16"),
    ],
)
def test_unfit_data_is_refused_with_numbers(pictures: list[np.ndarray], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        checked(pictures)


class Boxed(Recorded):
    """Crops of boxes of so many pixels in their frames; every third box is off where `off` says so."""

    side_px: float = SIZE
    off: bool = False

    def __iter__(self) -> Iterator[Portion]:
        for portion in super().__iter__():
            box = np.array([0.0, 0.0, self.side_px, self.side_px])
            rows = tuple(
                replace(row, box_xyxy_px=box, off=self.off and int(row.frame) % 3 == 0) for row in portion.samples
            )
            yield Portion(portion.feed, rows)


def boxed(pictures: list[np.ndarray], side_px: float = SIZE, off: bool = False) -> Boxed:
    source = Boxed(pictures)
    object.__setattr__(source, "side_px", side_px)
    object.__setattr__(source, "off", off)
    return source


@pytest.mark.parametrize("side", [8, 12, 16, 24, 32])
def test_noise_is_seen_in_crops_that_were_enlarged(side: int) -> None:
    """A small box: between the pixels of the frame, those of the crop are smooth."""

    def enlarged(picture: np.ndarray) -> np.ndarray:
        small = cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA)
        return np.asarray(cv2.resize(small, (224, 224), interpolation=cv2.INTER_LINEAR))

    inputs = (TensorSpec("crops", "uint8", ("batch", 224, 224, 3)), K)
    rng = np.random.default_rng(0)
    pure = [enlarged(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(40)]
    smooth = [enlarged(scene(i, 224)) for i in range(40)] if side >= 16 else []  # waves of 4 px are none any more
    for pictures, noisy in ((pure, 40), (smooth, 0)):
        source = boxed(pictures, side)
        object.__setattr__(source, "inputs", inputs)
        assert fitness_of(source).noisy == noisy


def test_boxes_that_lie_off_the_objects_are_refused() -> None:
    fitness = fitness_of(boxed(list(scenes(40).pictures), off=True))
    assert fitness.off == 14
    with pytest.raises(CalibrationError, match=r"14 of 40 boxes with no such object at them.*at most 4"):
        check_fitness(fitness)


def test_a_box_is_off_where_the_truth_has_no_such_object_there(data_dir: Path) -> None:
    """Boxes of real frames, moved by their own width, and named after another object."""
    root = data_dir / "ycbv"
    facts = objects_from_models_info(root / "models" / "models_info.json")
    objects = [ObjectEntry(i, str(i), f.diameter_m, (-1, -1, -1), (1, 1, 1), "") for i, f in facts.items()]
    true = boxes_from("gt")

    def moved(frame: Frame) -> list[Detection]:
        return [replace(d, box_xyxy_px=d.box_xyxy_px + (d.box_xyxy_px[2] - d.box_xyxy_px[0])) for d in true(frame)]

    crops = (TensorSpec("crops", "uint8", ("batch", 64, 64, 3)),)
    for boxes, share in ((true, 0.0), (moved, 1.0)):
        source = CropFeeds(recorded_frames(root / "test"), boxes, objects, CropPreset("square", 64), crops, 24)
        fitness = fitness_of(source, object_ids=[*(o.id for o in objects), 99])
        assert fitness.off == share * fitness.crops
        assert fitness.unseen == (99,)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda p: p.astype(np.float32) / 255, r"float32\(8, 32, 32, 3\) from 0.* to .*uint8"),
        (lambda p: p[:, :16], r"\(8, 32, 16, 3\)"),
        (lambda p: p.transpose(2, 0, 1), r"\(8, 3, 32, 32\)"),
        (lambda p: p[..., 0], r"\(8, 32, 32\)"),
    ],
)
def test_pixels_prepared_in_another_way_are_refused(prepare: Callable[[np.ndarray], np.ndarray], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        checked([prepare(scene(i)) for i in range(40)])


def test_a_graph_without_pixels_is_refused() -> None:
    inputs = (TensorSpec("descriptors", "float32", ("batch", 4)),)

    class Descriptors(Recorded):
        def __iter__(self):  # type: ignore[no-untyped-def]
            yield Portion({"descriptors": np.zeros((1, 4), np.float32)}, ())

    with pytest.raises(CalibrationError, match="begin at the image"):
        fitness_of(Descriptors([], inputs=inputs))


@settings(max_examples=20)
@given(st.integers(0, 3), st.integers(0, 31), st.integers(0, 31))
def test_the_fingerprint_changes_with_any_byte(index: int, x: int, y: int) -> None:
    pictures = list(FEW.pictures)
    pictures[index] = pictures[index].copy()
    pictures[index][y, x, 0] ^= 1
    assert _fingerprint(pictures) != _fingerprint(list(FEW.pictures))


def _fingerprint(pictures: list[np.ndarray]) -> str:
    return fitness_of(Recorded(pictures, batch=32)).fingerprint


def test_the_fingerprint_includes_geometry_and_order() -> None:
    class Turned(Recorded):
        def __iter__(self):  # type: ignore[no-untyped-def]
            for portion in super().__iter__():
                portion.feed["K"][0, 0, 0] = 2
                yield portion

    pictures = scenes(4).pictures
    found = {fitness_of(s).fingerprint for s in (Recorded(pictures), Turned(pictures), Recorded(pictures[::-1]))}
    assert len(found) == 3


@dataclass(frozen=True, eq=False)
class Posed(Recorded):
    """Pictures of which the poses are known."""

    poses: tuple[Pose | None, ...] = ()

    def __iter__(self):  # type: ignore[no-untyped-def]
        for i, pose in enumerate(self.poses):
            feed = {"crops": scene(i)[None], "K": np.eye(3, dtype=np.float32)[None]}
            yield Portion(feed, (Sample(str(i), 1 + i % 2, np.array([0.0, 0, 10 + i, 20]), pose),))


def posed(rotations: np.ndarray, distance_m: float = 0.5) -> tuple[Pose, ...]:
    return tuple(
        Pose(R, np.array([0.0, 0, distance_m + i / 100])) for i, R in enumerate(np.repeat(rotations, 2, axis=0))
    )


def test_coverage_counts_directions_turns_and_distances() -> None:
    directions = viewsphere(42)
    everywhere = fitness_of(Posed([], poses=posed(view_rotations(42))), directions).objects
    assert set(everywhere) == {"1", "2"}
    assert everywhere["1"].views_seen == everywhere["2"].views_seen == 1.0
    assert everywhere["1"].crops == 42
    turned = fitness_of(Posed([], poses=posed(view_rotations(42, 12)[24:36])), directions).objects["1"]
    assert turned.views_seen == pytest.approx(1 / 42)
    assert turned.in_plane_seen == 1.0
    assert turned.distance_m == pytest.approx((0.5, 0.72))
    assert turned.box_side_px == (20.0, 21.0, 32.0)


def test_without_truth_or_directions_coverage_is_unknown() -> None:
    poses = posed(view_rotations(42)[:3])
    unknown = fitness_of(Posed([], poses=poses)).objects["1"]
    assert (unknown.views_seen, unknown.in_plane_seen is None) == (None, False)
    some = fitness_of(Posed([], poses=(None, *poses)), viewsphere(42)).objects["1"]
    assert (some.views_seen, some.in_plane_seen, some.distance_m) == (None, None, None)


@pytest.mark.parametrize(
    ("name", "preset"), [("ycbv", "sq-pad-1.2-128"), ("opencv_box", "sq-pad-224"), ("cube_video", "dzi-1.5-256")]
)
def test_real_frames_are_fit(data_dir: Path, name: str, preset: str) -> None:
    facts = objects_from_models_info(data_dir / name / "models" / "models_info.json")
    objects = [ObjectEntry(i, str(i), f.diameter_m, (-1, -1, -1), (1, 1, 1), "x") for i, f in facts.items()]
    crop = PRESETS[preset]
    inputs = (TensorSpec("crops", "uint8", ("batch", crop.side_px, crop.side_px, 3)),)
    source = CropFeeds(recorded_frames(data_dir / name), boxes_from("gt"), objects, crop, inputs, 64)
    fitness = fitness_of(source, viewsphere(42))
    check_fitness(fitness)
    assert fitness.noisy == fitness.flat == 0
    assert fitness.crops >= fitness.distinct >= MIN_CROPS
    assert all(row.views_seen is not None and 0 < row.views_seen < 1 for row in fitness.objects.values())

    blind = replace(source, open_frames=_noise_instead(data_dir / name))
    with pytest.raises(CalibrationError, match="noise"):
        check_fitness(fitness_of(blind))


def _noise_instead(source: Path):  # type: ignore[no-untyped-def]
    from posekit.runtime.sources import Frames

    def opened() -> Frames:
        rng = np.random.default_rng(0)
        frames = recorded_frames(source)()
        shape = (480, 640, 3)
        return Frames((replace(f, image_rgb_u8=rng.integers(0, 256, shape, dtype=np.uint8)) for f in frames), None)

    return opened
