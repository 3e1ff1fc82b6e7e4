"""The study of scores: bins, the expected calibration error, and a result that is shown as it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from posekit.benchmarks.studies.machine import this_machine
from posekit.benchmarks.studies.precision_result import Run, read
from posekit.benchmarks.studies.score_calibration import (
    CalibrationResult,
    curve_from,
    main,
    markdown,
    plot,
    requested,
)
from posekit.runtime.atomic import write_whole
from posekit.runtime.errors import InputError
from posekit.runtime.records import json_from_record

ROOT = Path(__file__).resolve().parents[2]
RUN = Run.ended("0" * 12, "toy", 0.0, 0.0)


def test_a_score_that_is_the_share_has_no_error() -> None:
    scores = [0.25] * 4 + [0.75] * 4
    curve = curve_from("toy", scores, [True, False, False, False] + [True, True, True, False])
    assert curve.ece == pytest.approx(0)
    assert [(b.low, b.poses, b.score, b.right) for b in curve.bins] == [(0.2, 4, 0.25, 0.25), (0.7, 4, 0.75, 0.75)]


def test_the_error_is_the_mean_gap_of_the_poses() -> None:
    """Three of full score of which one is right, one of a half that is right: (3 x 2/3 + 1/2) / 4."""
    curve = curve_from("toy", [1.0, 1.0, 1.0, 0.5], [True, False, False, True])
    assert curve.ece == pytest.approx(0.625)
    assert curve.right == pytest.approx(0.5)


def test_random_scores_err_by_a_quarter() -> None:
    """Score uniform in 0..1, right half the time: the mean of |s - 1/2| is 1/4."""
    rng = np.random.default_rng(0)
    curve = curve_from("toy", rng.uniform(size=40_000).tolist(), (rng.random(40_000) < 0.5).tolist())
    assert curve.ece == pytest.approx(0.25, abs=0.01)


def test_no_pose_is_no_curve() -> None:
    with pytest.raises(InputError, match="calibration of toy: got no pose"):
        curve_from("toy", [], [])


def test_the_table_and_the_picture_show_the_curve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    curve = curve_from("gdr.epnp", [0.95, 0.9, 0.3], [True, True, False], absent=2, two=1)
    result = CalibrationResult(this_machine(), 4, RUN, (curve, replace(curve, path="bank")))
    out, picture = tmp_path / "cal.json", tmp_path / "curve.png"
    write_whole(out, json_from_record(result).encode())
    assert read(out, CalibrationResult) == result
    assert "| gdr.epnp | 3 | 2 | 1 | 66.7% |" in markdown(result)
    assert "| from 0.9 | 2 | 0.93 | 100% |" in markdown(result)
    plot(result, picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main(["--table", str(out)]) == 0
    assert capsys.readouterr().out == markdown(result)


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(InputError, match="BUNDLE DATASET"):
        requested([])


@pytest.mark.parametrize(
    "kept", sorted((ROOT / "benchmarks/results").glob("score-calibration-*.json")), ids=lambda p: p.stem
)
def test_committed_results_are_shown(kept: Path) -> None:
    assert kept.with_suffix(".md").read_text() == markdown(read(kept, CalibrationResult))
