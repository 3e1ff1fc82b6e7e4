"""What a detector's variant costs, in boxes: planted differences come out as they were planted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posekit.export.verify.box_figures import box_figures, settled_boxes
from posekit.export.verify.gates import Gates, judged, outcome_of
from posekit.export.verify.observe import Boxes, BoxObservation, Outputs
from posekit.export.verify.samples import FrameSample
from posekit.runtime.detection import Detection


def box(x: float, y: float = 10, side: float = 20, object_id: int = 1, score: float = 0.9) -> Detection:
    return Detection(object_id, score, np.array([x, y, x + side, y + side]))


def seen(*frames: Sequence[Detection]) -> BoxObservation:
    outputs = tuple({"scores": np.full(4, len(boxes), np.float32)} for boxes in frames)
    return BoxObservation(tuple(map(tuple, frames)), outputs, ("toy",), {}, (True,) * len(frames))


def frames(*true: Boxes) -> list[FrameSample]:
    """No two pictures are alike."""
    return [FrameSample(str(k), np.full((120, 160, 3), 5 * k % 256, np.uint8), boxes) for k, boxes in enumerate(true)]


@given(x=st.lists(st.floats(0, 100), min_size=1, max_size=5), shift=st.floats(0, 6))
def test_the_same_boxes_are_no_difference_and_shifted_ones_are_as_far_as_they_were_shifted(
    x: list[float], shift: float
) -> None:
    apart = [box(40 * k + left / 10) for k, left in enumerate(x)]
    moved = [box(b.box_xyxy_px[0] + shift) for b in apart]
    found = box_figures(seen(apart), seen(moved), frames(tuple(apart)))
    assert (found.boxes, found.lost, found.gained, found.recall_drop) == (len(x), 0, 0, 0)
    assert found.iou_p5 == pytest.approx((20 - shift) / (20 + shift))
    assert found.score_p95 == 0
    assert found.outputs["scores"].p95 == 0


def test_lost_gained_and_mistaken_boxes_are_counted() -> None:
    reference = seen([box(0), box(40), box(80, object_id=2)], [])
    variant = seen([box(0), box(80, object_id=1)], [box(10)])
    found = box_figures(reference, variant, frames((box(0), box(40)), (box(10),)))
    assert found.boxes == 3
    assert found.lost == pytest.approx(2 / 3)  # one gone, one of another object
    assert found.gained == pytest.approx(2 / 3)
    assert found.n_true == 3
    assert found.recall_drop == pytest.approx(2 / 3 - 2 / 3)  # one true box lost, another one found


def test_a_box_that_noise_takes_away_says_nothing_of_precision() -> None:
    reference, shaken = seen([box(0), box(40, score=0.31)]), [seen([box(0), box(40)]), seen([box(0)])]
    settled = settled_boxes(reference, shaken)
    assert settled == [[True, False]]
    found = box_figures(reference, seen([box(0)]), frames(()), settled)
    assert (found.settled, found.lost, found.recall_drop) == (0.5, 0, None)


def test_a_detector_that_sees_nothing_loses_everything_and_misses_its_gates() -> None:
    reference, true = seen(*[[box(0), box(40)]] * 40), frames(*[(box(0),)] * 40)
    blind = box_figures(reference, seen(*[[]] * 40), true)
    assert (blind.lost, blind.iou_p5, blind.recall_drop, blind.recall) == (1, None, 1, 0)
    same = box_figures(reference, reference, true)
    missed = {gate.gate for gate in judged(blind, [same], Gates(), trained=True) if gate.verdict == "missed"}
    assert missed == {"box_lost", "box_recall_drop", "box_recall_min"}
    assert outcome_of(judged(same, [same], Gates(), trained=True)) == "held"


def test_a_detector_of_which_nothing_is_found_is_undecided_not_passed() -> None:
    """Found on 99 frames without one mug: 0 boxes of fp32, 0 of int8, no difference."""
    nothing = box_figures(seen(*[[]] * 99), seen(*[[]] * 99), frames(*[()] * 99))
    results = judged(nothing, [nothing] * 3, Gates(), trained=True)
    assert outcome_of(results) == "undecided"
    assert {gate.gate: gate.n for gate in results if gate.verdict == "undecided"} == dict.fromkeys(
        ("box_lost", "box_iou_p5", "box_score_p95", "settled_min"), 0
    )
    few = box_figures(seen(*[[]] * 99), seen(*[[]] * 99), frames(*[(box(0),)] * 18, *[()] * 81))
    mugs = {gate.gate: gate for gate in judged(few, [few] * 3, Gates(), trained=True)}
    assert (mugs["box_recall_min"].verdict, mugs["box_recall_min"].n) == ("undecided", 18)
    many = box_figures(seen(*[[]] * 99), seen(*[[]] * 99), frames(*[(box(0),)] * 99))
    assert outcome_of(judged(many, [many] * 3, Gates(), trained=True, itself=True)) == "missed"


def test_nothing_to_see_is_nothing_lost() -> None:
    found = box_figures(seen([], []), seen([], []), frames((), ()))
    assert (found.boxes, found.lost, found.gained, found.iou_p5, found.recall_drop) == (0, 0, 0, None, None)
    assert box_figures(seen([]), seen([box(0)]), frames(())).gained == 1


def test_a_ranking_that_changes_places_is_no_difference_of_numbers() -> None:
    def ranked(order: list[int]) -> BoxObservation:
        rows = np.array([[0, 0, 9, 9], [50, 50, 70, 70]], np.float32)[order]
        outputs: Outputs = {"boxes": rows, "scores": np.array([0.5, 0.5], np.float32), "labels": np.array(order)}
        return BoxObservation(((),), (outputs,), ("toy",), {})

    assert set(box_figures(ranked([0, 1]), ranked([1, 0]), frames(())).outputs) == {"scores"}
