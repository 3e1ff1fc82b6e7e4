"""How often each solver is wrong, and whether it knows: random problems in cells of shape, tilt, distance, noise and outliers.

    python benchmarks/studies/solver_rates.py                     # measures, into benchmarks/results/
    python benchmarks/studies/solver_rates.py --table RESULT.json # the Markdown of it

A pose has failed when the object's points lie a tenth of its diameter off in the mean (ADD), or when there is none. Beside
posekit's methods stand PoseLib, called as its documentation says, and OpenCV's SQPnP with least squares over the pairs that
are no outliers, which only the study knows: what no solver can do better but by luck.

Every problem is solved a second time with coordinates changed by SHAKE of themselves, as another processor or backend would:
how far the poses without an alternative move is the second table.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np

from posekit.benchmarks.markdown_table import markdown_table
from posekit.benchmarks.studies.command import Advance, run_study, write_with_table
from posekit.benchmarks.studies.machine import RESULTS, Machine, commit_of, load_average, this_machine
from posekit.benchmarks.studies.precision_result import Run, read
from posekit.benchmarks.studies.solver_problems import Cell, Problem, made_problem
from posekit.runtime.errors import InputError, PosekitError
from posekit.runtime.manifest import SolverEntry
from posekit.runtime.pose import Pose, rotation_angle_rad
from posekit.runtime.solvers import METHODS, pose_from_correspondences
from posekit.runtime.symmetry import MM_PER_M

ROOT = Path(__file__).resolve().parents[2]
COUNT = 1000
FAILED, SURE = 0.1, 0.9  # of the diameter; certainty
SHAKE = 1e-6  # of a coordinate: some last bits of float32
PACKAGES = ("posekit", "numpy", "opencv-python-headless", "poselib")
CELLS: dict[str, Cell] = {
    "solid": Cell(),
    "solid, exact": Cell(noise_px=0, outliers=0),
    "solid, 3 px of noise": Cell(noise_px=3),
    "solid, far": Cell(far=0.05),
    "solid, origin 10 m outside": Cell(offset_m=10),
    "solid, 60 % outliers": Cell(outliers=0.6),
    "solid, 80 % outliers": Cell(outliers=0.8),
    "solid, 90 % outliers": Cell(outliers=0.9),
    **{f"flat, {tilt} deg": Cell("flat", tilt) for tilt in (0, 15, 30, 45, 60, 70)},
    "flat, 45 deg, exact": Cell("flat", 45, noise_px=0, outliers=0),
    "flat, 45 deg, 3 px of noise": Cell("flat", 45, noise_px=3),
    "flat, 45 deg, far": Cell("flat", 45, far=0.05, noise_px=0.5),
    "flat, 45 deg, 80 % outliers": Cell("flat", 45, outliers=0.8),
    "thin, 15 deg": Cell("thin", 15),
    "thin, 45 deg": Cell("thin", 45),
}
Answer = tuple[Pose | None, float, Pose | None]  # pose, certainty, alternative
Solver = Callable[[Problem, Cell], Answer]


@dataclass(frozen=True)
class Tally:
    """failed: poses.  sure: failed ones of a certainty above SURE.  told: answers with an alternative.

    mended: failed ones whose alternative is right.   alone: answers without an alternative.
    shaken_deg, shaken_mm: 99th percentile and most of what `shaken_by` gives over those.
    """

    solver: str
    failed: int
    sure: int
    told: int
    mended: int
    alone: int
    shaken_deg: tuple[float, float]
    shaken_mm: tuple[float, float]


@dataclass(frozen=True)
class Row:
    cell: str
    tallies: tuple[Tally, ...]


@dataclass(frozen=True)
class RatesResult:
    """count: problems in each cell."""

    machine: Machine
    count: int
    run: Run
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Request:
    cells: dict[str, Cell]
    count: int
    out: Path
    command: str


def posekit(method: str) -> Solver:
    def solve(problem: Problem, cell: Cell) -> Answer:
        solver = SolverEntry(method, reprojection_px=cell.threshold_px)
        found = pose_from_correspondences(problem.points_m, problem.pixels, problem.K, solver)
        return (None, 0.0, None) if found is None else (found.cam_from_obj, found.certainty, found.alternative)

    return solve


def poselib_direct(problem: Problem, cell: Cell) -> Answer:
    import poselib

    K = problem.K
    camera = {"model": "PINHOLE", "width": 0, "height": 0, "params": [K[0, 0], K[1, 1], K[0, 2], K[1, 2]]}
    options = {"max_iterations": SolverEntry().iterations, "max_reproj_error": cell.threshold_px, "seed": 0}
    pose, facts = poselib.estimate_absolute_pose(problem.pixels, problem.points_m, camera, options, {})
    return (Pose(pose.R, pose.t) if facts["num_inliers"] else None), 1.0, None


def sqpnp_of_good_pairs(problem: Problem, cell: Cell) -> Answer:
    X, u = problem.points_m[problem.good], problem.pixels[problem.good]
    found, rotvec, t = cv2.solvePnP(X, u, problem.K, None, flags=cv2.SOLVEPNP_SQPNP)
    if not found:
        return None, 1.0, None
    rotvec, t = cv2.solvePnPRefineLM(X, u, problem.K, None, rotvec, t)
    return Pose.from_rotvec(rotvec.ravel(), t.ravel()), 1.0, None


KNOWING = "SQPnP, good pairs"
SOLVERS: dict[str, Solver] = {
    **{method: posekit(method) for method in METHODS},
    "PoseLib": poselib_direct,
    KNOWING: sqpnp_of_good_pairs,
}


def tally(name: str, solver: Solver, problems: Sequence[Problem], cell: Cell) -> Tally:
    failed = sure = told = mended = 0
    shaken: list[tuple[float, float]] = []
    for seed, problem in enumerate(problems):
        pose, certainty, alternative = solver(problem, cell)
        wrong = pose is None or not problem.add_of_diameter(pose) <= FAILED
        failed += wrong
        sure += wrong and certainty > SURE
        told += alternative is not None
        mended += wrong and alternative is not None and problem.add_of_diameter(alternative) <= FAILED
        if pose is not None and alternative is None:
            shaken.append(shaken_by(pose, problem, solver, cell, seed))
    degrees, millimetres = (_tail([pair[i] for pair in shaken]) for i in (0, 1))
    return Tally(name, failed, sure, told, mended, len(shaken), degrees, millimetres)


def _tail(values: Sequence[float]) -> tuple[float, float]:
    """Give the 99th percentile and the largest of values; zeros where there are none, which the table shows as none."""
    return (float(np.percentile(values, 99, method="higher")), max(values)) if values else (0.0, 0.0)


def shaken_by(pose: Pose, problem: Problem, solver: Solver, cell: Cell, seed: int) -> tuple[float, float]:
    """Solve again with each coordinate about the points' middle changed by SHAKE: degrees of turn, mm of the farthest point.

    Infinite where no pose is found any more.
    """
    middle_m = problem.points_m.mean(axis=0)
    noise = 1 + SHAKE * np.random.default_rng(seed).normal(size=problem.points_m.shape)
    points_m = middle_m + (problem.points_m - middle_m) * noise
    again = solver(replace(problem, points_m=points_m), cell)[0]
    if again is None:
        return np.inf, np.inf
    apart_m = np.linalg.norm(again.apply(problem.points_m) - pose.apply(problem.points_m), axis=1)
    return float(np.degrees(rotation_angle_rad(again.R, pose.R))), float(MM_PER_M * apart_m.max())


def measure(request: Request, advance: Advance) -> RatesResult:
    """Cells side by side, for nothing is timed; written after each, in their order. Raises OutputError."""
    commit, load, rows = commit_of(ROOT), load_average(), []
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        measured = pool.map(row_of, request.cells, request.cells.values(), repeat(request.count))
        for done, row in enumerate(measured, 1):
            rows.append(row)
            run = Run.ended(commit, request.command, load, load_average())
            result = RatesResult(this_machine(PACKAGES), request.count, run, tuple(rows))
            write_with_table(request.out, result, markdown(result))
            advance("cells", done, len(request.cells))
    return result


def row_of(name: str, cell: Cell, count: int) -> Row:
    """All solvers on the problems of one cell."""
    problems = [made_problem(cell, seed) for seed in range(count)]
    return Row(name, tuple(tally(solver_name, solver, problems, cell) for solver_name, solver in SOLVERS.items()))


def markdown(result: RatesResult) -> str:
    """Rates in percent; behind them, in brackets, how many failed with a certainty above SURE."""
    machine = result.machine
    versions = ", ".join(f"{name} {version}" for name, version in sorted(machine.versions.items()))
    solvers = [tally.solver for tally in result.rows[0].tallies]
    limit = 100 / np.sqrt(result.count)
    heading = (
        f"{machine.cpu}; {machine.system}; {versions}; {result.run.date[:10]}, commit {result.run.commit}. "
        f"{result.count} problems in each cell, `{result.run.command}`.\n\n"
        f"Failed, % (ADD above {FAILED:g} diameters, or no pose); in brackets those with a certainty above {SURE:g}; two rates "
        f"near a half differ by chance by {limit:.1f} % (two standard deviations). "
        "Told: answers of the first solver with an alternative; mended: failed ones whose alternative is right.\n\n"
    )
    rates = markdown_table(("cell", *solvers, "told", "mended"), (_row(row, result.count) for row in result.rows))
    ours = [name for name in solvers if name != KNOWING]
    shaken = markdown_table(("cell", *ours), (_shaken_row(row) for row in result.rows))
    return (
        f"{heading}{rates}\nPoses without an alternative (how many) when each coordinate changes by {SHAKE:g} of itself: "
        f"99th percentile and most of the rotation, and of the way of a point.\n\n{shaken}"
    )


def _shaken_row(row: Row) -> Sequence[object]:
    return (row.cell, *(_moved(tally) for tally in row.tallies if tally.solver != KNOWING))


def _moved(tally: Tally) -> str:
    if not tally.alone:
        return "none"
    (deg, most_deg), (mm, most_mm) = tally.shaken_deg, tally.shaken_mm
    return f"{deg:.0e}, {most_deg:.0e} deg; {mm:.0e}, {most_mm:.0e} mm ({tally.alone})"


def _row(row: Row, count: int) -> Sequence[object]:
    ours = row.tallies[0]
    shown = [f"{t.failed / count:.1%} ({t.sure / count:.1%})" if t.solver in METHODS else f"{t.failed / count:.1%}"
             for t in row.tallies]  # fmt: skip
    return (row.cell, *shown, f"{ours.told / count:.1%}", f"{ours.mended / count:.1%}")


def requested(arguments: Sequence[str] | None = None) -> Request | Path:
    """What the command line asks for; a path is a result to print. InputError for no problem."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=COUNT, help="problems in each cell")
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--table", type=Path, metavar="RESULT", help="print the Markdown of a result and stop")
    given = parser.parse_args(arguments)
    if given.table:
        return Path(given.table)
    if given.count < 1:
        raise InputError("--count", got=given.count, expected="at least 1", remedy="Leave it out for 1000.")
    out = given.out or ROOT / RESULTS / f"solver-rates-{this_machine().slug}.json"
    words = ["python", "benchmarks/studies/solver_rates.py", *(sys.argv[1:] if arguments is None else arguments)]
    return Request(CELLS, given.count, out, shlex.join(words))


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when everything is measured, 2 for invalid input, 130 when stopped."""

    def run(wanted: Request, advance: Advance) -> list[PosekitError]:
        measure(wanted, advance)
        return []

    return run_study(
        "benchmarks/studies/solver_rates.py",
        "Cells",
        lambda: requested(arguments),
        lambda path: markdown(read(path, RatesResult)),
        run,
    )


if __name__ == "__main__":
    sys.exit(main())
