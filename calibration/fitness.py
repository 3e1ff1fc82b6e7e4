"""Is this data fit to calibrate on, and what does it cover? One pass, with figures; unfit data is refused.

Told apart: too few crops, copies and near copies, noise, pictures of nearly one colour or of another exposure, pixels
prepared before they came here (float, normalised, other layout or size), boxes that lie off the objects where the truth
is known, objects without a crop. Not told apart, because the pixels alone do not show it: red and blue swapped, another
camera of the same image size, boxes that are loose, objects that are others than named. Those show as a pose error in
verification.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from posekit.calibration.feeds import Arrays, CalibrationSource, Sample
from posekit.runtime.crop import Image
from posekit.runtime.errors import CalibrationError, SpecError
from posekit.runtime.pose import Array, Pose
from posekit.runtime.tensor import check_feed

MIN_CROPS = 32
PIXEL_INPUTS = ("crops", "image")

THUMBNAIL_PX = 16
SAME_VIEW_RMS = 2.0  # of 255, between thumbnails: a still camera's noise stays below 1, a moving one's steps above
MIN_LEVELS = 16  # of 256: photographs use nearly all, a picture divided by 255 two
# Real crops (YCB-V, hand-held video, ray-traced scenes; 96 to 224 px) have neighbour correlations of 0.79 and more and
# keep 0.51 of their variance and more in a thumbnail. Noise images cut the same way reach one of both, never both.
MIN_NEIGHBOUR_CORRELATION = 0.65
MIN_COARSE_VARIANCE = 0.3
# Those real crops have a brightest hundredth at grey level 199 and more, 152 and more above the darkest one.
MIN_BRIGHT, MAX_DARK, MIN_CONTRAST = 64.0, 192.0, 32.0  # grey levels
MAX_ODD_SHARE = 0.1  # crops of that kind may occur, but not make the ranges
IN_PLANE_BINS = 12  # of 30 degrees


@dataclass(frozen=True)
class ObjectCoverage:
    """What is seen of one object. None where poses are not known.

    views_seen: share of the directions it could be seen from.   in_plane_seen: share of 30-degree turns in the image.
    Symmetries are not considered: of a bottle, one side is as good as all.   box_side_px: of the longer sides.
    """

    crops: int
    box_side_px: tuple[float, float, float]  # least, median, greatest
    views_seen: float | None = None
    in_plane_seen: float | None = None
    distance_m: tuple[float, float] | None = None  # least, greatest


@dataclass(frozen=True)
class Fitness:
    """Figures of one data set. fingerprint: sha256 of every byte that would be fed.

    copies: crops whose pixels equal another's before.   distinct: crops that are left when near copies count once.
    noisy, flat: crops that look like noise, or use fewer than MIN_LEVELS levels.   dim: too dark, too bright or too grey.
    off: boxes with no such object at them, by the frames' truth.   objects: by id; empty for images.   unseen: ids of the
    objects that ranges are for and that no crop shows: told, not refused, for no recording shows all of many objects.
    """

    crops: int
    distinct: int
    copies: int
    noisy: int
    flat: int
    fingerprint: str
    objects: dict[str, ObjectCoverage] = field(default_factory=dict)
    dim: int = 0
    off: int = 0
    unseen: tuple[int, ...] = ()


def fitness_of(source: CalibrationSource, directions: Array | None = None, object_ids: Iterable[int] = ()) -> Fitness:
    """Read a source once and measure it.

    object_ids: of the objects that it is to show.   directions: (N, 3) unit vectors in the object frame, such as a viewsphere; without them view coverage is unknown.
    Raises CalibrationError for pixels that are not what the graph takes, and what iterating the source raises.
    """
    fingerprint = hashlib.sha256()
    seen: set[bytes] = set()
    thumbnails: list[Array] = []
    samples: list[Sample] = []
    copies = noisy = flat = dim = 0
    for portion in source:
        pixels = _checked_pixels(portion.feed, source)
        _digest(fingerprint, portion.feed)
        samples += portion.samples
        for picture, sample in zip(pixels, portion.samples, strict=True):
            digest = hashlib.sha256(picture).digest()
            copies += digest in seen
            seen.add(digest)
            thumbnails.append(thumbnail_of(picture))
            noisy += is_noise(picture, sample.box_xyxy_px)
            dim += not is_exposed(picture)
            flat += len(np.unique(picture)) < MIN_LEVELS
    coverage = _coverage(samples, directions)
    return Fitness(
        len(thumbnails),
        sum(first_of_their_kind(thumbnails)),
        copies,
        noisy,
        flat,
        fingerprint.hexdigest(),
        coverage,
        dim,
        sum(sample.off for sample in samples),
        tuple(sorted(id_ for id_ in object_ids if str(id_) not in coverage)),
    )


def check_fitness(fitness: Fitness) -> None:
    """CalibrationError, with the figure, for data that would give wrong ranges."""
    most_odd = int(MAX_ODD_SHARE * fitness.crops)
    rules = (
        (
            fitness.crops >= MIN_CROPS,
            f"{fitness.crops} crops",
            f"at least {MIN_CROPS}",
            "Record more frames; a few hundred crops of all objects from all sides are good.",
        ),
        (
            fitness.flat <= most_odd,
            f"{fitness.flat} of {fitness.crops} crops with fewer than {MIN_LEVELS} of 256 levels",
            f"at most {most_odd}",
            "Pass the camera's uint8 pixels; scaling and normalisation are in the graph.",
        ),
        (
            fitness.noisy <= most_odd,
            f"{fitness.noisy} of {fitness.crops} crops that look like noise",
            f"at most {most_odd}",
            "Use real or rendered frames: random pixels give ranges that no image gives.",
        ),
        (
            fitness.dim <= most_odd,
            f"{fitness.dim} of {fitness.crops} crops nearly black, nearly white or nearly grey",
            f"at most {most_odd}",
            "Record with the exposure that the device will have.",
        ),
        (
            fitness.off <= most_odd,
            f"{fitness.off} of {fitness.crops} boxes with no such object at them",
            f"at most {most_odd}",
            "Check the order of the boxes' numbers (x0, y0, x1, y1), their frames and object ids.",
        ),
        (
            fitness.distinct >= MIN_CROPS,
            f"{fitness.distinct} different crops among {fitness.crops} ({fitness.copies} equal to another)",
            f"at least {MIN_CROPS}",
            "Move camera or objects between frames; copies add nothing.",
        ),
        (
            2 * fitness.copies <= fitness.crops,
            f"{fitness.copies} of {fitness.crops} crops equal to another",
            "at most half",
            "Remove the copies: they drown what the others show.",
        ),
    )
    for passed, got, expected, remedy in rules:
        if not passed:
            raise CalibrationError("calibration data", got=got, expected=expected, remedy=remedy)


def _checked_pixels(feed: Arrays, source: CalibrationSource) -> Image:
    """(N, H, W, 3), or CalibrationError that says how they were prepared instead."""
    name = next((n for n in PIXEL_INPUTS if n in feed), None)
    try:
        check_feed(feed, source.inputs)
    except SpecError as error:
        pixels = feed.get(name or "")
        spans = "" if pixels is None or not pixels.size else f" from {pixels.min():.4g} to {pixels.max():.4g}"
        raise CalibrationError(
            f"calibration {error.what}",
            got=f"{error.got}{spans}",
            expected=error.expected,
            remedy="Crops come from posekit.runtime.crop as uint8 RGB; scaling and normalisation are in the graph.",
        ) from error
    if name is None or feed[name].dtype != np.uint8:
        raise CalibrationError(
            "graph to calibrate",
            got=f"inputs {', '.join(map(str, source.inputs))}",
            expected=f"pixels: {' or '.join(PIXEL_INPUTS)}, uint8",
            remedy="Calibrate graphs that begin at the image.",
        )
    return np.asarray(feed[name], np.uint8)


def _digest(fingerprint: Any, feed: Arrays) -> None:
    for name, array in sorted(feed.items()):
        fingerprint.update(f"{name} {array.dtype} {array.shape}\n".encode())
        fingerprint.update(np.ascontiguousarray(array))


def thumbnail_of(picture: Image) -> Array:
    """What is left of a picture when its noise and its details are averaged away, (16, 16, 3) grey levels."""
    import cv2

    return np.asarray(cv2.resize(picture, (THUMBNAIL_PX, THUMBNAIL_PX), interpolation=cv2.INTER_AREA), dtype=np.float64)


def _as_seen(picture: Image, box_xyxy_px: Array) -> Image:
    """A crop no larger than its box was in the frame: enlarging makes neighbours of noise alike."""
    import cv2

    side = max(THUMBNAIL_PX // 2, round(float((box_xyxy_px[2:] - box_xyxy_px[:2]).max())))
    if side >= max(picture.shape[:2]):
        return picture
    return np.asarray(cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def is_noise(picture: Image, box_xyxy_px: Array) -> bool:
    """Whether neighbours have little to do with each other, or averaging leaves little, in the crop (H, W, 3) of a box."""
    grey = _as_seen(picture, box_xyxy_px).mean(axis=2)
    variance = float(grey.var())
    if variance == 0.0:
        return False  # flat, which is counted apart
    coarse = float(thumbnail_of(picture).mean(axis=2).var()) / variance
    return coarse < MIN_COARSE_VARIANCE or _neighbour_correlation(grey) < MIN_NEIGHBOUR_CORRELATION


def _neighbour_correlation(grey: Array) -> float:
    """The lesser of the correlations of each pixel with the one to its right and the one below."""
    found = []
    for a, b in ((grey[:, :-1], grey[:, 1:]), (grey[:-1], grey[1:])):
        a, b = a - a.mean(), b - b.mean()
        scale = float(np.sqrt((a * a).mean() * (b * b).mean()))
        found.append(float((a * b).mean()) / scale if scale else 1.0)
    return min(found)


def is_exposed(picture: Image) -> bool:
    """Whether the brightest and the darkest hundredth of a picture's values are where a camera's exposure puts them: not a
    picture that is nearly black, nearly white, or nearly grey.
    """
    dark, bright = np.percentile(picture, (1, 99))
    return bool(bright >= MIN_BRIGHT and dark <= MAX_DARK and bright - dark >= MIN_CONTRAST)


def first_of_their_kind(thumbnails: Sequence[Array]) -> list[bool]:
    """Which of the thumbnails are left when each that is near an earlier one that was kept is dropped."""
    rows = np.array(thumbnails, dtype=np.float32).reshape(-1, THUMBNAIL_PX * THUMBNAIL_PX * 3)
    kept, count, flags = np.empty_like(rows), 0, []
    for row in rows:
        flags.append(not count or bool(np.mean((kept[:count] - row) ** 2, axis=1).min() > SAME_VIEW_RMS**2))
        if flags[-1]:
            kept[count] = row
            count += 1
    return flags


def _coverage(samples: Iterable[Sample], directions: Array | None) -> dict[str, ObjectCoverage]:
    by_object: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        if sample.object_id is not None:
            by_object[sample.object_id].append(sample)
    return {str(id_): _object_coverage(rows, directions) for id_, rows in sorted(by_object.items())}


def _object_coverage(samples: list[Sample], directions: Array | None) -> ObjectCoverage:
    sides = [float((sample.box_xyxy_px[2:] - sample.box_xyxy_px[:2]).max()) for sample in samples]
    box_side_px = (min(sides), float(np.median(sides)), max(sides))
    poses = [sample.cam_from_obj for sample in samples if sample.cam_from_obj is not None]
    if len(poses) < len(samples):
        return ObjectCoverage(len(samples), box_side_px)
    distances = [float(np.linalg.norm(pose.t_m)) for pose in poses]
    in_plane = {_in_plane_bin(pose) for pose in poses}
    views = None
    if directions is not None:
        nearest = {int(np.argmax(directions @ _direction(pose))) for pose in poses}
        views = len(nearest) / len(directions)
    return ObjectCoverage(
        len(samples), box_side_px, views, len(in_plane) / IN_PLANE_BINS, (min(distances), max(distances))
    )


def _direction(pose: Pose) -> Array:
    """(3,) unit, in the object frame: where the camera is."""
    at = -pose.R.T @ pose.t_m
    return np.asarray(at / np.linalg.norm(at))


def _in_plane_bin(pose: Pose) -> int:
    """Which way the object's z axis points in the image; its y axis where z points at or away from the camera."""
    axis: npt.NDArray[Any] = pose.R[:, 2] if abs(_direction(pose)[2]) < 0.95 else pose.R[:, 1]
    return round(float(np.arctan2(axis[1], axis[0]) / (2 * np.pi)) * IN_PLANE_BINS) % IN_PLANE_BINS
