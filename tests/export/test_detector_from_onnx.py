"""Third-party detectors: the uint8 entrance changes no number, and what does not fit is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from posekit.export.detector_from_onnx import (
    THIRD_PARTY,
    class_object_ids,
    detector_graph_from_onnx,
    labels_from_file,
    labels_from_onnx,
)
from posekit.runtime.backends.ort import OrtSession
from posekit.runtime.detector import FAMILIES, Detector, iou
from posekit.runtime.errors import ExportError, RecipeError, SpecError
from posekit.runtime.manifest import DetectorEntry

SIDE_PX, CLASSES = 32, 3
BANANA_ID = 10


def session_of(model: onnx.ModelProto) -> OrtSession:
    return OrtSession(model.SerializeToString(), threads=1)


def toy_detector(
    family: str,
    name: str = "images",
    dims: tuple[int | str, ...] = (1, 3, SIDE_PX, SIDE_PX),
    kind: int = TensorProto.FLOAT,
    opset: int = 17,
) -> onnx.ModelProto:
    """A convolution and a product that give the family's shape; a second output that no family knows."""
    shape = [
        n if isinstance(n, int) else 40 for n in FAMILIES[family].shapes((SIDE_PX, SIDE_PX), CLASSES)["predictions"]
    ]
    rng = np.random.default_rng(0)
    dtype = np.float32 if kind == TensorProto.FLOAT else np.float16
    weights = {
        "kernel": rng.normal(size=(8, 3, 8, 8)).astype(dtype),
        "mix": rng.normal(size=(128, int(np.prod(shape)))).astype(dtype),
        "flat": np.array([1, 128]),
        "shape": np.array(shape),
    }
    nodes = [
        helper.make_node("Conv", [name, "kernel"], ["features"], strides=[8, 8]),
        helper.make_node("Reshape", ["features", "flat"], ["row"]),
        helper.make_node("MatMul", ["row", "mix"], ["product"]),
        helper.make_node("Reshape", ["product", "shape"], ["out"]),
        helper.make_node("Relu", ["features"], ["aside"]),
    ]
    nodes[0].doc_string = "File /home/someone/train.py"
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info(name, kind, dims)],
        [helper.make_tensor_value_info("out", kind, shape), helper.make_tensor_value_info("aside", kind, ["a"] * 4)],
        [numpy_helper.from_array(array, key) for key, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    helper.set_model_props(model, {"names": "{0: 'can', 1: 'box', 2: 'mug'}", "date": "today", "license": "CC0"})
    return model


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    onnx.save(model, folder / "toy.onnx")
    return folder / "toy.onnx"


@pytest.mark.parametrize("family", THIRD_PARTY)
@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16])
@pytest.mark.parametrize("name", ["images", "image", "predictions"])
def test_the_entrance_changes_no_number(family: str, kind: int, name: str, tmp_path: Path) -> None:
    original = toy_detector(family, name, kind=kind)
    model = detector_graph_from_onnx(saved(original, tmp_path), family, CLASSES)
    image = np.random.default_rng(1).integers(0, 256, (1, SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
    by_hand = image.transpose(0, 3, 1, 2).astype(np.float32)
    by_hand = by_hand[:, ::-1] if FAMILIES[family].bgr else by_hand / np.float32(255)
    feed = {name: np.ascontiguousarray(by_hand).astype(np.float32 if kind == TensorProto.FLOAT else np.float16)}
    wanted = session_of(original).run(feed)["out"].astype(np.float32)
    got = session_of(model).run({"image": image})["predictions"].astype(np.float32)
    # Bit for bit; in half precision the CPU leaves out casts that it thinks superfluous.
    atol = 0.0 if kind == TensorProto.FLOAT else 2e-3 * float(np.abs(wanted).max())
    np.testing.assert_allclose(got, wanted, rtol=0, atol=atol)


def test_the_graph_has_the_detector_contract_and_says_nothing_else(tmp_path: Path) -> None:
    model = detector_graph_from_onnx(saved(toy_detector("yolox"), tmp_path), "yolox", CLASSES)
    assert [i.name for i in model.graph.input] == ["image"]
    assert [o.name for o in model.graph.output] == ["predictions"]
    assert "Relu" not in {node.op_type for node in model.graph.node}
    assert model.opset_import[0].version == 17
    assert {p.key: p.value for p in model.metadata_props} == {"license": "CC0"}
    assert b"someone" not in model.SerializeToString()
    assert model.graph.node[0].op_type == "Cast"  # the only thing TensorRT does to uint8


def test_a_dynamic_size_is_fixed(tmp_path: Path) -> None:
    path = saved(toy_detector("yolov8", dims=("batch", 3, "height", "width")), tmp_path)
    model = detector_graph_from_onnx(path, "yolov8", CLASSES, (SIDE_PX, SIDE_PX))
    assert [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == [1, SIDE_PX, SIDE_PX, 3]
    with pytest.raises(ExportError, match=r"images float\(batch, 3, height, width\).*or give input_wh_px"):
        detector_graph_from_onnx(path, "yolov8", CLASSES)


def refused(
    model: onnx.ModelProto,
    folder: Path,
    match: str,
    family: str = "yolov8",
    class_count: int = CLASSES,
    input_wh_px: tuple[int, int] | None = None,
) -> None:
    with pytest.raises(ExportError, match=match):
        detector_graph_from_onnx(saved(model, folder), family, class_count, input_wh_px)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    toy = toy_detector("yolov8")
    refused(toy, tmp_path, "got 4 labels for .*, expected 3, as its metadata name", class_count=4)
    nameless = toy_detector("yolov8")
    del nameless.metadata_props[:]
    refused(nameless, tmp_path, r"out float\(1, 7, 40\).*expected one output \(1, 8, cells\)", class_count=4)
    refused(toy, tmp_path, r"expected one output \(1, 21, 8\) of a yolox", family="yolox")
    refused(toy, tmp_path, "with W x H 64 x 32", input_wh_px=(64, 32))
    refused(toy, tmp_path, "family 'posekit', expected one of yolov5", family="posekit")
    refused(toy_detector("yolov8", opset=9), tmp_path, "opset 9, expected 11 to")
    refused(toy_detector("yolov8", dims=(1, 1, SIDE_PX, SIDE_PX)), tmp_path, r"images float\(1, 1, 32, 32\)")
    with pytest.raises(SpecError, match="expected one of yolov5"):
        detector_graph_from_onnx(saved(toy, tmp_path), "detr", CLASSES)


def test_operators_that_no_engine_plans_are_refused(tmp_path: Path) -> None:
    suppressing = toy_detector("yolov8")
    suppressing.graph.node.add(op_type="NonZero", input=["out"], output=["where"])
    refused(suppressing, tmp_path, "operators NonZero.*nms=False")
    foreign = toy_detector("yolov8")
    foreign.graph.node.add(op_type="EfficientNMS_TRT", domain="TRT", input=["out"], output=["boxes"])
    foreign.opset_import.add(domain="TRT", version=1)
    refused(foreign, tmp_path, "suppression inside: EfficientNMS_TRT.*without NMS")
    foreign.graph.node[-1].op_type = "FlattenConcat_TRT"
    refused(foreign, tmp_path, "operators of TRT")
    uint8 = toy_detector("yolov8")
    uint8.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    refused(uint8, tmp_path, r"images uint8\(1, 3, 32, 32\)")


@pytest.mark.parametrize("content", [b"", b"not a graph", b"\x08\x07" * 9])
def test_a_file_that_is_no_model_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(content)
    with pytest.raises(ExportError, match="expected an ONNX model"):
        detector_graph_from_onnx(tmp_path / "x.onnx", "yolov8", CLASSES)
    with pytest.raises(ExportError, match="expected an ONNX model"):
        labels_from_onnx(tmp_path / "absent.onnx")


@pytest.mark.parametrize(
    "names", ["", "{0: 'a', 2: 'b'}", "[]", "['a', 3]", "__import__('os').getcwd()", "'abc", "7", "(" * 5000]
)
def test_names_are_read_as_a_literal_and_nothing_else(names: str, tmp_path: Path) -> None:
    toy = toy_detector("yolov8")
    path = saved(toy, tmp_path)
    assert labels_from_onnx(path) == ("can", "box", "mug")
    helper.set_model_props(toy, {"names": names} if names else {})
    with pytest.raises(ExportError, match="Give a labels file"):
        labels_from_onnx(saved(toy, tmp_path))


@pytest.mark.parametrize(("opset", "raised"), [(11, 13), (12, 13), (13, 13), (17, 17)])
def test_an_opset_that_cannot_say_int8_is_raised_for_it(opset: int, raised: int, tmp_path: Path) -> None:
    path = saved(toy_detector("yolox", opset=opset), tmp_path)
    kept, for_int8 = (detector_graph_from_onnx(path, "yolox", CLASSES, int8=int8) for int8 in (False, True))
    assert kept.opset_import[0].version == opset
    assert for_int8.opset_import[0].version == raised
    feed = {"image": np.random.default_rng(3).integers(0, 256, kept_shape(kept), dtype=np.uint8)}
    before, after = (session_of(model).run(feed)["predictions"] for model in (kept, for_int8))
    np.testing.assert_array_equal(before, after)


def kept_shape(model: onnx.ModelProto) -> list[int]:
    return [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]


def test_an_opset_that_cannot_be_raised_is_refused_for_int8_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
        raise RuntimeError("Upsample: no conversion")

    monkeypatch.setattr("onnx.version_converter.convert_version", fails)
    path = saved(toy_detector("yolox", opset=11), tmp_path)
    detector_graph_from_onnx(path, "yolox", CLASSES)
    with pytest.raises(ExportError, match=r"opset 11, RuntimeError: Upsample.* opset 13, which int8 needs") as caught:
        detector_graph_from_onnx(path, "yolox", CLASSES, int8=True)
    assert "int8 out" in caught.value.remedy


def test_one_that_means_something_else_in_a_later_opset_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changes(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
        other = onnx.ModelProto.FromString(model.SerializeToString())
        weight = next(tensor for tensor in other.graph.initializer if len(tensor.dims) == 4)
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.01), weight.name))
        assert isinstance(other, onnx.ModelProto)
        return other

    monkeypatch.setattr("onnx.version_converter.convert_version", changes)
    with pytest.raises(ExportError, match="differs by"):
        detector_graph_from_onnx(saved(toy_detector("yolox", opset=12), tmp_path), "yolox", CLASSES, int8=True)


def test_yolox_nano_finds_the_banana(data_dir: Path) -> None:
    """A real network on 20 real frames. Measured: found in 19, IoU with the visible box median 0.94, minimum 0.63."""
    from PIL import Image

    weights, scene = data_dir / "weights", data_dir / "ycbv" / "test" / "000002"
    labels = labels_from_file(weights / "coco_classes.txt")
    ids = class_object_ids(labels, {"banana": BANANA_ID})
    assert ids.index(BANANA_ID) == 46
    model = detector_graph_from_onnx(weights / "yolox_nano.onnx", "yolox", len(labels))
    detector = Detector(session_of(model), DetectorEntry("detector", "yolox", (416, 416), 114, ids, 0.15, 0.45))
    truth = json.loads((scene / "scene_gt.json").read_text())
    boxes = json.loads((scene / "scene_gt_info.json").read_text())
    overlaps = []
    for frame, objects in truth.items():
        image = np.asarray(Image.open(scene / "rgb" / f"{int(frame):06d}.png"))
        row = next(i for i, thing in enumerate(objects) if thing["obj_id"] == BANANA_ID)
        x, y, width, height = boxes[frame][row]["bbox_visib"]
        visible = np.array([x, y, x + width, y + height], np.float32) - 0.5
        found = detector.detect(image)
        assert len(found) <= 1
        overlaps += [float(iou(visible, d.box_xyxy_px[None].astype(np.float32))[0]) for d in found]
    assert len(overlaps) >= 18
    assert min(overlaps) > 0.6
    assert np.median(overlaps) > 0.9


def test_labels_and_object_ids(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("can\nbox\nmug\n")
    labels = labels_from_file(tmp_path / "labels.txt")
    assert class_object_ids(labels, {"mug": 14, "can": 1}) == (1, -1, 14)
    with pytest.raises(RecipeError, match="'spoon', expected one of 3 classes: can, box, mug"):
        class_object_ids(labels, {"spoon": 3})
    (tmp_path / "labels.txt").write_text("can\n\nmug")
    with pytest.raises(RecipeError, match="one class name per line"):
        labels_from_file(tmp_path / "labels.txt")
    with pytest.raises(RecipeError, match="labels file"):
        labels_from_file(tmp_path / "absent.txt")
