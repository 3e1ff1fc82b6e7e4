"""Detector outputs to boxes: one pure decode per family of detectors, and what shapes a family's outputs have.

Boxes here are edges in the letterboxed input: pixel column c covers c .. c + 1. NumPy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from posekit.runtime.errors import BackendError
from posekit.runtime.tensor import Shape

Array32 = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Outputs = Mapping[str, npt.NDArray[np.generic]]
Shapes = dict[str, Shape]

YOLOX_STRIDES_PX = (8, 16, 32)


@dataclass(frozen=True, eq=False)
class Candidates:
    """Boxes above the score threshold, before suppression.

    boxes: (N, 4) float32 x0, y0, x1, y1, edges in the letterboxed input.   scores: (N,) float32.   labels: (N,) int64.
    """

    boxes: Array32
    scores: Array32
    labels: Labels

    def take(self, index: npt.NDArray[np.intp] | npt.NDArray[np.bool_]) -> Candidates:
        return Candidates(self.boxes[index], self.scores[index], self.labels[index])


def yolov5_shapes(input_wh_px: tuple[int, int], class_count: int) -> Shapes:
    return {"predictions": (1, "anchors", 5 + class_count)}


def yolov8_shapes(input_wh_px: tuple[int, int], class_count: int) -> Shapes:
    return {"predictions": (1, 4 + class_count, "cells")}


def yolox_shapes(input_wh_px: tuple[int, int], class_count: int) -> Shapes:
    width, height = input_wh_px
    cells = sum((width // stride) * (height // stride) for stride in YOLOX_STRIDES_PX)
    return {"predictions": (1, cells, 5 + class_count)}


def end2end_shapes(input_wh_px: tuple[int, int], class_count: int) -> Shapes:
    return {"predictions": (1, "K", 6)}


def rtdetr_shapes(input_wh_px: tuple[int, int], class_count: int) -> Shapes:
    return {"predictions": (1, "queries", 4 + class_count)}


def posekit_shapes(input_wh_px: tuple[int, int], class_count: int) -> Shapes:
    return {"boxes": (1, "K", 4), "scores": (1, "K"), "labels": (1, "K")}


def decode_yolov5(outputs: Outputs, input_wh_px: tuple[int, int], score_threshold: float) -> Candidates:
    """Rows cx, cy, w, h (input pixels), objectness, class probabilities. Score: objectness times the best class.

    Also v6, v7, and YOLOX with its boxes decoded inside. One label per row, as the family's own detection script does; its validation script lets a row vote for all.
    """
    rows = _float32(outputs["predictions"])[0]
    return _above(rows[:, :4], rows[:, 5:], rows[:, 4], score_threshold)


def decode_yolov8(outputs: Outputs, input_wh_px: tuple[int, int], score_threshold: float) -> Candidates:
    """Columns cx, cy, w, h (input pixels), class probabilities; no objectness. Also v9, v11 and v12."""
    rows = _float32(outputs["predictions"])[0].T
    return _above(rows[:, :4], rows[:, 4:], None, score_threshold)


def decode_yolox(outputs: Outputs, input_wh_px: tuple[int, int], score_threshold: float) -> Candidates:
    """Rows dx, dy, log w, log h relative to their cell and stride, objectness, class probabilities.

    Ge et al., YOLOX, 2021, section 2.2: centre = (d + cell) * stride, size = exp(log size) * stride.
    """
    rows = _float32(outputs["predictions"])[0]
    cells, strides = _cells(input_wh_px)
    with np.errstate(over="ignore"):  # an infinite box is refused later, if its score counts at all
        centre_size = np.concatenate([rows[:, :2] + cells, np.exp(rows[:, 2:4])], axis=1) * strides
    return _above(centre_size, rows[:, 5:], rows[:, 4], score_threshold)


def decode_end2end(outputs: Outputs, input_wh_px: tuple[int, int], score_threshold: float) -> Candidates:
    """Rows x0, y0, x1, y1, score, class of a network that needs no suppression (v10, v26)."""
    rows = _float32(outputs["predictions"])[0]
    return _chosen(rows[:, :4], rows[:, 4], rows[:, 5], score_threshold)


def decode_rtdetr(outputs: Outputs, input_wh_px: tuple[int, int], score_threshold: float) -> Candidates:
    """Rows cx, cy, w, h (0 to 1 of the input's sides), score, class: RT-DETR as Ultralytics exports it since 2026."""
    rows = _float32(outputs["predictions"])[0]
    found = _chosen(rows[:, :4], rows[:, 4], rows[:, 5], score_threshold)
    return Candidates(_corners(found.boxes * _sides(input_wh_px)), found.scores, found.labels)


def decode_rtdetr_per_class(outputs: Outputs, input_wh_px: tuple[int, int], score_threshold: float) -> Candidates:
    """Rows cx, cy, w, h (0 to 1 of the input's sides), class probabilities: RT-DETR as Ultralytics exported it before."""
    rows = _float32(outputs["predictions"])[0]
    return _above(rows[:, :4] * _sides(input_wh_px), rows[:, 4:], None, score_threshold)


def decode_posekit(outputs: Outputs, input_wh_px: tuple[int, int], score_threshold: float) -> Candidates:
    """posekit's own detectors decode in the graph."""
    boxes, scores = _float32(outputs["boxes"])[0], _float32(outputs["scores"])[0]
    return _chosen(boxes, scores, outputs["labels"][0], score_threshold)


def _above(centre_size: Array32, classes: Array32, objectness: Array32 | None, score_threshold: float) -> Candidates:
    """Rows whose best class beats the threshold; cx, cy, w, h to corners for those only."""
    if objectness is not None:  # a probability of a class cannot lift it: most rows need no further look
        check_finite("scores", objectness)
        likely = np.flatnonzero(objectness > score_threshold)
        centre_size, classes, objectness = centre_size[likely], classes[likely], objectness[likely]
    scores = classes.max(axis=1)
    scores = scores if objectness is None else scores * objectness
    check_finite("scores", scores)
    keep = np.flatnonzero(scores > score_threshold)
    boxes = _corners(centre_size[keep])
    check_finite("boxes", boxes)
    return Candidates(boxes, scores[keep], classes[keep].argmax(axis=1).astype(np.int64))


def _chosen(boxes: Array32, scores: Array32, labels: npt.NDArray[np.generic], score_threshold: float) -> Candidates:
    check_finite("scores", scores)
    keep = np.flatnonzero(scores > score_threshold)
    boxes, labels = boxes[keep], labels[keep]
    check_finite("boxes", boxes)
    if labels.dtype != np.int64:
        check_finite("labels", labels)
    whole = labels.astype(np.int64, copy=False)
    if not np.array_equal(whole, labels):
        raise BackendError(
            "classes of the detector",
            got=f"{labels[whole != labels][0]:.3g}",
            expected="whole numbers",
            remedy="Check the detector's family and the order of its columns.",
        )
    return Candidates(boxes, scores[keep], whole)


def _corners(centre_size: Array32) -> Array32:
    """cx, cy, w, h -> x0, y0, x1, y1."""
    centre, half = centre_size[:, :2], centre_size[:, 2:] / 2
    return np.concatenate([centre - half, centre + half], axis=1)


def _sides(input_wh_px: tuple[int, int]) -> Array32:
    return np.array([*input_wh_px, *input_wh_px], np.float32)


def _cells(input_wh_px: tuple[int, int]) -> tuple[Array32, Array32]:
    """Column and row (N, 2), and stride (N, 1), of every cell: strides in order, row by row."""
    width, height = input_wh_px
    cells, strides = [], []
    for stride in YOLOX_STRIDES_PX:
        columns, rows = np.meshgrid(np.arange(width // stride), np.arange(height // stride))
        cells.append(np.stack([columns.ravel(), rows.ravel()], axis=1))
        strides.append(np.full((columns.size, 1), stride))
    return np.concatenate(cells).astype(np.float32), np.concatenate(strides).astype(np.float32)


def _float32(array: npt.NDArray[np.generic]) -> Array32:
    return array.astype(np.float32, copy=False)


def check_finite(what: str, values: npt.NDArray[np.generic]) -> None:
    """BackendError where a network gave NaN or infinity: thresholds would drop it without a word."""
    bad = values.size - int(np.count_nonzero(np.isfinite(values)))
    if bad:
        raise BackendError(
            f"{what} of the detector",
            got=f"{bad} of {values.size} NaN or infinite",
            expected="finite numbers",
            remedy="Of fp16 or int8: verify it against fp32. Of fp32: check the detector's family; a box that is decoded "
            "already overflows when it is decoded again.",
        )
