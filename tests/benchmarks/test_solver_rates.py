"""The study of solvers: counts what failed and what was sure of it, and shows what the file says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from posekit.benchmarks.studies.precision_result import read
from posekit.benchmarks.studies.solver_problems import DIAMETER_M, Cell, Problem, made_problem
from posekit.benchmarks.studies.solver_rates import (
    CELLS,
    SOLVERS,
    Answer,
    RatesResult,
    Request,
    markdown,
    measure,
    requested,
    shaken_by,
    tally,
)
from posekit.runtime.errors import InputError
from posekit.runtime.pose import Pose

ROOT = Path(__file__).resolve().parents[2]


def test_every_cell_is_solved_by_everybody_and_shown(tmp_path: Path) -> None:
    cells = {name: CELLS[name] for name in ("solid, exact", "flat, 45 deg, exact")}
    out, stages = tmp_path / "rates.json", []
    result = measure(Request(cells, 2, out, "toy"), lambda *stage: stages.append(stage))
    assert read(out, RatesResult) == result
    assert out.with_suffix(".md").read_text() == markdown(result)
    assert stages[-1] == ("cells", 2, 2)
    for row in result.rows:
        assert [found.solver for found in row.tallies] == list(SOLVERS)
        assert all(found.failed == found.sure == 0 for found in row.tallies)


def test_a_pose_fails_by_its_distance_and_is_sure_by_its_certainty() -> None:
    """A tenth of the diameter off is the limit; a right alternative mends."""

    def off(share: float, certainty: float, alternative: bool = False) -> Answer:
        right = problem.cam_from_obj
        moved = Pose(right.R, right.t_m + [0, 0, share * DIAMETER_M])
        return moved, certainty, right if alternative else None

    problem = made_problem(Cell(), 0)
    near, far, rival = off(0.09, 1), off(0.11, 1), off(0.11, 0.5, alternative=True)
    answers = iter([near, near, far, (None, 0.0, None), rival, (None, 0.0, None)])

    def solver(problem: Problem, cell: Cell) -> Answer:
        return next(answers)

    found = tally("toy", solver, [problem] * 4, Cell())
    assert (found.failed, found.sure, found.told, found.mended) == (3, 1, 1, 1)
    assert found.alone == 2  # each solved twice: the first stays where it is, the second is lost
    assert found.shaken_deg[1] == found.shaken_mm[1] == np.inf


def test_how_far_a_shaken_pose_moves_is_told_in_degrees_and_millimetres() -> None:
    problem = made_problem(Cell(), 0)
    right = problem.cam_from_obj
    beside = Pose(right.R, right.t_m + [0, 2e-3, 0])
    assert shaken_by(right, problem, lambda *given: (beside, 1.0, None), Cell(), 0) == pytest.approx((0.0, 2.0))


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS.keys())
def test_problems_are_what_their_cell_says(cell: Cell) -> None:
    problem = made_problem(cell, 7, pairs=2000)
    seen = problem.cam_from_obj.apply(problem.points_m) @ problem.K.T
    errors = (seen[:, :2] / seen[:, 2:] - problem.pixels)[problem.good]
    assert errors.std() == pytest.approx(cell.noise_px, rel=0.1, abs=1e-9)
    assert 1 - problem.good.mean() == pytest.approx(cell.outliers, abs=0.05)
    middle = problem.cam_from_obj.apply(problem.points_m).mean(axis=0)
    assert DIAMETER_M / middle[2] == pytest.approx(cell.far, rel=0.1)
    if cell.tilt_deg is not None:
        towards = -problem.cam_from_obj.R[:, 2] @ middle / np.linalg.norm(middle)
        assert np.degrees(np.arccos(np.clip(towards, -1, 1))) == pytest.approx(cell.tilt_deg, abs=2)


def test_no_problem_is_refused() -> None:
    with pytest.raises(InputError, match="--count: got 0"):
        requested(["--count", "0"])


@pytest.mark.parametrize(
    "kept", sorted((ROOT / "benchmarks/results").glob("solver-rates-*.json")), ids=lambda p: p.stem
)
def test_committed_results_are_shown(kept: Path) -> None:
    assert kept.with_suffix(".md").read_text() == markdown(read(kept, RatesResult))
