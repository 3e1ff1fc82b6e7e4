"""Detector files are told apart by what they say of themselves and by the shapes of their outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from posekit.export.detector_from_onnx import detector_graph_from_onnx
from posekit.export.detector_head import DetectorWarning, families_said, likely_head
from posekit.runtime.errors import ExportError

SIDE_PX = 64
# What Ultralytics 8.4 writes into every file.
ULTRALYTICS = {
    "description": "Ultralytics YOLO11n model trained on parts.yaml",
    "author": "Ultralytics",
    "task": "detect",
    "head": "Detect",
    "stride": "32",
    "imgsz": "[64, 64]",
    "names": "{0: 'can', 1: 'box', 2: 'mug'}",
    "end2end": "False",
}
RTDETR = ULTRALYTICS | {"description": "Ultralytics rtdetr-l model", "head": "RTDETRDecoder"}


def file_with(
    outputs: dict[str, tuple[int, ...]],
    metadata: dict[str, str] | None = None,
    folder: Path = Path(),
    inputs: dict[str, tuple[int, ...]] | None = None,
    dims: tuple[int | str, ...] = (1, 3, SIDE_PX, SIDE_PX),
) -> Path:
    """A file whose outputs have these shapes and depend on the image."""
    nodes = [helper.make_node("ReduceMax", ["images"], ["top"], axes=[1, 2, 3], keepdims=0)]
    weights = []
    for name, shape in outputs.items():
        weights.append(numpy_helper.from_array(np.full(shape, 0.5, np.float32), f"{name}_rows"))
        nodes.append(helper.make_node("Mul", [f"{name}_rows", "top"], [name]))
    more = [helper.make_tensor_value_info(n, TensorProto.INT64, s) for n, s in (inputs or {}).items()]
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, dims), *more],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, metadata or {})
    onnx.save(model, folder / "toy.onnx")
    return folder / "toy.onnx"


@pytest.mark.parametrize(
    ("family", "shape", "metadata", "match"),
    [
        ("yolo-end2end", (1, 300, 6), RTDETR, "head RTDETRDecoder, expected family 'rtdetr'.*Write family = 'rtdetr'"),
        ("yolov8", (1, 300, 7), RTDETR, "expected family 'rtdetr'"),
        ("rtdetr", (1, 300, 6), ULTRALYTICS | {"end2end": "True"}, "expected family 'yolo-end2end'"),
        ("yolov5", (1, 84, 8), ULTRALYTICS, "YOLO11n.*expected family 'yolov8'"),
        (
            "yolov8",
            (1, 7, 84),
            ULTRALYTICS | {"task": "pose"},
            "task 'pose': boxes with keypoints, expected task 'detect'",
        ),
        ("yolov8", (1, 7, 84), ULTRALYTICS | {"task": "segment"}, "boxes with mask coefficients"),
        ("yolov8", (1, 7, 84), ULTRALYTICS | {"task": "obb"}, "boxes with an angle"),
        ("yolov8", (1, 3), ULTRALYTICS | {"task": "classify"}, "a class per image and no boxes"),
        ("yolov8", (1, 3), ULTRALYTICS | {"task": "new"}, "task 'new': unknown"),
        ("yolo-end2end", (1, 300, 6), {"names": "['can', 'box']"}, "got 3 labels .*expected 2"),
        ("yolov8", (1, 7, 84), ULTRALYTICS | {"stride": "48"}, "input of 64 x 64, expected sides .* its stride, 48"),
    ],
)
def test_what_metadata_say_is_believed(
    family: str, shape: tuple[int, ...], metadata: dict[str, str], match: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=match):
        detector_graph_from_onnx(file_with({"output0": shape}, metadata, tmp_path), family, 3)


@pytest.mark.parametrize(
    ("family", "shape", "metadata"),
    [
        ("rtdetr", (1, 300, 6), RTDETR),
        ("rtdetr-per-class", (1, 300, 7), {k: v for k, v in RTDETR.items() if k != "head"}),
        ("yolov8", (1, 7, 84), ULTRALYTICS),
        ("yolo-end2end", (1, 300, 6), ULTRALYTICS | {"end2end": "True", "description": "Ultralytics YOLO26n model"}),
        ("yolo-end2end", (1, 300, 6), ULTRALYTICS | {"head": "v10Detect", "end2end": "True"}),
        ("yolov5", (1, 252, 8), {"stride": "32", "names": "['can', 'box', 'mug']"}),
        ("yolov8", (1, 7, 84), {}),
        ("yolov8", (1, 7, 84), {"names": "(", "stride": "x", "imgsz": "64", "end2end": "?"}),
    ],
)
def test_what_they_do_not_gainsay_is_read(
    family: str, shape: tuple[int, ...], metadata: dict[str, str], tmp_path: Path
) -> None:
    model = detector_graph_from_onnx(file_with({"output0": shape}, metadata, tmp_path), family, 3)
    assert [output.name for output in model.graph.output] == ["predictions"]


def test_another_size_than_it_was_exported_for_is_told(tmp_path: Path) -> None:
    path = file_with({"output0": (1, 7, 84)}, ULTRALYTICS, tmp_path, dims=(1, 3, "height", "width"))
    detector_graph_from_onnx(path, "yolov8", 3, (64, 64))
    with pytest.warns(DetectorWarning, match="got an input of 96 x 64, expected 64 x 64"):
        detector_graph_from_onnx(path, "yolov8", 3, (96, 64))


@pytest.mark.parametrize(
    ("shape", "family", "head"),
    [
        ((1, 39, 84), "yolov8", "a segmentation head"),
        ((1, 300, 38), "yolo-end2end", "a segmentation head"),
        ((1, 58, 84), "yolov8", "a pose head, or one with another number of classes"),
        ((1, 300, 57), "yolo-end2end", "a pose head, or one with another number of classes"),
        ((1, 8, 84), "yolov8", r"an oriented-box head \(OBB\)"),
        ((1, 300, 7), "yolo-end2end", r"an oriented-box head \(OBB\)"),
        ((1, 3), "yolov8", "a classifier"),
        ((1, 7, 84), "yolov5", "a yolov8 head"),
        ((1, 300, 6), "yolov8", "a yolo-end2end or rtdetr head"),
    ],
)
def test_heads_without_metadata_are_told_by_their_shapes(
    shape: tuple[int, ...], family: str, head: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=f"as {head} has, expected one output"):
        detector_graph_from_onnx(file_with({"output0": shape}, {}, tmp_path), family, 3)


def test_swapped_axes_are_told_where_no_other_head_has_as_many_columns() -> None:
    assert likely_head([(1, 84, 9)], 5) == "a yolov8 head with its axes swapped"


@pytest.mark.parametrize("names", [("logits", "pred_boxes"), ("labels", "dets"), ("scores", "boxes")])
def test_boxes_and_scores_in_two_outputs_are_refused_by_name(names: tuple[str, str], tmp_path: Path) -> None:
    path = file_with({names[0]: (1, 300, 7), names[1]: (1, 300, 4)}, {}, tmp_path)
    for family in ("rtdetr-per-class", "yolo-end2end"):  # the scores alone have the shape of the first
        with pytest.raises(ExportError, match="in two outputs, as DETR"):
            detector_graph_from_onnx(path, family, 3)


@pytest.mark.parametrize("name", ["orig_target_sizes", "scale_factor", "pixel_mask"])
def test_post_processing_inside_is_refused_by_name(name: str, tmp_path: Path) -> None:
    path = file_with({"boxes": (1, 300, 4)}, {}, tmp_path, inputs={name: (1, 2)})
    with pytest.raises(ExportError, match=f"an input '{name}': .*without its post-processor"):
        detector_graph_from_onnx(path, "rtdetr", 3)


def test_an_rtdetr_file_is_of_the_form_of_its_time() -> None:
    assert families_said(RTDETR)[0] == "rtdetr"
    assert families_said({"description": "Ultralytics RT-DETR-l model"})[0] == "rtdetr-per-class"
    assert families_said({}) == ()
