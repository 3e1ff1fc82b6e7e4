"""One function from 2D-3D correspondences to a pose; each method is a row of METHODS.

A method proposes rough poses; what follows is the same for all of them (posekit.runtime.solve.settle), and continuous:
the last bit of a coordinate moves the pose by no more than that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from posekit.runtime.detection import Reason
from posekit.runtime.errors import BackendError, InputError
from posekit.runtime.manifest import SolverEntry
from posekit.runtime.pose import Array, Pose, nearest_rotation
from posekit.runtime.profiler import Stage, no_stage
from posekit.runtime.solve.consensus import CONFIDENCE, consensus
from posekit.runtime.solve.pairs import Pairs, Poses, seen, together
from posekit.runtime.solve.settle import precision, settled

MIN_INLIER_SHARE = 0.05  # random maps reach 1 % by chance
MIN_WIDTH = 1e-3  # of a point set per its length: below, a turn about the line through the points goes unseen
MIN_WIDTH_PX = 0.1  # of the pixels: below, the object could be at any distance
POSELIB_MIN_ITERATIONS = 50  # its own least is 1000, which is what it then always takes
MIN_RIVALRY = 0.05  # of a second pose, from which it is an alternative


@dataclass(frozen=True, eq=False)
class Solution:
    """inliers: (N,) bool.  reprojection_px: root mean square over the inliers.

    certainty: 0..1, how likely the points lie within about a tenth of the object's size: less where the pairs leave the pose
    loose, at most a half where `alternative` explains them as well.
    """

    cam_from_obj: Pose
    inliers: npt.NDArray[np.bool_]
    reprojection_px: float
    certainty: float = 1.0
    alternative: Pose | None = None


Method = Callable[[Pairs, int], Poses]  # pairs and most iterations -> rough poses, best first, or none


def pose_from_correspondences(
    points_m: npt.ArrayLike,
    pixels: npt.ArrayLike,
    K: npt.ArrayLike,
    solver: SolverEntry,
    stage: Stage = no_stage,
) -> Solution | None:
    """The pose of `solution_or_reason`, or None where none was found."""
    found = solution_or_reason(points_m, pixels, K, solver, stage)
    return found if isinstance(found, Solution) else None


def solution_or_reason(
    points_m: npt.ArrayLike,
    pixels: npt.ArrayLike,
    K: npt.ArrayLike,
    solver: SolverEntry,
    stage: Stage = no_stage,
) -> Solution | Reason:
    """Object points (N, 3), metres, seen at ideal pixels (N, 2) of a camera K (3, 3) -> the pose, or why there is none.

    Not found are: too few pairs, no consensus, pairs on one line or in one pixel. Deterministic.
    Raises InputError for arrays that do not fit, what is no camera's K, or an unknown method, BackendError when its library
    is missing.
    """
    X, u, K_ = (np.ascontiguousarray(a, dtype=np.float64) for a in (points_m, pixels, K))
    _check(X, u, K_, solver)
    if len(X) < solver.min_correspondences:
        return Reason.TOO_FEW_CORRESPONDENCES
    u, K_ = without_skew(u, K_)
    centre = X.mean(axis=0)
    spread = float(np.sqrt(((X - centre) ** 2).sum(axis=1).mean()))
    if not _fixes_a_pose(X, u):
        return Reason.DEGENERATE_CORRESPONDENCES
    pairs = Pairs((X - centre) / spread, u - K_[:2, 2], K_.diagonal()[:2], solver.reprojection_px)
    found = METHODS[solver.method](pairs, solver.iterations)
    if not len(found):
        return Reason.NO_CONSENSUS
    with stage("refine"):
        valleys = settled(found, pairs)
    best = valleys.poses.part(slice(1))
    squared = seen(best, pairs).squared_px[0]
    inliers = squared < solver.reprojection_px**2
    if inliers.sum() < max(solver.min_correspondences, MIN_INLIER_SHARE * len(X)):
        return Reason.NO_CONSENSUS
    if not _fixes_a_pose(X[inliers], u[inliers]):
        return Reason.DEGENERATE_CORRESPONDENCES
    poses = [_pose(R, t, centre, spread) for R, t in zip(valleys.poses.R, valleys.poses.t, strict=True)]
    rivalry = valleys.rivalry
    rival = int(rivalry.argmax())
    return Solution(
        poses[0],
        inliers,
        float(np.sqrt(squared[inliers].mean())),
        precision(best, pairs) / (1 + float(rivalry.sum())),
        poses[rival] if rivalry[rival] > MIN_RIVALRY else None,
    )


def _pose(R: Array, t: Array, centre_m: Array, spread_m: float) -> Pose:
    """Of points x from one of points (x - centre) / spread, whose unit is the spread."""
    rotation = nearest_rotation(R)
    return Pose(rotation, t * spread_m - rotation @ centre_m)


def without_skew(pixels: Array, K: Array) -> tuple[Array, Array]:
    """Pixels (N, 2) as a camera without skew sees them, and its K (3, 3): the libraries ignore K[0, 1]."""
    if K[0, 1] == 0:
        return pixels, K
    shift = K[0, 1] * (pixels[:, 1] - K[1, 2]) / K[1, 1]
    upright = K.copy()
    upright[0, 1] = 0.0
    return np.stack([pixels[:, 0] - shift, pixels[:, 1]], axis=1), upright


def _fixes_a_pose(points_m: Array, pixels: Array) -> bool:
    """Whether the points span a plane at least, and their pixels more than a line."""
    length, width, _ = np.linalg.svd(points_m - points_m.mean(axis=0), compute_uv=False)
    width_px = np.linalg.svd(pixels - pixels.mean(axis=0), compute_uv=False)[1] / np.sqrt(len(pixels))
    return bool(width > MIN_WIDTH * length and width_px > MIN_WIDTH_PX)


def _check(points_m: Array, pixels: Array, K: Array, solver: SolverEntry) -> None:
    fits = points_m.ndim == 2 and points_m.shape[1:] == (3,) and pixels.shape == (len(points_m), 2)
    if not fits or not (np.isfinite(points_m).all() and np.isfinite(pixels).all()):
        raise InputError(
            "correspondences",
            got=f"points {points_m.shape}, pixels {pixels.shape}" + ", NaN or infinity" * fits,
            expected="points (N, 3) and pixels (N, 2), finite",
            remedy="Drop pairs without a coordinate before solving.",
        )
    if K.shape != (3, 3) or not np.isfinite(K).all() or min(K[0, 0], K[1, 1]) <= 0 or K[1, 0] != 0:
        raise InputError(
            "K of correspondences",
            got=K.tolist(),
            expected="(3, 3) = [fx s cx; 0 fy cy; 0 0 1], pixels, positive focal lengths",
            remedy="Pass the matrix of the camera or crop that the pixels are of.",
        )
    check_method(solver)


def check_method(solver: SolverEntry) -> None:
    """InputError unless `method` is a row of METHODS."""
    if solver.method not in METHODS:
        raise InputError(
            "solver method",
            got=solver.method,
            expected=f"one of {', '.join(METHODS)}",
            remedy="Correct the solver section.",
        )


def _poselib_lo_ransac(pairs: Pairs, iterations: int) -> Poses:
    """P3P with locally optimised RANSAC (PoseLib)."""
    try:
        import poselib
    except ImportError as error:
        raise BackendError(
            "solver p3p-lo-ransac",
            got="no poselib",
            expected="the poselib package",
            remedy="pip install poselib, or choose p3p-ransac, which needs nothing.",
        ) from error
    camera = {"model": "PINHOLE", "width": 0, "height": 0, "params": [*pairs.focal_px, 0, 0]}
    options = {
        "max_iterations": iterations,
        "min_iterations": min(POSELIB_MIN_ITERATIONS, iterations),
        "success_prob": CONFIDENCE,
        "max_reproj_error": pairs.threshold_px,
        "seed": 0,
    }
    pose, facts = poselib.estimate_absolute_pose(pairs.pixels, pairs.points, camera, options, {"max_iterations": 0})
    found = bool(np.any(facts["inliers"])) and bool(np.isfinite(pose.R).all() and np.isfinite(pose.t).all())
    return Poses(np.array([pose.R])[:found], np.array([pose.t])[:found])


def _with_opencv(flag_name: str) -> Method:
    """The consensus of triples, and what OpenCV makes of all pairs in it as one more rough pose."""

    def propose(pairs: Pairs, iterations: int) -> Poses:
        import cv2

        found = consensus(pairs, iterations)
        if not len(found):
            return found
        agreeing = pairs.part(seen(found.part(slice(1)), pairs).squared_px[0] < pairs.threshold_px**2)
        try:
            ok, rotvec, t = cv2.solvePnP(agreeing.points, agreeing.pixels, pairs.K, None, flags=getattr(cv2, flag_name))
        except cv2.error:  # too few of them, or an assertion that they spread
            return found
        if not ok or not (np.isfinite(rotvec).all() and np.isfinite(t).all()):
            return found
        pose = Pose.from_rotvec(rotvec.ravel(), t.ravel())
        return together([found, Poses(pose.R[None], pose.t_m[None])])

    return propose


METHODS: dict[str, Method] = {
    "p3p-ransac": consensus,
    "sqpnp-ransac": _with_opencv("SOLVEPNP_SQPNP"),
    "epnp-ransac": _with_opencv("SOLVEPNP_EPNP"),
    "p3p-lo-ransac": _poselib_lo_ransac,
}
