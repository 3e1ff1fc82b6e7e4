"""Detection: letterbox, decodes against the families' own packages, suppression, and boxes back in the image."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as random_arrays

from posekit.runtime.detector import FAMILIES, MAX_DETECTIONS, Detector, boxes_in_image, iou, letterbox, nms
from posekit.runtime.errors import BackendError, InputError, SpecError
from posekit.runtime.manifest import DetectorEntry
from posekit.runtime.profiler import STAGES, StageProfiler
from posekit.runtime.tensor import Feed, TensorSpec
from posekit.runtime.tensors import tensors_from_bytes
from posekit.runtime.yolo_decode import Candidates

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
PROVENANCE = json.loads((GOLDEN / "detectors.json").read_text())
GOLDENS = tensors_from_bytes((GOLDEN / "detectors.safetensors").read_bytes(), "goldens").arrays
CASES = [(name, row["family"], image) for name, row in PROVENANCE["networks"].items() for image in ("exact", "rounded")]
LETTERBOX = {name: row["letterbox"] for name, row in PROVENANCE["networks"].items()}

Outputs = dict[str, npt.NDArray[np.generic]]


class Fixed:
    """A session that answers every image alike and keeps what it was fed."""

    def __init__(self, outputs: Outputs, input_wh_px: tuple[int, int], specs: tuple[TensorSpec, ...] | None = None):
        self.answer, self.closed = outputs, False
        self.seen: npt.NDArray[np.generic] = np.zeros(0)
        self.inputs = (TensorSpec("image", "uint8", ("batch", input_wh_px[1], input_wh_px[0], 3)),)
        self.outputs = specs or tuple(TensorSpec(n, str(a.dtype), a.shape) for n, a in outputs.items())
        self.backend = "fixed answers"

    def run(self, feed: Feed) -> Outputs:
        self.seen = feed["image"].copy()
        return self.answer

    def close(self) -> None:
        self.closed = True


def entry_of(family: str, input_wh_px: tuple[int, int], classes: int, score: float = 0.25) -> DetectorEntry:
    ids = tuple(range(10, 10 + classes))
    row = FAMILIES[family]
    iou = 0.45 if row.suppress else row.iou_threshold
    return DetectorEntry("detector", family, input_wh_px, row.letterbox_value, ids, score, iou)


def posekit_outputs(boxes: object, scores: object, labels: object) -> Outputs:
    return {
        "boxes": np.array(boxes, np.float32).reshape(1, -1, 4),
        "scores": np.array(scores, np.float32)[None],
        "labels": np.array(labels, np.int64)[None],
    }


# Against the families' own packages.


@pytest.mark.parametrize(("name", "family", "image_name"), CASES)
def test_same_letterbox_as_the_family(name: str, family: str, image_name: str) -> None:
    image = GOLDENS[f"image/{image_name}"]
    row = FAMILIES[family]
    mine = letterbox(image, PROVENANCE["input_wh_px"], row.letterbox_value, row.placement)
    theirs = GOLDENS[f"letterboxed/{LETTERBOX[name]}/{image_name}"].astype(int)
    # They scale with INTER_LINEAR, whose rounding is another and differs between processors: one grey level.
    assert np.abs(mine.pixels.astype(int) - theirs).max() <= 1


@pytest.mark.parametrize(("name", "family", "image_name"), CASES)
def test_same_boxes_as_the_family(name: str, family: str, image_name: str) -> None:
    image = GOLDENS[f"image/{image_name}"]
    height, width = image.shape[:2]
    raw = GOLDENS[f"{name}/{image_name}/predictions"]
    wh = tuple(PROVENANCE["input_wh_px"])
    detector = Detector(Fixed({"predictions": raw}, wh), entry_of(family, wh, PROVENANCE["classes"]))
    mine = np.array([[*d.box_xyxy_px, d.score, d.object_id - 10] for d in detector.detect(image)])

    theirs = GOLDENS[f"{name}/{image_name}/found"].astype(np.float64)
    theirs[:, :4] = np.clip(theirs[:, :4], 0, [width, height, width, height]) - 0.5
    # yolov5 and YOLOX undo the scale that was asked for, not the one that rounding gave: up to a pixel of the input.
    inexact = image_name == "rounded" and family.startswith(("yolov5", "yolox"))
    tolerance = np.array([max(width / wh[0], height / wh[1]) if inexact else 1e-3] * 4 + [1e-6, 0])
    same: npt.NDArray[np.bool_] = np.all(np.abs(mine[:, None] - theirs[None]) <= tolerance, axis=2)
    assert len(theirs) > 5
    assert same[_thick(mine, tolerance[0])].any(axis=1).all()  # each of mine is one of theirs
    assert same[:, _thick(theirs, tolerance[0])].any(axis=0).all()  # and the other way round


def _thick(rows: npt.NDArray[np.float64], tolerance_px: float) -> npt.NDArray[np.bool_]:
    """What is surely no less than a pixel on either side of the comparison."""
    return np.asarray((rows[:, 2:4] - rows[:, :2] >= 1 + 2 * tolerance_px).all(axis=1))


def test_goldens_exercise_suppression() -> None:
    for name, family, image_name in CASES:
        row = FAMILIES[family]
        outputs = {"predictions": GOLDENS[f"{name}/{image_name}/predictions"]}
        candidates = row.decode(outputs, tuple(PROVENANCE["input_wh_px"]), 0.25)
        kept = len(GOLDENS[f"{name}/{image_name}/found"])
        assert kept < len(candidates.scores) if row.suppress else kept == len(candidates.scores)


# Letterbox.


@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.integers(8, 64),
    st.integers(8, 64),
    st.sampled_from(["centre", "top-left"]),
)
def test_letterbox_keeps_aspect_and_fills_the_rest(w: int, h: int, in_w: int, in_h: int, placement: str) -> None:
    image = np.full((h, w, 3), 7, np.uint8)
    boxed = letterbox(image, (in_w, in_h), 114, placement)  # type: ignore[arg-type]
    inner = boxed.pixels == 7
    assert boxed.pixels.shape == (in_h, in_w, 3)
    assert (inner | (boxed.pixels == 114)).all()
    inner_wh = np.rint(boxed.scale * [w, h]).astype(int)
    assert inner.sum() == 3 * inner_wh.prod()
    left, top = boxed.offset_px.astype(int)
    assert (boxed.pixels[top : top + inner_wh[1], left : left + inner_wh[0]] == 7).all()
    ratio = min(in_w / w, in_h / h)
    assert (np.abs(inner_wh - [max(ratio * w, 1), max(ratio * h, 1)]) < 1).all()


@given(st.integers(1, 90), st.integers(1, 90), st.integers(8, 64), st.integers(8, 64))
def test_a_stretched_image_fills_the_input_and_its_boxes_come_back_by_axis(
    w: int, h: int, in_w: int, in_h: int
) -> None:
    boxed = letterbox(np.full((h, w, 3), 7, np.uint8), (in_w, in_h), 114, "stretch")
    assert boxed.pixels.shape == (in_h, in_w, 3)
    assert (boxed.pixels == 7).all()
    back = boxes_in_image([[0.25 * in_w, 0.5 * in_h, 0.75 * in_w, in_h]], boxed, (w, h))[0]
    np.testing.assert_allclose(back, [0.25 * w - 0.5, 0.5 * h - 0.5, 0.75 * w - 0.5, h - 0.5], rtol=0, atol=1e-9)


def test_letterbox_writes_into_the_buffer_and_leaves_no_remains() -> None:
    buffer = np.full((32, 48, 3), 255, np.uint8)
    rng = np.random.default_rng(0)
    for shape in [(64, 20, 3), (10, 90, 3), (32, 48, 3)]:
        image = rng.integers(0, 256, shape, dtype=np.uint8)
        boxed = letterbox(image, (48, 32), 114, "centre", out=buffer)
        assert boxed.pixels is buffer
        np.testing.assert_array_equal(buffer, letterbox(image, (48, 32), 114, "centre").pixels)


def test_a_letterbox_of_the_same_size_changes_nothing() -> None:
    image = np.random.default_rng(1).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    np.testing.assert_array_equal(letterbox(image, (48, 32), 114, "centre").pixels, image)


# Pixel conventions.


@pytest.mark.parametrize("wh", [(640, 480), (480, 640), (320, 240), (1280, 720)])
def test_a_painted_rectangle_comes_back_where_it_was(wh: tuple[int, int]) -> None:
    """Columns a..b painted: edges a and b + 1 of the input's pixel grid scaled, box a - 0.5 and b + 0.5 out."""
    width, height = wh
    image = np.zeros((height, width, 3), np.uint8)
    image[120:200, 160:280] = 255
    boxed = letterbox(image, (320, 320), 0, "centre")
    rows, columns = np.nonzero(boxed.pixels[..., 0] > 127)
    seen = np.array([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]], np.float32)
    box = boxes_in_image(seen.tolist(), boxed, wh)[0]
    np.testing.assert_allclose(box, [159.5, 119.5, 279.5, 199.5], atol=0.5 / boxed.scale.min())


def test_an_unscaled_box_is_exact_and_clipped_to_the_image() -> None:
    boxed = letterbox(np.zeros((60, 100, 3), np.uint8), (100, 100), 114, "centre")
    edges = np.array([[10, 30, 11, 31], [-50, -50, 200, 200]], np.float32)
    np.testing.assert_array_equal(
        boxes_in_image(edges.tolist(), boxed, (100, 60)), [[9.5, 9.5, 10.5, 10.5], [-0.5, -0.5, 99.5, 59.5]]
    )


# Suppression.

BOXES = random_arrays(np.float32, st.tuples(st.integers(0, 24), st.just(4)), elements=st.integers(0, 20))


@given(BOXES, st.integers(0, 2**31), st.floats(0.1, 0.9))
def test_suppression_laws(corners: npt.NDArray[np.float32], seed: int, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    boxes = np.concatenate([np.minimum(corners[:, :2], corners[:, 2:]), np.maximum(corners[:, :2], corners[:, 2:])], 1)
    scores = rng.choice([0.3, 0.5, 0.9], len(boxes)).astype(np.float32)
    all_of_them = Candidates(boxes, scores, rng.integers(0, 3, len(boxes)))
    kept = nms(all_of_them, threshold)
    left = all_of_them.take(kept)
    assert (np.diff(left.scores) <= 0).all()
    np.testing.assert_array_equal(nms(left, threshold), np.arange(len(kept)))  # again changes nothing
    for i in range(len(kept)):
        rivals = left.labels[i + 1 :] == left.labels[i]
        assert not (rivals & (iou(left.boxes[i], left.boxes[i + 1 :]) > threshold)).any()
    for i in set(range(len(boxes))) - set(kept.tolist()):  # each that went, went for a better one of its class
        better = (left.labels == all_of_them.labels[i]) & (left.scores >= scores[i])
        assert (better & (iou(boxes[i], left.boxes) > threshold)).any()


def test_suppression_is_strict_and_knows_classes() -> None:
    boxes = np.array([[0, 0, 4, 4], [0, 0, 4, 2], [0, 0, 4, 4], [0, 0, 4, 4]], np.float32)
    found = Candidates(boxes, np.array([0.9, 0.8, 0.7, 0.6], np.float32), np.array([0, 0, 1, 0]))
    assert nms(found, 0.5).tolist() == [0, 1, 2]  # IoU 0.5 is not above 0.5
    assert nms(found, 0.49).tolist() == [0, 2]


def test_suppression_is_bounded() -> None:
    count = 2 * MAX_DETECTIONS
    corner = np.arange(count, dtype=np.float32)[:, None] * 10
    boxes = np.concatenate([corner, corner, corner + 5, corner + 5], axis=1)
    assert len(nms(Candidates(boxes, np.ones(count, np.float32), np.zeros(count, np.int64)), 0.5)) == MAX_DETECTIONS


# The detector.


def test_detections_are_sorted_and_of_the_bundle_only() -> None:
    outputs = posekit_outputs(
        [[0, 0, 8, 8], [8, 8, 24, 24], [4, 4, 6, 20], [0, 0, 30, 30]], [0.5, 0.8, 0.2, 0.9], [0, 1, 0, 2]
    )
    entry = replace(entry_of("posekit", (32, 32), 3, score=0.3), class_object_ids=(5, 9, -1))
    session = Fixed(outputs, (32, 32))
    detector = Detector(session, entry)
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    found = detector.detect(image)
    assert [(d.object_id, round(d.score, 3)) for d in found] == [(9, 0.8), (5, 0.5)]
    np.testing.assert_array_equal(found[0].box_xyxy_px, [15.5, 15.5, 47.5, 47.5])
    np.testing.assert_array_equal(session.seen[0], letterbox(image, (32, 32), 114, "centre").pixels)
    detector.close()
    assert session.closed


def test_nothing_found_is_an_empty_list_and_thin_boxes_are_nothing() -> None:
    entry = entry_of("posekit", (32, 32), 1)
    image = np.zeros((32, 32, 3), np.uint8)
    none = posekit_outputs([[0, 0, 8, 8]], [0.1], [0])
    thin = posekit_outputs([[0, 0, 0.5, 8], [40, 40, 50, 50], [9, 9, 3, 3]], [0.9, 0.8, 0.7], [0, 0, 0])
    assert Detector(Fixed(none, (32, 32)), entry).detect(image) == []
    assert Detector(Fixed(thin, (32, 32)), entry).detect(image) == []
    assert Detector(Fixed(posekit_outputs([], [], []), (32, 32)), entry).detect(image) == []


def test_what_a_detector_does_beside_its_network_are_stages_of_their_own() -> None:
    profiler = StageProfiler()
    detector = Detector(Fixed(posekit_outputs([], [], []), (32, 32)), entry_of("posekit", (32, 32), 2))
    detector.detect(np.zeros((32, 32, 3), np.uint8), profiler.stage)
    assert list(profiler.samples_ns) == ["letterbox", "detector", "boxes"] == list(STAGES[:3])


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("family", sorted({row["family"] for row in PROVENANCE["networks"].values()}))
def test_what_is_not_finite_is_refused(family: str, value: float) -> None:
    names = {row["family"]: name for name, row in PROVENANCE["networks"].items()}
    wh = tuple(PROVENANCE["input_wh_px"])
    raw = GOLDENS[f"{names[family]}/exact/predictions"].copy()
    raw[0, :, 4 if family != "yolov8" else 3] = value
    detector = Detector(Fixed({"predictions": raw}, wh), entry_of(family, wh, PROVENANCE["classes"]))
    with pytest.raises(BackendError, match="NaN or infinite"):
        detector.detect(GOLDENS["image/exact"])


def test_a_class_that_is_no_whole_number_is_refused() -> None:
    rows = np.array([[[8, 8, 20, 20, 0.9, 0.4]]], np.float32)
    detector = Detector(Fixed({"predictions": rows}, (32, 32)), entry_of("yolo-end2end", (32, 32), 2))
    with pytest.raises(BackendError, match=r"classes of the detector: got 0\.4, expected whole numbers"):
        detector.detect(np.zeros((32, 32, 3), np.uint8))


def test_a_box_that_overflows_below_the_threshold_is_no_matter() -> None:
    raw = np.zeros((1, 21, 6), np.float32)
    raw[0, :, 2:4] = 1000.0
    assert (
        Detector(Fixed({"predictions": raw}, (32, 32)), entry_of("yolox", (32, 32), 1)).detect(
            np.zeros((32, 32, 3), np.uint8)
        )
        == []
    )


@pytest.mark.parametrize("family", list(FAMILIES))
def test_outputs_of_another_shape_are_refused_by_name(family: str) -> None:
    wrong: Outputs = {name: np.zeros((1, 5, 3), np.float32) for name in FAMILIES[family].shapes((32, 32), 2)}
    entry = entry_of(family, (32, 32), 2)
    with pytest.raises(SpecError, match=rf"a {family} detector: got \(1, 5, 3\), expected \(1, "):
        Detector(Fixed(wrong, (32, 32)), entry)
    session = Fixed(wrong, (32, 32), tuple(TensorSpec(n, "float32", ("a", "b", "c")) for n in wrong))
    if family != "posekit":  # a graph that only tells its shapes when it runs
        with pytest.raises(SpecError, match=f"a {family} detector"):
            Detector(session, entry).detect(np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(SpecError, match="no such output"):
        Detector(Fixed({"y": np.zeros((1, 2))}, (32, 32)), entry)


def test_a_class_that_the_entry_does_not_know_is_refused() -> None:
    outputs = posekit_outputs([[0, 0, 8, 8]], [0.9], [7])
    with pytest.raises(SpecError, match="class 7, expected 0 to 1"):
        Detector(Fixed(outputs, (32, 32)), entry_of("posekit", (32, 32), 2)).detect(np.zeros((32, 32, 3), np.uint8))


def test_an_unknown_family_is_refused() -> None:
    entry = replace(entry_of("posekit", (32, 32), 2), family="yolov99")
    with pytest.raises(SpecError, match="'yolov99', expected one of yolov5, "):
        Detector(Fixed({}, (32, 32)), entry)


def test_a_graph_without_the_uint8_entrance_is_refused() -> None:
    session = Fixed(posekit_outputs([], [], []), (32, 32))
    session.inputs = (TensorSpec("images", "float32", (1, 3, 32, 32)),)
    with pytest.raises(SpecError, match=r"images float32\(1, 3, 32, 32\), expected image uint8\(1, 32, 32, 3\)"):
        Detector(session, entry_of("posekit", (32, 32), 2))


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((32, 32), np.uint8),
        np.zeros((32, 32, 4), np.uint8),
        np.zeros((32, 32, 3)),
        np.zeros((0, 32, 3), np.uint8),
    ],
)
def test_a_frame_of_another_kind_is_refused(image: npt.NDArray[np.uint8]) -> None:
    detector = Detector(Fixed(posekit_outputs([], [], []), (32, 32)), entry_of("posekit", (32, 32), 2))
    with pytest.raises(InputError, match=r"expected \(H, W, 3\) uint8 RGB"):
        detector.detect(image)


def test_a_threshold_that_nothing_uses_is_refused() -> None:
    entry = replace(entry_of("posekit", (64, 48), 2), iou_threshold=0.45)
    outputs = posekit_outputs([[0, 0, 1, 1]], [0.0], [0])
    with pytest.raises(SpecError, match=r"iou_threshold: got 0\.45, expected 1: nothing is suppressed"):
        Detector(Fixed(outputs, (64, 48)), entry)
