"""Graphs and banks that load and are wrong: refused where they break the contract, absent poses where they say nonsense."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_bundles import BOX, CROPS, SIZE, bank_bytes, constant_graph, perfect_maps

from posekit.runtime.bank import bank_from_bytes
from posekit.runtime.bundle import Bundle
from posekit.runtime.detection import Detection, PoseEstimate, Reason, Unposed
from posekit.runtime.errors import BankError, PosekitError, SpecError
from posekit.runtime.estimator import PoseEstimator
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.manifest import DEFAULT_CROPS_PER_PASS, GraphEntry
from posekit.runtime.pose import Pose
from posekit.runtime.tensor import TensorSpec

CAMERA = Intrinsics(np.array([[100.0, 0, 50], [0, 100, 50], [0, 0, 1]]), 101, 101)
INSIDE, PARTLY_OUTSIDE = np.array([40.0, 40, 60, 60]), np.array([-5.0, 40, 15, 60])
FRAME = np.full((101, 101, 3), (200, 0, 0), np.uint8)
MATCHER_INPUTS = (
    TensorSpec("descriptors", "float32", ("batch", 1, 3)),
    TensorSpec("templates", "float32", (1, 3, "views")),
    TensorSpec("weights", "float32", ("views",)),
)
POSE = {"R": np.eye(3), "t": np.array([0, 0, 1.0]), "score": np.array(0.5)}
Write = Callable[..., Path]
Graph = tuple[bytes, GraphEntry]


def pose_graph(**changes: np.ndarray) -> Graph:
    return constant_graph("pose", (BOX,), **POSE | changes)


def matcher(score: float, index: int = 0) -> Graph:
    return constant_graph("matcher", MATCHER_INPUTS, index=np.full(5, index), score=np.full(5, score))


def estimates(bundle_path: Path, path: str, *boxes: np.ndarray) -> list[PoseEstimate]:
    with Bundle(bundle_path) as bundle, PoseEstimator(bundle, path=path) as estimator:
        return estimator.estimate(FRAME, CAMERA, [Detection(1, 0.9, box) for box in boxes])


PIXELS = TensorSpec("pixels", "uint8", ("batch", SIZE, SIZE, 3))
LARGER = TensorSpec("crops", "uint8", ("batch", 2 * SIZE, 2 * SIZE, 3))
DESCRIPTORS = np.array([[1.0, 0, 0]])


@pytest.mark.parametrize(
    ("path", "name", "graph", "cause"),
    [
        ("regressor", "pose", constant_graph("pose", (PIXELS,), **POSE), "'pixels'"),
        ("regressor", "pose", constant_graph("pose", (LARGER,), **POSE), r"64, 64, 3"),
        ("regressor", "pose", constant_graph("pose", (BOX,), R=np.eye(3), t=np.ones(3)), "'score'"),
        ("regressor", "pose", pose_graph(R=np.ones(9)), r"\(batch, 9\), expected \(batch, 3, 3\)"),
        ("regressor", "pose", pose_graph(t=np.ones((3, 1))), "'t'"),
        ("epnp", "maps", constant_graph("correspondence", (BOX,), mask=np.ones((8, 8))), "coords_m"),
        ("bank", "embedder", constant_graph("embedder", (CROPS,), features=DESCRIPTORS), "descriptors"),
        ("bank", "embedder", constant_graph("embedder", (CROPS,), descriptors=np.ones((2, 3))), "'descriptors'"),
        ("bank", "matcher", constant_graph("matcher", MATCHER_INPUTS, index=np.zeros(5, int)), "score"),
        ("bank", "matcher", matcher(0.5, index=6), "matcher index"),
        ("bank", "matcher", matcher(0.5, index=-1), "matcher index"),
    ],
)
def test_a_graph_that_breaks_its_contract_is_refused(
    toy_bundle: Write, path: str, name: str, graph: Graph, cause: str
) -> None:
    with pytest.raises(SpecError, match=cause):
        estimates(toy_bundle(replaced={name: graph}), path, INSIDE)


@pytest.mark.parametrize(
    "change",
    [
        {"R": np.zeros((3, 3))},
        {"R": 2 * np.eye(3)},
        {"R": np.diag([1.0, 1, -1])},
        {"R": np.full((3, 3), np.nan)},
        {"t": np.array([0, np.inf, 1])},
        {"t": np.array([0, 0, -1.0])},
        {"score": np.array(np.nan)},
        {"score": np.array(np.inf)},
    ],
)
def test_a_pose_that_is_none_is_absent(toy_bundle: Write, change: dict[str, np.ndarray]) -> None:
    assert estimates(toy_bundle(replaced={"pose": pose_graph(**change)}), "regressor", INSIDE) == []


def test_nonsense_of_one_crop_leaves_the_others(toy_bundle: Write) -> None:
    """The toy graph says NaN of a box that begins left of the image."""
    found = estimates(toy_bundle(replaced={"pose": pose_graph()}), "regressor", INSIDE, PARTLY_OUTSIDE, INSIDE)
    assert [e.detection.box_xyxy_px[0] for e in found] == [40, 40]


def test_a_rotation_rounded_as_half_precision_rounds_is_one(toy_bundle: Write) -> None:
    R = Pose.from_rotvec([0.3, -0.8, 0.4]).R
    (found,) = estimates(toy_bundle(replaced={"pose": pose_graph(R=R.astype(np.float16))}), "regressor", INSIDE)
    np.testing.assert_allclose(found.cam_from_obj.R, R, atol=2e-3)


@pytest.mark.parametrize("score", [np.nan, np.inf, -np.inf, 0.0, -0.3])
def test_nothing_alike_is_no_pose(toy_bundle: Write, score: float) -> None:
    assert estimates(toy_bundle(replaced={"matcher": matcher(score)}), "bank", INSIDE) == []
    assert len(estimates(toy_bundle(replaced={"matcher": matcher(0.1)}), "bank", INSIDE)) == 1


def test_descriptors_of_nan_are_no_pose(toy_bundle: Write) -> None:
    """The toy embedder divides by the length of a black crop's colour, which is zero."""
    with Bundle(toy_bundle()) as bundle, PoseEstimator(bundle, path="bank") as estimator:
        half_black = FRAME.copy()
        half_black[:, 50:] = 0
        detections = [Detection(1, 0.9, box) for box in (np.array([70.0, 40, 90, 60]), np.array([5.0, 40, 25, 60]))]
        found = estimator.estimate(half_black, CAMERA, detections)
    assert [e.detection.box_xyxy_px[0] for e in found] == [5]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_maps_that_are_not_finite_are_no_pose_or_one_of_the_rest(toy_bundle: Write, value: float) -> None:
    truth = Pose.from_rotvec([0.4, -0.9, 0.2], [0.0, 0.0, 0.7])
    scale = 32 / 24
    K_crop = np.array([[scale, 0, 15.5 - scale * 50], [0, scale, 15.5 - scale * 50], [0, 0, 1]]) @ CAMERA.K
    mask, coords = perfect_maps(truth, K_crop, crop_px=32, grid=16, radius_m=0.05)
    assert estimates(toy_bundle(mask=np.full_like(mask, value), coords_m=coords), "epnp", INSIDE) == []
    assert estimates(toy_bundle(mask=mask, coords_m=np.full_like(coords, value)), "epnp", INSIDE) == []
    some = mask.copy()
    some[8, :] = value
    (found,) = estimates(toy_bundle(mask=some, coords_m=coords), "epnp", INSIDE)
    assert 0 < found.score <= 1


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_a_score_that_is_not_finite_is_no_pose(toy_bundle: Write) -> None:
    """Each value of the mask is finite, their mean in float32 is not."""
    scale = 32 / 24
    K_crop = np.array([[scale, 0, 15.5 - scale * 50], [0, scale, 15.5 - scale * 50], [0, 0, 1]]) @ CAMERA.K
    mask, coords = perfect_maps(Pose.from_rotvec([0.4, -0.9, 0.2], [0, 0, 0.7]), K_crop, 32, grid=16, radius_m=0.05)
    path = toy_bundle(mask=np.where(mask > 0.5, 3e38, 0.0), coords_m=coords)
    with Bundle(path) as bundle, PoseEstimator(bundle, path="epnp") as estimator:
        (found,) = estimator.outcomes(FRAME, CAMERA, [Detection(1, 0.9, INSIDE)])
    assert isinstance(found, Unposed)
    assert found.reason is Reason.OUTPUT_NOT_FINITE


@pytest.mark.parametrize("path", ["regressor", "bank"])
def test_many_boxes_of_one_object(toy_bundle: Write, path: str) -> None:
    boxes = [INSIDE + [i % 10, i // 10, i % 10, i // 10] for i in range(100)]
    assert len(boxes) > 2 * DEFAULT_CROPS_PER_PASS[-1]
    found = estimates(toy_bundle(), path, *boxes)
    np.testing.assert_array_equal([e.detection.box_xyxy_px for e in found], boxes)
    assert {e.object_id for e in found} == {1}


@pytest.mark.parametrize("path", ["regressor", "bank", "epnp"])
def test_an_image_of_one_pixel(toy_bundle: Write, path: str) -> None:
    camera = Intrinsics(np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]), 1, 1)
    with Bundle(toy_bundle()) as bundle, PoseEstimator(bundle, path=path) as estimator:
        for box in ([-0.5, -0.5, 0.5, 0.5], [-90, -90, 90, 90]):
            detections = [Detection(1, 0.9, np.array(box))]
            assert len(estimator.estimate(np.full((1, 1, 3), 9, np.uint8), camera, detections)) <= 1


def test_a_view_without_weights_never_wins(toy_bundle: Write) -> None:
    with Bundle(toy_bundle()) as bundle:
        sha256 = bundle.manifest.files["embedder.onnx"].sha256
    one_left = np.array([0, 0, 0, 1, 0, 0], np.float32)
    (found,) = estimates(toy_bundle(bank=bank_bytes(sha256, weights=one_left)), "bank", INSIDE)
    assert found.cam_from_obj.R[0, 0] == pytest.approx(-1)  # view 3, turned by half a turn
    assert estimates(toy_bundle(bank=bank_bytes(sha256, weights=0 * one_left)), "bank", INSIDE) == []


def test_a_bank_of_another_object_is_refused(toy_bundle: Write) -> None:
    with Bundle(toy_bundle()) as bundle:
        sha256 = bundle.manifest.files["embedder.onnx"].sha256
    with pytest.raises(BankError, match="object_id: got 2, expected 1"):
        estimates(toy_bundle(bank=bank_bytes(sha256, object_id=2)), "bank", INSIDE)


N = np.ones((6, 1), np.float32)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"templates": np.full((1, 3, 6), np.nan, np.float32)}, "templates with NaN"),
        ({"weights": np.full(6, -1, np.float32)}, "weights below 0"),
        ({"R": np.zeros((6, 3, 3), np.float32)}, "no rotation"),
        ({"R": np.tile(np.diag([1, 1, -1]).astype(np.float32), (6, 1, 1))}, "no rotation"),
        ({"t_m": np.array([[0, 0, 0]], np.float32) * N}, "behind the camera"),
        ({"box_xyxy_px": np.array([[5, 5, 5, 9]], np.float32) * N}, "empty box"),
        ({"K": np.diag([0, 1, 1]).astype(np.float32)}, "focal lengths"),
    ],
)
def test_a_bank_that_no_rendering_gives_is_refused(change: dict[str, Any], cause: str) -> None:
    with pytest.raises(BankError, match=cause):
        bank_from_bytes(bank_bytes("0" * 64, **change), "bank")


@pytest.mark.parametrize("object_id", ["²", "-1", "x", "9" * 5000])
def test_a_bank_whose_object_is_no_number_is_refused(object_id: str) -> None:
    with pytest.raises(PosekitError, match="object id"):
        bank_from_bytes(bank_bytes("0" * 64, object_id=object_id), "bank")  # type: ignore[arg-type]
