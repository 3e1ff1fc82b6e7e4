"""From an image to detections: letterbox, one graph, decode, suppression, and boxes back in the image's pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from posekit.runtime import yolo_decode as decode
from posekit.runtime.crop import Image
from posekit.runtime.detection import MIN_BOX_SIDE_PX, Detection
from posekit.runtime.errors import InputError, SpecError
from posekit.runtime.manifest import DetectorEntry
from posekit.runtime.one_at_a_time import OneAtATime
from posekit.runtime.pose import Array
from posekit.runtime.profiler import Stage, no_stage
from posekit.runtime.session import Session
from posekit.runtime.tensor import Shape, TensorSpec, check_shapes, shapes_fit
from posekit.runtime.yolo_decode import Array32, Candidates, Outputs, Shapes

Placement = Literal["centre", "top-left", "stretch"]

# Bounds on the host's work whatever a network gives; the families' own values.
MAX_CANDIDATES = 30000
MAX_DETECTIONS = 300


@dataclass(frozen=True)
class Family:
    """What the detectors of one family have in common.

    shapes: input size and class count -> name and shape of each output; a string is an axis of any size.
    decode: outputs, input size, score threshold -> candidates.
    suppress: whether the host suppresses overlaps.   placement: where the letterbox puts the image; "stretch" fills the
    input with it, each axis by its own scale, and leaves no border for the letterbox value.
    bgr, divisor: channel order and divisor of pixel values that the network was trained with.
    score_threshold, iou_threshold: the family's own defaults, for recipes that name none; without suppression the
    second is not used.
    """

    shapes: Callable[[tuple[int, int], int], Shapes]
    decode: Callable[[Outputs, tuple[int, int], float], Candidates]
    suppress: bool
    placement: Placement
    letterbox_value: int
    bgr: bool
    divisor: float
    score_threshold: float
    iou_threshold: float


FAMILIES: dict[str, Family] = {
    "yolov5": Family(decode.yolov5_shapes, decode.decode_yolov5, True, "centre", 114, False, 255.0, 0.25, 0.45),
    "yolov8": Family(decode.yolov8_shapes, decode.decode_yolov8, True, "centre", 114, False, 255.0, 0.25, 0.7),
    "yolox": Family(decode.yolox_shapes, decode.decode_yolox, True, "top-left", 114, True, 1.0, 0.3, 0.45),
    "yolox-decoded": Family(decode.yolox_shapes, decode.decode_yolov5, True, "top-left", 114, True, 1.0, 0.3, 0.45),
    "yolo-end2end": Family(decode.end2end_shapes, decode.decode_end2end, False, "centre", 114, False, 255.0, 0.25, 1.0),
    "rtdetr": Family(decode.end2end_shapes, decode.decode_rtdetr, False, "stretch", 114, False, 255.0, 0.25, 1.0),
    "rtdetr-per-class": Family(
        decode.rtdetr_shapes, decode.decode_rtdetr_per_class, False, "stretch", 114, False, 255.0, 0.25, 1.0
    ),
    "posekit": Family(decode.posekit_shapes, decode.decode_posekit, False, "centre", 114, False, 255.0, 0.3, 1.0),
}


def family_named(name: str) -> Family:
    """SpecError lists the known ones."""
    if name not in FAMILIES:
        raise SpecError(
            "detector family",
            got=repr(name),
            expected=f"one of {', '.join(FAMILIES)}",
            remedy="v9, v11 and v12 are yolov8; v10 and v26 are yolo-end2end; v6 and v7 are yolov5.",
        )
    return FAMILIES[name]


@dataclass(frozen=True, eq=False)
class Letterboxed:
    """An image scaled into a network's input, aspect kept to the nearest pixel unless it is stretched.

    pixels: (H, W, 3) uint8.   scale: (2,) x and y.   offset_px: (2,).   edge_in_input = scale * edge_in_image + offset_px.
    """

    pixels: Image
    scale: Array
    offset_px: Array


def letterbox(
    image_rgb_u8: Image,
    input_wh_px: tuple[int, int],
    value: int,
    placement: Placement,
    out: Image | None = None,
) -> Letterboxed:
    """Scale an (h, w, 3) image into `input_wh_px` and fill the rest with `value`.

    out: (H, W, 3) uint8 buffer to write into. `scale` is that of the resized image, per axis: rounding its sides to
    whole pixels makes the two differ slightly.
    """
    import cv2

    width, height = input_wh_px
    image_height, image_width = image_rgb_u8.shape[:2]
    inner_width, inner_height = _inner_size((image_width, image_height), input_wh_px, placement)
    left, top = _offset(width - inner_width, height - inner_height, placement)
    pixels = np.empty((height, width, 3), np.uint8) if out is None else out
    inner = pixels[top : top + inner_height, left : left + inner_width]
    # cv2 writes through a view whose rows are contiguous. INTER_LINEAR is faster by a little, but gives other bytes on
    # aarch64, and reads beyond the image there.
    cv2.resize(
        np.ascontiguousarray(image_rgb_u8), (inner_width, inner_height), dst=inner, interpolation=cv2.INTER_LINEAR_EXACT
    )
    pixels[:top], pixels[top + inner_height :] = value, value
    pixels[top : top + inner_height, :left] = value
    pixels[top : top + inner_height, left + inner_width :] = value
    scale = np.array([inner_width / image_width, inner_height / image_height])
    return Letterboxed(pixels, scale, np.array([left, top], dtype=np.float64))


def _inner_size(image_wh_px: tuple[int, int], input_wh_px: tuple[int, int], placement: Placement) -> tuple[int, int]:
    """Whole pixels: the families with a centred letterbox round, YOLOX rounds down."""
    if placement == "stretch":
        return input_wh_px
    ratio = min(input_wh_px[0] / image_wh_px[0], input_wh_px[1] / image_wh_px[1])
    whole: Callable[[float], int] = round if placement == "centre" else int
    return max(whole(image_wh_px[0] * ratio), 1), max(whole(image_wh_px[1] * ratio), 1)


def _offset(free_width_px: int, free_height_px: int, placement: Placement) -> tuple[int, int]:
    """An odd pixel goes to the right and below."""
    return (free_width_px // 2, free_height_px // 2) if placement == "centre" else (0, 0)


def nms(candidates: Candidates, iou_threshold: float) -> npt.NDArray[np.intp]:
    """Class-aware greedy suppression: indices kept, best score first, ties in input order.

    A box goes when a better one of its class overlaps it with IoU > threshold. Classes are compared, not told apart by
    shifting boxes as cv2.dnn.NMSBoxesBatched does, so the result does not depend on the rounding of far coordinates.
    """
    order = np.argsort(-candidates.scores, kind="stable")[:MAX_CANDIDATES]
    boxes, labels = candidates.boxes, candidates.labels
    kept: list[int] = []
    while order.size and len(kept) < MAX_DETECTIONS:
        best, order = order[0], order[1:]
        kept.append(int(best))
        rival = (labels[order] == labels[best]) & (iou(boxes[best], boxes[order]) > iou_threshold)
        order = order[~rival]
    return np.array(kept, dtype=np.intp)


def iou(box: Array32, boxes: Array32) -> Array32:
    """Intersection over union of one (4,) box with (N, 4) boxes; 0 where both are empty."""
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    intersection = sides.clip(min=0).prod(axis=1)
    union = (box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) - intersection
    return np.asarray(np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0))


class Detector:
    """One detector graph on one session. For one thread at a time: it reuses its input buffer.

    Raises SpecError where graph and entry do not fit each other.
    """

    def __init__(self, session: Session, entry: DetectorEntry) -> None:
        self.entry = entry
        self.family = family_named(entry.family)
        if not self.family.suppress and entry.iou_threshold != self.family.iou_threshold:
            raise SpecError(
                "detector iou_threshold",
                got=entry.iou_threshold,
                expected=f"{self.family.iou_threshold:g}: nothing is suppressed in the boxes of family {entry.family}",
                remedy="Leave iou_threshold out of the recipe, and export again.",
            )
        self._session = session
        self._shapes = self.family.shapes(entry.input_wh_px, len(entry.class_object_ids))
        self._object_ids = np.array(entry.class_object_ids, dtype=np.int64)
        width, height = entry.input_wh_px
        _check_input(session.inputs, (1, height, width, 3))
        self._check_outputs({spec.name: spec.shape for spec in session.outputs})
        self._pixels = np.empty((1, height, width, 3), np.uint8)
        self._alone = OneAtATime("detector")

    def detect(self, image_rgb_u8: Image, stage: Stage = no_stage) -> list[Detection]:
        """Objects in an (H, W, 3) uint8 RGB image, best score first; an empty list where there are none.

        Boxes are clipped to the image; what is thinner than a pixel there is no detection.
        Raises InputError for another image and while another thread detects, SpecError and BackendError for outputs
        that cannot be used.
        """
        with self._alone:
            return self._detected(image_rgb_u8, stage)

    def _detected(self, image_rgb_u8: Image, stage: Stage) -> list[Detection]:
        _check_image(image_rgb_u8)
        entry, family = self.entry, self.family
        with stage("letterbox"):
            size, value, placement = entry.input_wh_px, entry.letterbox_value, family.placement
            boxed = letterbox(image_rgb_u8, size, value, placement, out=self._pixels[0])
        with stage("detector"):
            outputs = self._session.run({"image": self._pixels})
        with stage("boxes"):
            return self._decoded(outputs, boxed, (image_rgb_u8.shape[1], image_rgb_u8.shape[0]))

    def _decoded(self, outputs: Outputs, boxed: Letterboxed, image_wh_px: tuple[int, int]) -> list[Detection]:
        entry, family = self.entry, self.family
        self._check_outputs({name: array.shape for name, array in outputs.items()})
        found = self._of_bundle(family.decode(outputs, entry.input_wh_px, entry.score_threshold))
        if family.suppress:
            found = found.take(nms(found, entry.iou_threshold))
        boxes = boxes_in_image(
            found.boxes.tolist(), boxed, image_wh_px
        )  # plain floats: right after a network ran, NumPy's
        rows = zip(found.labels.tolist(), found.scores.tolist(), boxes, strict=True)  # code has to come back first
        best_first = sorted(rows, key=lambda row: -row[1])[:MAX_DETECTIONS]
        return [
            Detection(entry.class_object_ids[label], score, np.array(box))
            for label, score, box in best_first
            if box[2] - box[0] >= MIN_BOX_SIDE_PX and box[3] - box[1] >= MIN_BOX_SIDE_PX
        ]

    def close(self) -> None:
        """Close the session. Twice is harmless."""
        self._session.close()

    def _check_outputs(self, shapes: dict[str, Shape]) -> None:
        remedy = "Check the family, the input size and the number of classes of the detector entry."
        check_shapes(f"a {self.entry.family} detector", self._shapes, shapes, remedy)

    def _of_bundle(self, found: Candidates) -> Candidates:
        """Without the classes that are no object of this bundle. SpecError for a class that the entry does not know."""
        labels, count = found.labels, len(self._object_ids)
        if labels.size and not 0 <= labels.min() <= labels.max() < count:
            raise SpecError(
                f"classes of the {self.entry.family} detector",
                got=f"class {labels.max() if labels.max() >= count else labels.min()}",
                expected=f"0 to {count - 1}",
                remedy="List one object id, or -1, for every class that the network knows.",
            )
        return found.take(self._object_ids[labels] >= 0)


def boxes_in_image(
    boxes: Sequence[Sequence[float]], boxed: Letterboxed, image_wh_px: tuple[int, int]
) -> list[tuple[float, float, float, float]]:
    """Edges x0, y0, x1, y1 in the letterboxed input -> in the image, pixel centres at integers, clipped to it.

    Edge e of a pixel grid lies at coordinate e - 0.5 when pixel centres are at integers.
    """
    (left, top), (scale_x, scale_y) = boxed.offset_px.tolist(), boxed.scale.tolist()
    width, height = image_wh_px

    def x(edge: float) -> float:
        return float(min(max((edge - left) / scale_x, 0.0), width)) - 0.5

    def y(edge: float) -> float:
        return float(min(max((edge - top) / scale_y, 0.0), height)) - 0.5

    return [(x(x0), y(y0), x(x1), y(y1)) for x0, y0, x1, y1 in boxes]


def _check_input(inputs: Sequence[TensorSpec], shape: tuple[int, ...]) -> None:
    fits = len(inputs) == 1 and inputs[0].name == "image" and inputs[0].dtype == "uint8"
    if not fits or not shapes_fit(inputs[0].shape, shape):
        raise SpecError(
            "detector graph",
            got=", ".join(map(str, inputs)) or "no input",
            expected=str(TensorSpec("image", "uint8", shape)),
            remedy="Third-party detectors get that input from posekit.export.detector_from_onnx.",
        )


def _check_image(image_rgb_u8: npt.NDArray[np.generic]) -> None:
    fits = isinstance(image_rgb_u8, np.ndarray) and image_rgb_u8.dtype == np.uint8 and image_rgb_u8.ndim == 3
    if not fits or image_rgb_u8.shape[2] != 3 or image_rgb_u8.size == 0:
        got = f"{getattr(image_rgb_u8, 'shape', type(image_rgb_u8))} {getattr(image_rgb_u8, 'dtype', '')}"
        raise InputError(
            "frame", got=got.strip(), expected="(H, W, 3) uint8 RGB", remedy="Convert the colour image first."
        )
