"""The estimator end to end on toy bundles whose answers are known, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_bundles import bank_bytes, perfect_maps, pose_graph

from posekit.runtime.bank import bank_from_bytes
from posekit.runtime.bundle import Bundle
from posekit.runtime.crop import CropPreset
from posekit.runtime.detection import Detection, PoseEstimate, Reason, Unposed
from posekit.runtime.errors import BankError, BundleError, InputError
from posekit.runtime.estimator import PoseEstimator
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.manifest import DEFAULT_CROPS_PER_PASS, Rejection
from posekit.runtime.pose import Pose, rotation_angle_rad
from posekit.runtime.profiler import STAGES, StageProfiler, no_stage

CAMERA = Intrinsics(np.array([[100.0, 0, 50], [0, 100, 50], [0, 0, 1]]), 101, 101)
BOX = np.array([40.0, 40, 60, 60])
Write = Callable[..., Path]


def frame(colour: tuple[int, int, int] = (0, 0, 0)) -> np.ndarray:
    image = np.zeros((101, 101, 3), np.uint8)
    image[:] = colour
    return image


def test_regressor_reads_the_geometry_feeds(toy_bundle: Write) -> None:
    t_of_box = np.array([[0.01, 0, 0], [0, 0.01, 0], [0, 0, 0.01], [0, 0, 0.0]])
    with Bundle(toy_bundle(t_of_box=t_of_box)) as bundle, PoseEstimator(bundle) as estimator:
        (estimate,) = estimator.estimate(frame(), CAMERA, [Detection(2, 0.9, BOX)])
    assert estimate.object_id == 2
    assert np.allclose(estimate.cam_from_obj.t_m, [0.4, 0.4, 1.6], atol=1e-6)
    assert estimate.score == 1.0


def test_more_detections_than_one_batch_keep_their_order(toy_bundle: Write) -> None:
    t_of_box = np.array([[0.001, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0.0]])
    detections = [
        Detection(1, 0.5, BOX + [i, 0, 0, 0]) for i in np.linspace(-30, 10, 2 * DEFAULT_CROPS_PER_PASS[-1] + 3)
    ]
    with Bundle(toy_bundle(t_of_box=t_of_box)) as bundle, PoseEstimator(bundle) as estimator:
        estimates = estimator.estimate(frame(), CAMERA, detections)
    x = [e.cam_from_obj.t_m[0] for e in estimates]
    assert np.allclose(x, [d.box_xyxy_px[0] * 0.001 for d in detections], atol=1e-6)


def test_no_more_crops_go_through_at_once_than_engines_are_built_for(toy_bundle: Write) -> None:
    content, entry = pose_graph(np.zeros((4, 3)) + [0, 0, 0.01])
    path = toy_bundle(replaced={"pose": (content, replace(entry, crops_per_pass=(1, 2, 3)))})
    batches: list[int] = []
    with Bundle(path) as bundle, PoseEstimator(bundle) as estimator:
        run = estimator._sessions[0].run
        estimator._sessions[0].run = lambda feed: batches.append(len(feed["box"])) or run(feed)  # type: ignore[method-assign,func-returns-value]
        assert len(estimator.estimate(frame(), CAMERA, [Detection(1, 0.9, BOX)] * 7)) == 7
    assert batches == [3, 3, 1]


def test_a_pose_behind_the_camera_is_absent(toy_bundle: Write) -> None:
    t_of_box = np.array([[0, 0, -0.1], [0, 0, 0], [0, 0, 0], [0, 0, 0.0]])
    with Bundle(toy_bundle(t_of_box=t_of_box)) as bundle, PoseEstimator(bundle) as estimator:
        assert estimator.estimate(frame(), CAMERA, [Detection(1, 0.9, BOX)]) == []


def test_an_object_in_front_is_found_though_its_origin_is_behind_the_camera(toy_bundle: Write) -> None:
    """What must be in front is its box."""
    t_of_box = np.array([[0, 0, -0.1], [0, 0, 0], [0, 0, 0], [0, 0, 0.0]])
    far_away = ((-0.1, -0.1, 19.9), (0.1, 0.1, 20.1))
    path = toy_bundle(t_of_box=t_of_box, box_m=far_away)
    with Bundle(path) as bundle, PoseEstimator(bundle) as estimator:
        (found,) = estimator.estimate(frame(), CAMERA, [Detection(1, 0.9, BOX)])
    assert found.cam_from_obj.t_m[2] < 0
    assert found.cam_from_obj.apply([0, 0, 20])[2] > 0


@pytest.mark.parametrize(("colour", "view"), [((255, 0, 0), 0), ((0, 200, 0), 1), ((90, 0, 90), 5)])
def test_bank_finds_the_view_and_the_box_its_place(toy_bundle: Write, colour: tuple[int, int, int], view: int) -> None:
    with Bundle(toy_bundle()) as bundle, PoseEstimator(bundle, path="bank") as estimator:
        detections = [Detection(2, 0.9, BOX), Detection(1, 0.9, np.array([45.0, 45, 55, 55]))]
        near, far = estimator.estimate(frame(colour), CAMERA, detections)
    turn = Pose.from_rotvec([0, 0, view * np.pi / 3])
    for estimate, z in ((near, 1.0), (far, 2.0)):
        assert rotation_angle_rad(estimate.cam_from_obj.R, turn.R) < 1e-3
        assert np.allclose(estimate.cam_from_obj.t_m, [0, 0, z], atol=1e-5)
        assert estimate.score == pytest.approx(1.0, abs=1e-3)
    assert (near.object_id, far.object_id) == (2, 1)


def test_correspondences_are_solved_in_the_crop(toy_bundle: Write) -> None:
    truth = Pose.from_rotvec([0.4, -0.9, 0.2], [0.0, 0.0, 0.7])
    scale = 32 / 24  # a 20 px box padded 1.2 in a 32 px crop
    K_crop = np.array([[scale, 0, 15.5 - scale * 50], [0, scale, 15.5 - scale * 50], [0, 0, 1]]) @ CAMERA.K
    mask, coords = perfect_maps(truth, K_crop, crop_px=32, grid=16, radius_m=0.05)
    bundle_path, profiler = toy_bundle(mask=mask, coords_m=coords), StageProfiler()
    with Bundle(bundle_path) as bundle, PoseEstimator(bundle, path="epnp", stage=profiler.stage) as estimator:
        (estimate,) = estimator.estimate(frame(), CAMERA, [Detection(1, 0.9, BOX)])
    assert set(profiler.samples_ns) == {"crop", "network", "solve", "refine"} <= set(STAGES)
    assert rotation_angle_rad(estimate.cam_from_obj.R, truth.R) < 1e-2
    assert np.allclose(estimate.cam_from_obj.t_m, truth.t_m, atol=1e-3)


def test_no_consensus_is_no_estimate(toy_bundle: Write) -> None:
    with Bundle(toy_bundle()) as bundle, PoseEstimator(bundle, path="epnp") as estimator:
        assert estimator.estimate(frame(), CAMERA, [Detection(1, 0.9, BOX)]) == []


def test_nothing_detected_is_nothing_estimated(toy_bundle: Write) -> None:
    with Bundle(toy_bundle()) as bundle, PoseEstimator(bundle) as estimator:
        assert estimator.estimate(frame(), CAMERA, []) == []


def test_stages_are_timed_only_when_asked(toy_bundle: Write) -> None:
    profiler = StageProfiler()
    with Bundle(toy_bundle()) as bundle:
        for stage in (no_stage, profiler.stage):
            with PoseEstimator(bundle, stage=stage) as estimator:
                estimator.estimate(frame(), CAMERA, [Detection(1, 0.9, BOX)])
    assert set(profiler.samples_ns) == {"crop", "network", "decode"} <= set(STAGES)
    assert all(len(samples) == 1 and samples[0] > 0 for samples in profiler.samples_ns.values())
    assert set(profiler.median_ms()) == set(profiler.samples_ns)


@pytest.mark.parametrize(
    ("image", "detections", "cause"),
    [
        (np.zeros((101, 101), np.uint8), [], "frame"),
        (np.zeros((50, 101, 3), np.uint8), [], "frame"),
        (np.zeros((101, 101, 3)), [], "frame"),
        (frame(), [Detection(7, 0.9, BOX)], "object id 7"),
        (frame(), None, "no detector"),
    ],
)
def test_bad_input_is_refused(
    toy_bundle: Write, image: np.ndarray, detections: list[Detection] | None, cause: str
) -> None:
    with Bundle(toy_bundle()) as bundle, PoseEstimator(bundle) as estimator:
        with pytest.raises(InputError, match=cause):
            estimator.estimate(image, CAMERA, detections)
        assert len(estimator.estimate(frame(), CAMERA, [Detection(1, 0.9, BOX)])) == 1  # and it still works


def test_a_detection_is_of_plain_numbers() -> None:
    """A user's detector gives NumPy's, which JSON lines cannot hold."""
    found = Detection(np.int64(1), np.float32(0.5), BOX)  # type: ignore[arg-type]
    assert (type(found.object_id), type(found.score)) == (int, float)
    for object_id, score in (("1", 0.9), (1.0, 0.9), (True, 0.9), (1, "0.9"), (1, None), (1, np.nan)):
        with pytest.raises(InputError, match="detection"):
            Detection(object_id, score, BOX)  # type: ignore[arg-type]


def test_what_is_no_detection_or_no_camera_is_said(toy_bundle: Write) -> None:
    with Bundle(toy_bundle()) as bundle, PoseEstimator(bundle) as estimator:
        with pytest.raises(InputError, match=r"detections: got a list, expected posekit\.Detection"):
            estimator.estimate(frame(), CAMERA, [[40.0, 40, 60, 60]])  # type: ignore[list-item]
        for camera in (None, CAMERA.K):
            with pytest.raises(InputError, match=r"expected posekit\.Intrinsics"):
                estimator.estimate(frame(), camera, [])  # type: ignore[arg-type]
        some = (Detection(1, 0.9, BOX) for _ in range(2))
        assert len(estimator.estimate(frame(), CAMERA, some)) == 2  # type: ignore[arg-type]


OUTSIDE, THIN = BOX + 500, np.array([40.0, 40, 40.5, 60])
BARREL = replace(CAMERA, distortion=(-0.9, 0.0, 0.0, 0.0))  # the farthest a ray gets is 0.406 from the axis


def reasons(outcomes: list[PoseEstimate | Unposed]) -> list[Reason | None]:
    return [outcome.reason if isinstance(outcome, Unposed) else None for outcome in outcomes]


@pytest.mark.parametrize("path", ["regressor", "bank"])
def test_a_box_without_a_crop_costs_itself(toy_bundle: Write, path: str) -> None:
    """Poses of the others are those that they have without it, in order, over several passes of the graph."""
    boxes = [BOX + [i % 7, 0, i % 7, 0] for i in range(2 * DEFAULT_CROPS_PER_PASS[-1] + 3)]
    good = [Detection(1 + i % 2, 0.9, box) for i, box in enumerate(boxes)]
    mixed = [d for i, g in enumerate(good) for d in (g, Detection(1, 0.9, (OUTSIDE, THIN)[i % 2]))]
    t_of_box = np.array([[0.01, 0, 0], [0, 0.01, 0], [0, 0, 0.01], [0, 0, 0.0]])
    red = frame((200, 0, 0))
    with Bundle(toy_bundle(t_of_box=t_of_box)) as bundle, PoseEstimator(bundle, path=path) as estimator:
        alone, found = estimator.estimate(red, CAMERA, good), estimator.outcomes(red, CAMERA, mixed)
    assert [outcome.detection for outcome in found] == mixed
    poses = [outcome for outcome in found if isinstance(outcome, PoseEstimate)]
    assert len(poses) == len(good)
    for one, other in zip(alone, poses, strict=True):
        np.testing.assert_array_equal(one.cam_from_obj.as_matrix(), other.cam_from_obj.as_matrix())
    thin = [Reason.BOX_OUTSIDE_IMAGE, Reason.BOX_TOO_THIN]
    assert reasons(found) == [r for i in range(len(good)) for r in (None, thin[i % 2])]


@pytest.mark.parametrize("path", ["regressor", "bank", "epnp"])
def test_boxes_without_any_crop_run_no_graph(toy_bundle: Write, path: str) -> None:
    with Bundle(toy_bundle()) as bundle, PoseEstimator(bundle, path=path) as estimator:
        for session in estimator._sessions:
            session.run = None  # type: ignore[assignment,method-assign]
        found = estimator.outcomes(frame(), CAMERA, [Detection(1, 0.9, OUTSIDE), Detection(1, 0.9, THIN)])
    assert reasons(found) == [Reason.BOX_OUTSIDE_IMAGE, Reason.BOX_TOO_THIN]


def test_a_box_beyond_the_lens_costs_itself(toy_bundle: Write) -> None:
    """Pixel 0 is 0.5 from the axis on the image plane: no ray of this lens comes there."""
    detections = [Detection(1, 0.9, box) for box in (BOX, np.array([0.0, 0, 20, 20]), BOX)]
    with Bundle(toy_bundle()) as bundle, PoseEstimator(bundle) as estimator:
        assert reasons(estimator.outcomes(frame(), BARREL, detections)) == [None, Reason.BOX_BEYOND_LENS, None]
        assert len(estimator.estimate(frame(), BARREL, detections)) == 2


def test_unknown_path_is_refused(toy_bundle: Write) -> None:
    with Bundle(toy_bundle()) as bundle, pytest.raises(BundleError, match="regressor, bank, epnp"):
        PoseEstimator(bundle, path="icp")


def test_a_bank_of_another_embedder_is_refused(toy_bundle: Write) -> None:
    with Bundle(toy_bundle(bank=bank_bytes("0" * 64))) as bundle, pytest.raises(BankError, match="bank build"):
        PoseEstimator(bundle, path="bank")


def test_a_bank_of_another_crop_is_refused(toy_bundle: Write) -> None:
    with Bundle(toy_bundle()) as bundle:
        sha256 = bundle.manifest.files["embedder.onnx"].sha256
    foreign = bank_bytes(sha256, crop=CropPreset("square", 64))
    with Bundle(toy_bundle(bank=foreign)) as bundle, pytest.raises(BankError, match="crop"):
        PoseEstimator(bundle, path="bank")


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"R": np.zeros((5, 3, 3), np.float32)}, "R float32"),
        ({"weights": np.ones(6, np.float64)}, "weights float64"),
        ({"weights": np.ones((1, 6), np.float32)}, "weights float32"),
        ({"K": np.full((3, 3), np.nan, np.float32)}, "K with NaN"),
        ({"templates": np.ones((1, 3, 4), np.float32)}, "weights float32"),
        ({"templates": np.ones((1, 3, 0), np.float32)}, "0 views"),
        ({"templates": np.ones((3, 6), np.float32)}, "templates"),
    ],
)
def test_damaged_banks_are_refused(change: dict[str, Any], cause: str) -> None:
    with pytest.raises(BankError, match=cause):
        bank_from_bytes(bank_bytes("0" * 64, **change), "bank")


def test_a_bank_of_fewer_views_than_the_matcher_returns_is_refused(toy_bundle: Write) -> None:
    with Bundle(toy_bundle()) as bundle:
        sha256 = bundle.manifest.files["embedder.onnx"].sha256
    per_view: dict[str, Any] = {
        "templates": np.ones((1, 3, 4), np.float32),
        "weights": np.ones(4, np.float32),
        "R": np.tile(np.eye(3, dtype=np.float32), (4, 1, 1)),
        "t_m": np.tile(np.array([0, 0, 1], np.float32), (4, 1)),
        "box_xyxy_px": np.tile(np.array([40, 40, 60, 60], np.float32), (4, 1)),
    }
    few = bank_bytes(sha256, **per_view)
    with Bundle(toy_bundle(bank=few)) as bundle, pytest.raises(BankError, match="views: got 4, expected at least 5"):
        PoseEstimator(bundle, path="bank")


def test_a_score_below_the_objects_threshold_is_no_answer(toy_bundle: Write) -> None:
    with Bundle(toy_bundle()) as bundle:
        entry = bundle.manifest.paths["bank"]
        for threshold, found in ((0.9, True), (0.9999, False)):
            rejection = {"1": Rejection(threshold, 0.05, 0.0, 100, 20)}
            bundle.manifest = replace(bundle.manifest, paths={"bank": replace(entry, rejection=rejection)})
            with PoseEstimator(bundle, path="bank") as estimator:
                nearly_yellow, boxes = frame((200, 190, 0)), [Detection(i, 1.0, BOX) for i in (1, 2)]
                outcomes = estimator.outcomes(nearly_yellow, CAMERA, boxes)
            assert isinstance(outcomes[0], PoseEstimate) == found
            assert found or (isinstance(outcomes[0], Unposed) and outcomes[0].reason is Reason.SCORE_BELOW_THRESHOLD)
            assert isinstance(outcomes[1], PoseEstimate)  # the other object has no threshold


def test_a_bank_file_takes_the_place_of_the_bundles_own(toy_bundle: Write, tmp_path: Path) -> None:
    path = toy_bundle()
    with Bundle(path) as bundle:
        sha256 = bundle.manifest.files["embedder.onnx"].sha256
    turned = np.tile(np.diag([1.0, -1, -1]).astype(np.float32), (6, 1, 1))
    shared, foreign = tmp_path / "shared.safetensors", tmp_path / "foreign.safetensors"
    shared.write_bytes(bank_bytes(sha256, R=turned))
    foreign.write_bytes(bank_bytes("0" * 64))
    poses = []
    given: tuple[dict[int, Path | str], ...] = ({}, {1: shared})
    for banks in given:
        with Bundle(path, banks) as bundle, PoseEstimator(bundle, path="bank") as estimator:
            (estimate,) = estimator.estimate(frame((200, 0, 0)), CAMERA, [Detection(1, 1.0, BOX)])
            poses.append(estimate.cam_from_obj)
    np.testing.assert_allclose(poses[0].R, np.eye(3), atol=1e-6)
    np.testing.assert_allclose(poses[1].R, turned[0], atol=1e-6)
    np.testing.assert_allclose(poses[0].t_m, poses[1].t_m)
    with Bundle(path, {1: foreign}) as bundle, pytest.raises(BankError, match=r"foreign\.safetensors: embedder"):
        PoseEstimator(bundle, path="bank")
    with pytest.raises(InputError, match="object 7"):
        Bundle(path, {7: shared})
    with pytest.raises(BankError, match="absent"):
        Bundle(path, {1: tmp_path / "absent.safetensors"})


def test_a_bank_for_another_search_is_refused(toy_bundle: Write) -> None:
    with Bundle(toy_bundle()) as bundle:
        sha256 = bundle.manifest.files["embedder.onnx"].sha256
    refusal = pytest.raises(BankError, match=r"got a coarse bank.*expected templates \(1, 3, views\)")
    with Bundle(toy_bundle(bank=coarse_bank_bytes(sha256))) as bundle, refusal:
        PoseEstimator(bundle, path="bank")


def coarse_bank_bytes(sha256: str, views: int = 128) -> bytes:
    return bank_bytes(
        sha256,
        search="coarse",
        templates=np.ones((views, 1, 3), np.float32),
        weights=np.ones(views, np.float32),
        projection=np.eye(3, 2, dtype=np.float32),
        sketches=np.ones((2, views), np.float32),
        R=np.tile(np.eye(3, dtype=np.float32), (views, 1, 1)),
        t_m=np.tile(np.array([0, 0, 1], np.float32), (views, 1)),
        box_xyxy_px=np.tile(np.array([40, 40, 60, 60], np.float32), (views, 1)),
    )


def test_a_coarse_bank_of_fewer_views_than_a_shortlist_is_refused() -> None:
    assert bank_from_bytes(coarse_bank_bytes("0" * 64), "bank").search == "coarse"
    with pytest.raises(BankError, match="127 views"):
        bank_from_bytes(coarse_bank_bytes("0" * 64, 127), "bank")


@pytest.mark.parametrize("search", ["fast", ""])
def test_an_unknown_search_is_refused(search: str) -> None:
    with pytest.raises(BankError, match=f"search {search!r}"):
        bank_from_bytes(bank_bytes("0" * 64, search=search), "bank")


def test_truncated_bank_is_refused() -> None:
    with pytest.raises(BankError, match="safetensors"):
        bank_from_bytes(bank_bytes("0" * 64)[:-10], "bank")
