"""One function from 2D-3D correspondences to a pose; each method is a row of METHODS."""

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

RANSAC_CONFIDENCE = 0.999
MIN_INLIER_SHARE = 0.05  # random maps reach 1 % by chance
MIN_WIDTH = 1e-3  # of a point set per its length: below, a turn about the line through the points goes unseen
MIN_WIDTH_PX = 0.1  # of the pixels: below, the object could be at any distance


@dataclass(frozen=True, eq=False)
class Solution:
    """inliers: (N,) bool.  reprojection_px: root mean square over the inliers."""

    cam_from_obj: Pose
    inliers: npt.NDArray[np.bool_]
    reprojection_px: float


Found = tuple[Pose, npt.NDArray[np.bool_]]


@dataclass(frozen=True)
class Method:
    """solve: points (N, 3), pixels (N, 2), K (3, 3) and the entry -> a pose and its inliers (N,), or None.

    refines: whether `solve` ends with the least squares that the entry's `refine` asks for, so that it is not done twice.
    """

    solve: Callable[[Array, Array, Array, SolverEntry], Found | None]
    refines: bool = False


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

    Not found are: too few pairs, no consensus, pairs on one line or in one pixel, an object behind the camera.
    Deterministic.
    Raises InputError for arrays that do not fit or an unknown method, BackendError when its library is missing.
    """
    X, u, K_ = (np.ascontiguousarray(a, dtype=np.float64) for a in (points_m, pixels, K))
    _check(X, u, solver)
    if len(X) < solver.min_correspondences:
        return Reason.TOO_FEW_CORRESPONDENCES
    u, K_ = without_skew(u, K_)
    method = METHODS[solver.method]
    found = method.solve(X, u, K_, solver)
    if found is None:
        return Reason.NO_CONSENSUS
    pose, inliers = found
    if inliers.sum() < max(solver.min_correspondences, MIN_INLIER_SHARE * len(X)):
        return Reason.NO_CONSENSUS
    if not _fixes_a_pose(X[inliers], u[inliers]):
        return Reason.DEGENERATE_CORRESPONDENCES
    if solver.refine and not method.refines:
        with stage("refine"):
            pose = refined(pose, X[inliers], u[inliers], K_)
    if pose.t_m[2] <= 0 or (pose.apply(X[inliers])[:, 2] <= 0).any():
        return Reason.BEHIND_CAMERA
    error_px = float(np.sqrt((reprojection_px(pose, X[inliers], u[inliers], K_) ** 2).mean()))
    # A refinement can run away from its start: then the pairs do not agree on this pose.
    return Solution(pose, inliers, error_px) if error_px <= solver.reprojection_px else Reason.NO_CONSENSUS


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


def reprojection_px(pose: Pose, points_m: Array, pixels: Array, K: Array) -> Array:
    """Distances (N,) between projected points and their pixels. The points are in front of the camera."""
    projected = pose.apply(points_m) @ K.T
    return np.asarray(np.linalg.norm(projected[:, :2] / projected[:, 2:] - pixels, axis=1))


def refined(pose: Pose, points_m: Array, pixels: Array, K: Array) -> Pose:
    """Levenberg-Marquardt on the reprojection error of the given pairs (OpenCV solvePnPRefineLM)."""
    import cv2

    start = cv2.Rodrigues(pose.R)[0], pose.t_m.reshape(3, 1).copy()
    rotvec, t = cv2.solvePnPRefineLM(points_m, pixels, K, None, *start)
    return Pose.from_rotvec(rotvec.ravel(), t.ravel())


def _check(points_m: Array, pixels: Array, solver: SolverEntry) -> None:
    fits = points_m.ndim == 2 and points_m.shape[1:] == (3,) and pixels.shape == (len(points_m), 2)
    if not fits or not (np.isfinite(points_m).all() and np.isfinite(pixels).all()):
        raise InputError(
            "correspondences",
            got=f"points {points_m.shape}, pixels {pixels.shape}" + ", NaN or infinity" * fits,
            expected="points (N, 3) and pixels (N, 2), finite",
            remedy="Drop pairs without a coordinate before solving.",
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


def _opencv_ransac(flag_name: str) -> Method:
    def solve(X: Array, u: Array, K: Array, solver: SolverEntry) -> Found | None:
        import cv2

        cv2.setRNGSeed(0)  # the same pairs give the same pose
        try:
            ok, rotvec, t, kept = cv2.solvePnPRansac(
                X,
                u,
                K,
                None,
                iterationsCount=solver.iterations,
                reprojectionError=solver.reprojection_px,
                confidence=RANSAC_CONFIDENCE,
                flags=getattr(cv2, flag_name),
            )
        except cv2.error:  # an assertion that the pairs of some sample spread: they are degenerate
            return None
        if not ok or kept is None or not (np.isfinite(rotvec).all() and np.isfinite(t).all()):
            return None
        inliers = np.zeros(len(X), dtype=bool)
        inliers[kept.ravel()] = True
        return Pose.from_rotvec(rotvec.ravel(), t.ravel()), inliers

    return Method(solve)


def _poselib_lo_ransac(X: Array, u: Array, K: Array, solver: SolverEntry) -> Found | None:
    """P3P with locally optimised RANSAC, then Levenberg-Marquardt over the inliers if asked for (PoseLib).

    Its refinement is by default robust, with a Cauchy loss. Over pairs that were already chosen least squares is more
    accurate, and what `refined` does: the two agree to 1e-4 degrees.
    """
    try:
        import poselib
    except ImportError as error:
        raise BackendError(
            "solver p3p-lo-ransac",
            got="no poselib",
            expected="the poselib package",
            remedy="pip install poselib, or choose epnp-ransac.",
        ) from error
    camera = {"model": "PINHOLE", "width": 0, "height": 0, "params": [K[0, 0], K[1, 1], K[0, 2], K[1, 2]]}
    options = {"max_iterations": solver.iterations, "max_reproj_error": solver.reprojection_px, "seed": 0}
    refinement = {"loss_type": "TRIVIAL"} if solver.refine else {"max_iterations": 0}
    pose, facts = poselib.estimate_absolute_pose(u, X, camera, options, refinement)
    inliers = np.asarray(facts["inliers"], dtype=bool)
    if not inliers.any() or not np.isfinite(pose.t).all():
        return None
    return Pose(nearest_rotation(pose.R), np.asarray(pose.t, dtype=np.float64)), inliers


METHODS: dict[str, Method] = {
    "epnp-ransac": _opencv_ransac("SOLVEPNP_EPNP"),
    "p3p-ransac": _opencv_ransac("SOLVEPNP_AP3P"),
    "sqpnp-ransac": _opencv_ransac("SOLVEPNP_SQPNP"),
    "p3p-lo-ransac": Method(_poselib_lo_ransac, refines=True),
}
