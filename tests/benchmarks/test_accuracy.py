"""Accuracy: absences are misses, nothing counts twice, and exact estimates score one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posekit.benchmarks.accuracy import Accuracy, TruthScore, accuracy_from, box_iou, image_scores, matches
from posekit.benchmarks.pose_error import ScoredObject
from posekit.runtime.bop import TrueObject
from posekit.runtime.detection import Detection, PoseEstimate, Reason, Unposed
from posekit.runtime.errors import InputError
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.pose import Pose
from posekit.runtime.records import plain_from

CAMERA = Intrinsics(np.array([[600.0, 0, 320], [0, 600, 240], [0, 0, 1]]), 640, 480)
CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) * 0.05
FLIP = np.diag([-1.0, -1, 1, 1])
OBJECTS = {
    1: ScoredObject(1, "box", 0.17, CORNERS * [1, 0.8, 0.6]),
    2: ScoredObject(2, "flipbox", 0.17, CORNERS * [1, 0.8, 0.6], np.stack([np.eye(4), FLIP])),
}
BOX = np.array([300.0, 200, 340, 260])
AHEAD = Pose(np.eye(3), np.array([0, 0, 0.8]))
ASIDE = Pose(np.eye(3), np.array([0.3, 0, 0.8]))


def true(
    pose: Pose = AHEAD, object_id: int = 1, box: np.ndarray | None = BOX, visible: float | None = None
) -> TrueObject:
    return TrueObject(object_id, pose, box, None, visible)


def found(pose: Pose = AHEAD, object_id: int = 1, score: float = 0.9, box: np.ndarray = BOX) -> PoseEstimate:
    return PoseEstimate(object_id, score, pose, Detection(object_id, 1.0, box))


def scored(truth: list[TrueObject], estimates: Sequence[PoseEstimate | Unposed]) -> list[TruthScore]:
    return image_scores(truth, estimates, OBJECTS, CAMERA)


def moved(pose: Pose, by_m: float) -> Pose:
    return Pose(pose.R, pose.t_m + [by_m, 0, 0])


def test_an_exact_estimate_scores_one_and_an_absent_one_nothing() -> None:
    hit, miss = scored([true()], [found()])[0], scored([true()], [])[0]
    assert (hit.correct_add, hit.ar_mssd, hit.ar_mspd, hit.detected) == (True, 1.0, 1.0, True)
    assert (miss.correct_add, miss.ar_mssd, miss.ar_mspd, miss.detected, miss.errors) == (False, 0.0, 0.0, False, None)
    total = accuracy_from([hit, miss], {1: "box"}).total
    assert (total.n_true, total.n_matched, total.recall_add, total.ar_mssd) == (2, 1, 0.5, 0.5)


def test_the_add_threshold_is_a_tenth_of_the_diameter() -> None:
    assert scored([true()], [found(moved(AHEAD, 0.0169))])[0].correct_add
    assert not scored([true()], [found(moved(AHEAD, 0.0171))])[0].correct_add


def test_average_recalls_count_thresholds() -> None:
    """A shift of 0.22 diameters passes the seven MSSD thresholds from 0.25 on; 28 px pass the five MSPD ones from 30 on."""
    assert scored([true()], [found(moved(AHEAD, 0.22 * 0.17))])[0].ar_mssd == pytest.approx(0.6)
    flat = {1: ScoredObject(1, "flat", 0.17, CORNERS * [1, 1, 0])}
    (score,) = image_scores([true()], [found(moved(AHEAD, 28 / 600 * 0.8))], flat, CAMERA)
    assert score.ar_mspd == pytest.approx(0.5)


def test_wider_images_have_wider_pixel_thresholds() -> None:
    wide = Intrinsics(CAMERA.K * [[2, 1, 2], [1, 2, 2], [1, 1, 1]], 1280, 960)
    flat = {1: ScoredObject(1, "flat", 0.17, CORNERS * [1, 1, 0])}
    (score,) = image_scores([true()], [found(moved(AHEAD, 28 / 600 * 0.8))], flat, wide)
    assert score.ar_mspd == pytest.approx(0.5)


def test_a_symmetric_object_may_be_turned() -> None:
    turned = AHEAD @ Pose.from_matrix(FLIP)
    assert scored([true(object_id=2)], [found(turned, 2)])[0].correct_add
    assert not scored([true(object_id=1)], [found(turned, 1)])[0].correct_add


def test_one_estimate_serves_one_true_object() -> None:
    scores = scored([true(AHEAD), true(ASIDE)], [found(AHEAD)])
    assert [score.correct_add for score in scores] == [True, False]
    assert [score.errors is None for score in scores] == [False, True]


def test_guesses_beyond_the_number_of_true_objects_do_not_count() -> None:
    """As in BOP: only the best-scored estimates, as many as there are true objects."""
    guesses = [found(ASIDE, score=0.9), found(AHEAD, score=0.8)]
    assert not scored([true(AHEAD)], guesses)[0].correct_add
    assert scored([true(AHEAD)], guesses[::-1])[0].correct_add is False


def test_other_classes_and_hidden_objects_are_left_out() -> None:
    assert scored([true(object_id=9)], [found()]) == []
    assert scored([true(visible=0.05)], [found()]) == []
    assert scored([true(visible=0.1)], [found(object_id=2)])[0].errors is None


def test_a_box_counts_as_found_from_half_overlap_on() -> None:
    half = BOX + [0, 0, 0, -30]
    assert scored([true()], [found(box=half)])[0].detected
    assert not scored([true()], [found(box=half + [3, 0, 3, 0])])[0].detected
    assert scored([true(box=None)], [found()])[0].detected is None


def test_a_box_without_a_pose_found_its_object_which_is_missed_all_the_same() -> None:
    unposed = [Unposed(Detection(1, 1.0, box), Reason.NO_CONSENSUS) for box in (BOX + 300, BOX)]
    (score,) = scored([true()], unposed)
    assert (score.detected, score.errors, score.correct_add) == (True, None, False)
    assert not scored([true()], unposed[:1])[0].detected
    assert not scored([true()], [Unposed(Detection(2, 1.0, BOX), Reason.NO_CONSENSUS)])[0].detected


@given(st.lists(st.lists(st.floats(0, 10), min_size=3, max_size=3), max_size=4), st.floats(0.1, 20))
def test_matches_are_one_to_one_and_below_the_limit(errors: list[list[float]], limit: float) -> None:
    table = np.array(errors).reshape(-1, 3)
    pairs = matches(table, limit)
    assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs)
    assert all(table[i, j] < limit for i, j in pairs)
    assert len(matches(table)) == min(len(table), 3)


@given(st.permutations(range(3)))
def test_the_order_of_true_objects_does_not_matter(order: list[int]) -> None:
    truth = [true(moved(AHEAD, 0.2 * i)) for i in range(3)]
    estimates = [found(moved(AHEAD, 0.2 * i + 0.001 * i), score=0.9 - 0.1 * i) for i in range(3)]
    straight, shuffled = scored(truth, estimates), scored([truth[i] for i in order], estimates)
    assert [straight[i] for i in order] == shuffled


def test_rows_per_object_and_in_total() -> None:
    scores = scored([true(), true(object_id=2)], [found(moved(AHEAD, 0.003)), found(object_id=2)])
    accuracy = accuracy_from(scores, {1: "box"})
    assert [(row.object_id, row.name, row.n_true) for row in accuracy.per_object] == [(1, "box", 1), (2, "2", 1)]
    assert accuracy.per_object[0].translation_p50_mm == pytest.approx(3.0)
    assert accuracy.per_object[0].mssd_p50_mm == pytest.approx(3.0)
    assert accuracy.total.translation_p50_mm == pytest.approx(1.5)
    assert accuracy.total.detection_recall == 1.0
    assert isinstance(accuracy, Accuracy)
    json.dumps(plain_from(accuracy), allow_nan=False)


def test_an_empty_score_is_no_score() -> None:
    with pytest.raises(InputError, match="no true object that counts"):
        accuracy_from([], {})


def test_iou_of_boxes() -> None:
    a, b = np.array([0.0, 0, 2, 2]), np.array([1.0, 1, 3, 3])
    assert box_iou(a, a) == 1.0
    assert box_iou(a, b) == pytest.approx(1 / 7)
    assert box_iou(a, b + 5) == 0.0
    for x, y in permutations([a, b]):
        assert box_iou(x, y) == pytest.approx(1 / 7)
