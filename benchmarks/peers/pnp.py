"""PnP on noisy maps: posekit's solvers against OpenCV and PoseLib called directly, with the same options."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version

import cv2
import numpy as np

from posekit.benchmarks.peers.contest import Contender, Contest
from posekit.runtime.manifest import SolverEntry
from posekit.runtime.pose import Array, Pose, rotation_angle_rad
from posekit.runtime.solvers import pose_from_correspondences

# One object as the reference maps show it: 24 x 24 cells of which two thirds are its own.
OBJECTS, PAIRS = 16, 384
OUTLIERS = 0.25  # of the pairs, anywhere in the crop
NOISE_PX = 1.0
CROP_PX, FOCAL_PX = 96.0, 500.0
HALF_EXTENT_M = (0.06, 0.04, 0.09)
DISTANCE_M = (0.8, 1.4)
ITERATIONS, THRESHOLD_PX = 100, 3.0
CONFIDENCE = 0.999  # of OpenCV's search
LIMITS = {"lost": 0.0, "rotation_max_deg": 3.0, "translation_max_of_distance": 0.03}

Solve = Callable[[Array, Array, Array], "Pose | None"]
Poses = list[Pose | None]


@dataclass(frozen=True, eq=False)
class Problem:
    """points_m: (N, 3) object frame.   pixels: (N, 2).   K: (3, 3).   truth: cam_from_obj."""

    points_m: Array
    pixels: Array
    K: Array
    truth: Pose


def made_problems(count: int = OBJECTS, pairs: int = PAIRS, seed: int = 0) -> list[Problem]:
    """Points of a box's surface, seen with noise; some pixels are of something else."""
    rng = np.random.default_rng(seed)
    return [_problem(rng, pairs) for _ in range(count)]


def _problem(rng: np.random.Generator, pairs: int) -> Problem:
    points = rng.uniform(-1, 1, (pairs, 3))
    points[np.arange(pairs), rng.integers(3, size=pairs)] = rng.choice([-1.0, 1.0], pairs)
    points_m = points * HALF_EXTENT_M
    z = rng.uniform(*DISTANCE_M)
    truth = Pose.from_rotvec(_any_rotvec(rng), np.array([*rng.uniform(-0.02, 0.02, 2), z]))
    focal = FOCAL_PX * z  # the crop shows the object equally large at every distance
    K = np.array([[focal, 0, CROP_PX / 2], [0, focal, CROP_PX / 2], [0, 0, 1]])
    projected = truth.apply(points_m) @ K.T
    pixels = projected[:, :2] / projected[:, 2:] + rng.normal(scale=NOISE_PX, size=(pairs, 2))
    wrong = rng.random(pairs) < OUTLIERS
    pixels[wrong] = rng.uniform(0, CROP_PX, (int(wrong.sum()), 2))
    return Problem(points_m, pixels, K, truth)


def _any_rotvec(rng: np.random.Generator) -> Array:
    axis = rng.normal(size=3)
    return np.asarray(axis / np.linalg.norm(axis) * rng.uniform(0, np.pi))


def deviations(truth: Poses, found: Poses) -> dict[str, float]:
    """lost: share without a pose.   The rest over the others."""
    pairs = [(a, b) for a, b in zip(truth, found, strict=True) if a is not None and b is not None]
    turned = [np.degrees(rotation_angle_rad(a.R, b.R)) for a, b in pairs]
    moved = [np.linalg.norm(a.t_m - b.t_m) / np.linalg.norm(a.t_m) for a, b in pairs]
    return {
        "lost": 1 - len(pairs) / len(truth),
        "rotation_p50_deg": float(np.median(turned)) if pairs else float("nan"),
        "rotation_max_deg": float(max(turned, default=float("nan"))),
        "translation_max_of_distance": float(max(moved, default=float("nan"))),
    }


def posekit(method: str) -> Solve:
    """The solver as a bundle's path calls it."""
    entry = SolverEntry(method, ITERATIONS, THRESHOLD_PX)

    def solve(points_m: Array, pixels: Array, K: Array) -> Pose | None:
        solution = pose_from_correspondences(points_m, pixels, K, entry)
        return None if solution is None else solution.cam_from_obj

    return solve


def opencv(flags: int, iterations: int = ITERATIONS, threshold_px: float = THRESHOLD_PX) -> Solve:
    """cv2.solvePnPRansac, then Levenberg-Marquardt over the inliers, as its documentation advises."""

    def solve(points_m: Array, pixels: Array, K: Array) -> Pose | None:
        ok, rotvec, t, inliers = cv2.solvePnPRansac(
            points_m,
            pixels,
            K,
            None,
            iterationsCount=iterations,
            reprojectionError=threshold_px,
            confidence=CONFIDENCE,
            flags=flags,
        )
        if not ok or inliers is None:
            return None
        kept = inliers.ravel()
        rotvec, t = cv2.solvePnPRefineLM(points_m[kept], pixels[kept], K, None, rotvec, t)
        return Pose.from_rotvec(rotvec.ravel(), t.ravel())

    return solve


def poselib_direct() -> Solve:
    """poselib.estimate_absolute_pose, which refines what it finds. Raises ImportError."""
    import poselib

    def solve(points_m: Array, pixels: Array, K: Array) -> Pose | None:
        camera = {"model": "PINHOLE", "width": 0, "height": 0, "params": [K[0, 0], K[1, 1], K[0, 2], K[1, 2]]}
        options = {"max_iterations": ITERATIONS, "max_reproj_error": THRESHOLD_PX, "seed": 0}
        pose, facts = poselib.estimate_absolute_pose(pixels, points_m, camera, options, {})
        return Pose(pose.R, pose.t) if facts["num_inliers"] else None

    return solve


# posekit's method -> who else does that: name, how, or None where PoseLib must be there first.
PEERS: dict[str, dict[str, int | None]] = {
    "epnp-ransac": {"OpenCV EPnP RANSAC + LM": cv2.SOLVEPNP_EPNP, "OpenCV USAC MAGSAC + LM": cv2.USAC_MAGSAC},
    "p3p-lo-ransac": {"PoseLib P3P LO-RANSAC": None, "OpenCV P3P RANSAC + LM": cv2.SOLVEPNP_AP3P},
}


@contextmanager
def pnp(method: str, threads: int, count: int = OBJECTS) -> Iterator[Contest[Poses]]:
    """One of posekit's methods and its peers. OpenCV and PoseLib give one problem one thread, whatever is allowed."""
    cv2.setNumThreads(threads)
    problems, absent = made_problems(count), {}
    rows = [Contender("posekit", _all(posekit(method), problems), f"posekit, {method}", ours=True)]
    for name, flags in PEERS[method].items():
        try:
            solve = poselib_direct() if flags is None else opencv(flags)
        except ImportError as error:
            absent[name] = f"not installed: {error}"
        else:
            ran_on = f"PoseLib {version('poselib')}" if flags is None else f"OpenCV {cv2.__version__}"
            rows.append(Contender(name, _all(solve, problems), ran_on))
    yield Contest(
        name=f"PnP, {method}",
        work=f"{count} objects, {PAIRS} pairs with {NOISE_PX:g} px noise and {OUTLIERS:.0%} outliers, "
        f"{ITERATIONS} iterations at {THRESHOLD_PX:g} px",
        units=count,
        unit="object",
        expected=[problem.truth for problem in problems],
        deviations=deviations,
        limits=LIMITS,
        contenders=tuple(rows),
        besides="checks the pairs, ends in robust least squares that the last bit of a pair does not move, looks for the "
        "other pose of a plane, and refuses what is degenerate or scattered",
        absent=absent,
    )


def _all(solve: Solve, problems: list[Problem]) -> Callable[[], Poses]:
    return lambda: [solve(problem.points_m, problem.pixels, problem.K) for problem in problems]
