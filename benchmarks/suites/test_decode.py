"""Detector outputs of full size to boxes, and the suppression of overlaps."""

from __future__ import annotations

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from posekit.runtime.detector import FAMILIES, nms
from posekit.runtime.yolo_decode import Candidates, Outputs

WH_PX, CLASSES, THRESHOLD = (640, 640), 80, 0.25
CELLS, ANCHORS, KEPT = 8400, 25200, 300  # of 640 x 640 at strides 8, 16 and 32
LIKELY = 100  # rows above the threshold


def raw_outputs(family: str) -> Outputs:
    """Boxes all over the image; LIKELY rows of class 3 score 0.9."""
    rng = np.random.default_rng(0)
    if family == "posekit":
        corners = np.sort(rng.uniform(0, 640, (1, KEPT, 2, 2)), axis=2).reshape(1, KEPT, 4).astype(np.float32)
        scores = np.where(np.arange(KEPT) < LIKELY, 0.9, 0.01).astype(np.float32)[None]
        return {"boxes": corners, "scores": scores, "labels": np.full((1, KEPT), 3, np.int64)}
    rows = {"yolov5": ANCHORS, "yolov8": CELLS, "yolox": CELLS, "yolox-decoded": CELLS}.get(family, KEPT)
    low, high = {"yolox": (0, 3), "rtdetr": (0.1, 0.8), "rtdetr-per-class": (0.1, 0.8)}.get(family, (50, 500))
    boxes = rng.uniform(low, high, (rows, 4))
    score = np.where(np.arange(rows) < LIKELY, 0.9, 0.01)[:, None]
    if family in ("yolo-end2end", "rtdetr"):
        boxes[:, 2:] += boxes[:, :2] if family == "yolo-end2end" else 0
        table = np.concatenate([boxes, score, np.full((rows, 1), 3.0)], axis=1)
    else:
        classes = np.zeros((rows, CLASSES))
        classes[:, 3] = score[:, 0]
        sure = [np.ones((rows, 1))] if family.startswith(("yolov5", "yolox")) else []
        table = np.concatenate([boxes, *sure, classes], axis=1)
    return {"predictions": (table.T if family == "yolov8" else table).astype(np.float32)[None]}


@pytest.mark.parametrize("family", FAMILIES)
def test_decode(benchmark: BenchmarkFixture, family: str) -> None:
    found = benchmark(FAMILIES[family].decode, raw_outputs(family), WH_PX, THRESHOLD)
    assert len(found.scores) == LIKELY
    assert (found.labels == 3).all()


@pytest.mark.parametrize("count", [LIKELY, 1000])
def test_suppression(benchmark: BenchmarkFixture, count: int) -> None:
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 500, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(20, 140, (count, 2))], axis=1).astype(np.float32)
    labels = rng.integers(0, 3, count)
    candidates = Candidates(boxes, rng.uniform(0.3, 1, count).astype(np.float32), labels)
    kept = benchmark(nms, candidates, 0.45)
    assert 0 < len(kept) <= count
    assert kept[0] == candidates.scores.argmax()
