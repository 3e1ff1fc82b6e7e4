"""What a third party's detector gives on a picture shows what it is, and on frames with boxes whether it finds them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from posekit.export.detector_from_onnx import detector_graph_from_onnx
from posekit.export.detector_head import DetectorWarning
from posekit.export.detector_trial import (
    check_finds,
    check_outputs_of,
    found_boxes,
    likely_families,
    signs,
    synthetic_picture,
)
from posekit.runtime.boxes import boxes_from
from posekit.runtime.detection import Detection
from posekit.runtime.detector import FAMILIES, Family
from posekit.runtime.errors import ExportError
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.manifest import DetectorEntry
from posekit.runtime.sources import Frame, frames_from
from posekit.runtime.tensors import tensors_from_bytes

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
PROVENANCE = json.loads((GOLDEN / "detectors.json").read_text())
GOLDENS = tensors_from_bytes((GOLDEN / "detectors.safetensors").read_bytes(), "goldens").arrays
BANANA_ID, BANANA_CLASS, COCO = 10, 46, 80


def entry_of(family: str, wh: tuple[int, int] = (96, 64), classes: int = 4) -> DetectorEntry:
    iou = 0.45 if FAMILIES[family].suppress else 1.0
    return DetectorEntry("detector", family, wh, 114, tuple(range(1, classes + 1)), 0.25, iou)


def golden(name: str, image: str = "exact") -> dict[str, np.ndarray]:
    return {"predictions": GOLDENS[f"{name}/{image}/predictions"]}


@pytest.mark.parametrize("image", ["exact", "rounded"])
@pytest.mark.parametrize(("name", "family"), [(n, row["family"]) for n, row in PROVENANCE["networks"].items()])
def test_a_familys_own_networks_show_no_sign(name: str, family: str, image: str) -> None:
    assert signs(family, golden(name, image), entry_of(family)) == []


@pytest.mark.parametrize(
    ("name", "read_as", "sign", "likely"),
    [
        ("rtdetr-l", "yolo-end2end", "of 0 to 1", ("rtdetr",)),
        ("yolo26n", "rtdetr", "far beyond the input", ("yolo-end2end",)),
        ("yolox-nano-decoded", "yolox", "NaN or infinite", ("yolox-decoded", "yolov5")),
        ("yolox-nano", "yolox-decoded", "relative to their cells", ("yolox",)),
        ("yolox-nano", "yolov5", "relative to their cells", ("yolox",)),
    ],
)
def test_another_familys_outputs_are_told(name: str, read_as: str, sign: str, likely: tuple[str, ...]) -> None:
    entry, outputs = entry_of(read_as), golden(name)
    assert sign in " ".join(signs(read_as, outputs, entry))
    assert likely_families(outputs, entry) == likely


def rows(boxes: np.ndarray, *columns: np.ndarray) -> dict[str, np.ndarray]:
    return {"predictions": np.concatenate([boxes, *(c[:, None] for c in columns)], 1)[None].astype(np.float32)}


def random_boxes(count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Corners and centre-size of boxes all over 320 x 320."""
    rng = np.random.default_rng(0)
    centres, sizes = rng.uniform(40, 280, (count, 2)), rng.uniform(10, 80, (count, 2))
    return np.hstack([centres - sizes / 2, centres + sizes / 2]), np.hstack([centres, sizes])


def test_forms_of_boxes_and_scores_that_are_mistaken_for_others() -> None:
    corners, centred = random_boxes()
    one, none = np.full(200, 0.5), np.zeros(200)
    end2end, detr = entry_of("yolo-end2end", (320, 320)), entry_of("rtdetr-per-class", (320, 320), 3)
    assert signs("yolo-end2end", rows(corners, one, none), end2end) == []
    assert "centre and size" in signs("yolo-end2end", rows(centred, one, none), end2end)[0]
    assert "no probabilities" in signs("yolo-end2end", rows(corners, one * 9, none), end2end)[0]
    assert (
        "classes 0 to 4 of 4" in signs("yolo-end2end", rows(corners, one, none + 4 * (corners[:, 0] > 99)), end2end)[0]
    )
    assert "classes of the detector: 0.5" in signs("yolo-end2end", rows(corners, one, one), end2end)[0]
    assert signs("rtdetr-per-class", rows(centred / 320, one, none, none), detr) == []
    assert "two corners" in signs("rtdetr-per-class", rows(corners / 320, one, none, none), detr)[0]
    assert "no probabilities" in signs("rtdetr-per-class", rows(centred / 320, -one, none - 3, none - 1), detr)[0]


def test_the_trial_picture_is_a_frame() -> None:
    picture = synthetic_picture()
    assert picture.shape == (480, 640, 3)
    assert picture.dtype == np.uint8
    assert picture.std() > 50


# Frames with boxes.


class Colours:
    """A detector that scores each 8 px cell by the first channel of its pixels."""

    wh = (64, 64)

    def __init__(self, folder: Path) -> None:
        self.path = folder / "colours.onnx"
        y, x = np.divmod(np.arange(64), 8)
        centred = np.stack([x * 8 + 4, y * 8 + 4, 0 * x + 24, 0 * x + 24]).astype(np.float32)[None]
        kernel = np.zeros((1, 3, 8, 8), np.float32)
        kernel[0, 0] = 1 / 64  # mean red
        held = {"kernel": kernel, "boxes": centred, "flat": np.array([1, 1, 64])}
        nodes = [
            helper.make_node("Conv", ["images", "kernel"], ["red"], strides=[8, 8]),
            helper.make_node("Reshape", ["red", "flat"], ["scores"]),
            helper.make_node("Concat", ["boxes", "scores"], ["output0"], axis=1),
        ]
        graph = helper.make_graph(
            nodes,
            "colours",
            [helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, [1, 3, 64, 64])],
            [helper.make_tensor_value_info("output0", onnx.TensorProto.FLOAT, [1, 5, 64])],
            [numpy_helper.from_array(array, name) for name, array in held.items()],
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), self.path)

    def graph(self, prepared_as: Family | None = None) -> bytes:
        model = detector_graph_from_onnx(self.path, "yolov8", 1, prepared_as=prepared_as)
        return bytes(model.SerializeToString())

    @staticmethod
    def frames(count: int, colour: tuple[int, int, int]) -> list[tuple[Frame, Sequence[Detection]]]:
        """A square of 24 px in that colour, at another place in each frame, on black."""
        found: list[tuple[Frame, Sequence[Detection]]] = []
        for k in range(count):
            image = np.zeros((64, 64, 3), np.uint8)
            x, y = 8 * (k % 4 + 1), 8 * (k // 4 % 4 + 1)
            image[y : y + 24, x : x + 24] = colour
            box = np.array([x, y, x + 24, y + 24]) - 0.5
            camera = Intrinsics(np.array([[70.0, 0, 32], [0, 70, 32], [0, 0, 1]]), 64, 64)
            found.append((Frame(image, camera, str(k), k), [Detection(1, 1.0, box)]))
        return found


RED, BLUE = (255, 0, 0), (0, 0, 255)


def test_a_detector_that_finds_its_objects_has_nothing_to_say(tmp_path: Path) -> None:
    toy = Colours(tmp_path)
    entry = DetectorEntry("detector", "yolov8", toy.wh, 114, (1,), 0.25, 0.7)
    labelled = toy.frames(20, RED)
    assert found_boxes(entry, toy.graph(), labelled).all()
    check_finds("d.onnx", entry, toy.graph(), toy.graph, labelled)
    check_finds("d.onnx", entry, toy.graph(), toy.graph, [])


def test_swapped_channels_are_told_with_both_counts(tmp_path: Path) -> None:
    toy = Colours(tmp_path)
    entry = DetectorEntry("detector", "yolov8", toy.wh, 114, (1,), 0.25, 0.7)
    with pytest.raises(
        ExportError, match=r"0 of 20 boxes found in 20 frames.*20 of 20 boxes with BGR pixels of 0 to 1"
    ):
        check_finds("d.onnx", entry, toy.graph(), toy.graph, toy.frames(20, BLUE))
    mixed = [*toy.frames(8, BLUE), *toy.frames(1, RED)]
    with pytest.warns(DetectorWarning, match="1 of 9 boxes found, expected 8 of 9 boxes with BGR"):
        check_finds("d.onnx", entry, toy.graph(), toy.graph, mixed)
    with pytest.warns(DetectorWarning, match="0 of 3 boxes found in 3 frames"):  # too few to refuse it
        check_finds("d.onnx", entry, toy.graph(), toy.graph, toy.frames(3, BLUE))


def test_what_a_lower_threshold_would_find_is_told(tmp_path: Path) -> None:
    toy = Colours(tmp_path)
    entry = DetectorEntry("detector", "yolov8", toy.wh, 114, (1,), 0.25, 0.7)
    with pytest.raises(ExportError, match=r"With score_threshold = 0\.05 it finds 20"):
        check_finds("d.onnx", entry, toy.graph(), lambda _: toy.graph(), toy.frames(20, (40, 40, 40)))


# A real network.


def decoded(raw: Path, out: Path) -> Path:
    """YOLOX with its decoding appended: centre = (d + cell) * stride, size = exp(log size) * stride."""
    model = onnx.load(raw)
    cells, strides = [], []
    for stride in (8, 16, 32):
        y, x = np.divmod(np.arange((416 // stride) ** 2), 416 // stride)
        cells.append(np.stack([x, y], 1))
        strides.append(np.full((len(x), 1), stride))
    held = {"cells": np.concatenate(cells)[None], "strides": np.concatenate(strides)[None]}
    raw_name = model.graph.output[0].name
    model.graph.initializer.extend(numpy_helper.from_array(a.astype(np.float32), n) for n, a in held.items())
    model.graph.node.extend(
        [
            helper.make_node("Split", [raw_name], ["d", "log_size", "rest"], axis=2, split=[2, 2, 81]),
            helper.make_node("Add", ["d", "cells"], ["at"]),
            helper.make_node("Mul", ["at", "strides"], ["centre"]),
            helper.make_node("Exp", ["log_size"], ["in_cells"]),
            helper.make_node("Mul", ["in_cells", "strides"], ["size"]),
            helper.make_node("Concat", ["centre", "size", "rest"], ["decoded"], axis=2),
        ]
    )
    model.graph.output[0].name = "decoded"
    onnx.save(model, out)
    return out


def test_yolox_that_decodes_inside_is_told_and_finds_the_same(data_dir: Path, tmp_path: Path) -> None:
    raw = data_dir / "weights" / "yolox_nano.onnx"
    inside = decoded(raw, tmp_path / "decoded.onnx")
    ids = tuple(BANANA_ID if i == BANANA_CLASS else -1 for i in range(COCO))
    source, boxes = frames_from(data_dir / "ycbv" / "test" / "000002"), boxes_from("gt")
    try:
        frames = [(f, [b for b in boxes(f) if b.object_id == BANANA_ID]) for f in islice(source, 2)]
    finally:
        source.close()

    def tried(path: Path, family: str) -> np.ndarray:
        entry = DetectorEntry("detector", family, (416, 416), 114, ids, 0.15, 0.45)
        graph = detector_graph_from_onnx(path, family, COCO).SerializeToString()
        check_outputs_of(path.name, entry, graph, frames[0][0].image_rgb_u8)
        return found_boxes(entry, graph, frames)

    with pytest.raises(ExportError, match=r"Try family = 'yolox-decoded' or 'yolov5'\."):
        tried(inside, "yolox")
    with pytest.raises(ExportError, match=r"relative to their cells.*Try family = 'yolox'\."):
        tried(raw, "yolov5")
    assert tried(inside, "yolox-decoded").all()
    assert tried(raw, "yolox").all()


def end2end_rows(rows: int, seen: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    """Of `rows`, all but the first `seen` fill the output up. scale: of the boxes."""
    rng, filled = np.random.default_rng(0), np.zeros((rows, 6), np.float32)
    low = rng.uniform(2, 40, (seen, 2))
    filled[:seen] = np.column_stack([low * scale, (low + 12) * scale, rng.uniform(0.01, 0.3, seen), np.ones(seen)])
    return {"predictions": filled[None]}


def test_rows_that_fill_an_output_up_say_nothing() -> None:
    entry = entry_of("yolo-end2end")
    for seen in (0, 1, 2, 300):
        assert signs("yolo-end2end", end2end_rows(300, seen), entry) == []


@pytest.mark.parametrize("rows", [1, 8, 300])
def test_boxes_of_0_to_1_are_told_however_few_there_are(rows: int) -> None:
    (sign,) = signs("yolo-end2end", end2end_rows(300, rows, scale=1 / 96), entry_of("yolo-end2end"))
    assert "of 0 to 1" in sign


@pytest.mark.parametrize(("rows", "warned"), [(0, True), (3, False)])
def test_a_detector_that_says_nothing_of_a_picture_is_told(rows: int, warned: bool) -> None:
    """A graph that always gives the same, whatever it sees."""
    constant = numpy_helper.from_array(end2end_rows(20, rows)["predictions"], "predictions/constant")
    graph = helper.make_graph(
        [helper.make_node("Identity", ["predictions/constant"], ["predictions"])],
        "constant",
        [helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, [1, 64, 96, 3])],
        [helper.make_tensor_value_info("predictions", onnx.TensorProto.FLOAT, [1, 20, 6])],
        [constant],
    )
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        check_outputs_of("detector x", entry_of("yolo-end2end"), content, synthetic_picture())
    assert ["nothing says" in str(one.message) for one in told] == [True] * warned
