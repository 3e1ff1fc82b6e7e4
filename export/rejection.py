"""Below which score a path's answer is none: from what other objects and backgrounds score as the object.

Crops of other objects and of backgrounds go through the estimator under the object's id, as a detector's mistakes do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import cv2
import numpy as np
import numpy.typing as npt

from posekit.benchmarks.accuracy import box_iou
from posekit.export.mesh import ObjectModel
from posekit.export.reference.clutter import clutter_models
from posekit.export.reference.textures import random_texture
from posekit.export.render import Renderer, random_lighting, random_rotation, shade
from posekit.runtime.bundle import Bundle
from posekit.runtime.detection import Detection, PoseEstimate, box_from_mask, overlaps_image
from posekit.runtime.estimator import PoseEstimator, path_named
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.manifest import Rejection
from posekit.runtime.pose import Array, Pose, ego_from_allo
from posekit.runtime.session import ForwardingSession, Session
from posekit.runtime.sources import Frame
from posekit.runtime.tensor import Feed

Labelled = tuple[Frame, list[Detection]]  # a frame and the objects that are in it
MIN_NEGATIVES, MIN_POSITIVES = 100, 20
MOST_REFUSED = 0.5  # of the object's own crops: a threshold that refuses more costs more than it gives
MOST_FRAMES = 48  # spread evenly over what was recorded
BACKGROUNDS_PER_FRAME = 4
APART_IOU = 0.1  # of a background box and every object
PER_UNIT = 10_000  # steps of a threshold: scores differ in the last digits from machine to machine
RENDERED_FRAMES, OBJECTS_PER_FRAME, CLUTTER = 40, 3, 8
CAMERA = Intrinsics(np.array([[300.0, 0, 159.5], [0, 300, 119.5], [0, 0, 1]]), 320, 240)


@dataclass(frozen=True)
class RejectionReport:
    """What thresholds were chosen for, and why not. of: "recorded" or "rendered" frames.

    thresholds: by object id.  undecided: by object id, a sentence.
    """

    of: str
    thresholds: dict[str, Rejection] = field(default_factory=dict)
    undecided: dict[str, str] = field(default_factory=dict)


def calibrated_rejection(
    bundle: Bundle, path: str, frames: Iterable[Labelled], false_accept_rate: float, of: str
) -> RejectionReport:
    """Per object the least score that lets through no more than `false_accept_rate` of what is not the object.

    frames: with all objects that the bundle knows and that are in them.  of: where they are from, for the report.
    """
    scores = _scores(bundle, path, frames)
    thresholds, undecided = {}, {}
    for object_id, (positive, negative) in scores.items():
        if len(negative) < MIN_NEGATIVES or len(positive) < MIN_POSITIVES:
            needed = f"{MIN_POSITIVES} and {MIN_NEGATIVES} say something"
            undecided[str(object_id)] = f"{len(positive)} crops of it, {len(negative)} of anything else; {needed}"
            continue
        found = rejection_from_scores(positive, negative, false_accept_rate)
        if found.false_reject_rate > MOST_REFUSED:
            undecided[str(object_id)] = (
                f"its scores do not tell it from others: {found.threshold:.2f}, which lets through "
                f"{found.false_accept_rate:.1%} of {found.n_negative}, refuses {found.false_reject_rate:.0%} of its own"
            )
        else:
            thresholds[str(object_id)] = found
    return RejectionReport(of, thresholds, undecided)


def rejection_from_scores(
    positive: npt.NDArray[np.floating], negative: npt.NDArray[np.floating], false_accept_rate: float
) -> Rejection:
    """positive, negative: scores of the object and of anything else. What had no pose at all scores 0.

    The rate in the record is of negatives that the threshold was not chosen on: each half is judged by the other's.
    """
    threshold = _threshold(negative, false_accept_rate)
    halves = (negative[::2], negative[1::2])
    through = sum(
        int((judged >= _threshold(chosen, false_accept_rate)).sum()) for chosen, judged in (halves, halves[::-1])
    )
    refused = float((positive < threshold).mean())
    return Rejection(threshold, through / len(negative), refused, len(negative), len(positive))


def rendered_frames(models: Mapping[int, ObjectModel], ids: Iterable[int]) -> Iterator[Labelled]:
    """Objects and clutter side by side before random textures, in random light. Equal models, equal frames.

    Every frame shows one of the objects `ids`, in turn, and others.
    """
    clutter = clutter_models(CLUTTER, seed=0)
    first = max(models) + 1
    every = dict(models) | {first + k: model for k, model in enumerate(clutter.values())}
    renderer, wanted, rng = Renderer(every), list(ids), np.random.default_rng(0)
    for index in range(RENDERED_FRAMES):
        shown = wanted[index % len(wanted)]
        others = rng.choice([i for i in every if i != shown], OBJECTS_PER_FRAME - 1, replace=False).tolist()
        order = rng.permutation([shown, *others]).tolist()
        placed = [(i, _somewhere(every[i], slot, rng)) for slot, i in enumerate(order)]
        seen = renderer.render(placed, CAMERA)
        picture = np.where(seen.mask[..., None], shade(seen, random_lighting(rng)), _background(rng))
        masks = [(i, seen.object_index == k) for k, (i, _) in enumerate(placed)]
        boxes = [Detection(i, 1.0, box_from_mask(mask)) for i, mask in masks if mask.any()]
        yield Frame(picture.astype(np.uint8), CAMERA, f"rendered {index}", index), boxes


def _scores(
    bundle: Bundle, path: str, frames: Iterable[Labelled]
) -> dict[int, tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]]]:
    """By object id, the scores of its own crops and of all others."""
    ids = path_named(bundle, path).object_ids
    positive: dict[int, list[float]] = {i: [] for i in ids}
    negative: dict[int, list[float]] = {i: [] for i in ids}
    rng = np.random.default_rng(0)
    graph = path_named(bundle, path).graph

    def around(name: str, session: Session) -> Session:
        return _Once(session) if name == graph else session

    with PoseEstimator(bundle, path=path, backend="onnxruntime", precision="fp32", around=around) as estimator:
        for frame, objects in frames:
            backgrounds = _background_boxes(frame, objects, rng)
            for i in ids:
                boxes = [(d.box_xyxy_px, d.object_id == i) for d in objects] + [(box, False) for box in backgrounds]
                claimed = [Detection(i, 1.0, box) for box, _ in boxes]
                outcomes = estimator.outcomes(frame.image_rgb_u8, frame.intrinsics, claimed)
                for outcome, (_, is_it) in zip(outcomes, boxes, strict=True):
                    score = outcome.score if isinstance(outcome, PoseEstimate) else 0.0
                    (positive if is_it else negative)[i].append(score)
    return {i: (np.array(positive[i]), np.array(negative[i])) for i in ids}


class _Once(ForwardingSession):
    """Runs a feed once, however often it comes in succession: every object asks for the same crops."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._fed: dict[str, npt.NDArray[np.generic]] = {}
        self._gave: dict[str, npt.NDArray[np.generic]] = {}

    def run(self, feed: Feed) -> dict[str, npt.NDArray[np.generic]]:
        if self._fed.keys() != feed.keys() or any(not np.array_equal(feed[name], self._fed[name]) for name in feed):
            self._fed = {name: np.array(array) for name, array in feed.items()}
            self._gave = {name: array.copy() for name, array in self.session.run(feed).items()}
        return self._gave


def _threshold(negative: npt.NDArray[np.floating], false_accept_rate: float) -> float:
    """The least score, rounded up, that no more than the stated share of further crops is expected to reach.

    Of n scores, one more is above the k-th best with probability k / (n + 1).
    """
    falling = np.sort(negative)[::-1]
    allowed = max(int(false_accept_rate * (len(falling) + 1)) - 1, 0)
    if allowed >= len(falling):
        return 0.0
    return (math.floor(float(falling[allowed]) * PER_UNIT) + 1) / PER_UNIT


def _background_boxes(frame: Frame, objects: list[Detection], rng: np.random.Generator) -> list[Array]:
    """Boxes as large as those of objects, where none is."""
    wh = np.array([frame.intrinsics.width_px, frame.intrinsics.height_px], np.float64)
    sizes = [d.box_xyxy_px[2:] - d.box_xyxy_px[:2] for d in objects] or [wh / 5]
    found: list[Array] = []
    for _ in range(20 * BACKGROUNDS_PER_FRAME):
        if len(found) == BACKGROUNDS_PER_FRAME:
            break
        size = np.minimum(sizes[rng.integers(len(sizes))] * rng.uniform(0.7, 1.4), 0.9 * wh)
        low = rng.uniform(0, 1, 2) * (wh - size)
        box = np.concatenate([low, low + size])
        if min(size) >= 2 and all(box_iou(box, d.box_xyxy_px) < APART_IOU for d in objects):
            found.append(box)
    return [box for box in found if overlaps_image(box, *wh.astype(int).tolist())]


def _somewhere(model: ObjectModel, slot: int, rng: np.random.Generator) -> Pose:
    """In one of the frame's columns, as large as fits there, turned anyhow."""
    column_px = CAMERA.width_px / OBJECTS_PER_FRAME
    z = float(CAMERA.K[0, 0]) * model.diameter_m / (column_px * rng.uniform(0.6, 0.95))
    pixel = np.array([column_px * (slot + 0.5), CAMERA.height_px * rng.uniform(0.35, 0.65), 1.0])
    centre_m = np.linalg.solve(CAMERA.K, pixel) * z
    R = ego_from_allo(random_rotation(rng), centre_m)
    return Pose(R, centre_m - R @ model.bbox_centre_m)


def _background(rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    texture = random_texture(rng, 128)
    return np.asarray(cv2.resize(texture, (CAMERA.width_px, CAMERA.height_px)), np.uint8)
