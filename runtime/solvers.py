"""One function from 2D-3D correspondences to a pose; each method is a row of METHODS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from posekit.runtime.errors import BackendError, InputError
from posekit.runtime.manifest import SolverEntry
from posekit.runtime.pose import Array, Pose, nearest_rotation

RANSAC_CONFIDENCE = 0.999


@dataclass(frozen=True, eq=False)
class Solution:
    """inliers: (N,) bool.  reprojection_px: root mean square over the inliers."""

    cam_from_obj: Pose
    inliers: npt.NDArray[np.bool_]
    reprojection_px: float


Method = Callable[[Array, Array, Array, SolverEntry], "tuple[Pose, npt.NDArray[np.bool_]] | None"]


def pose_from_correspondences(
    points_m: npt.ArrayLike, pixels: npt.ArrayLike, K: npt.ArrayLike, solver: SolverEntry
) -> Solution | None:
    """Object points (N, 3), metres, seen at ideal pixels (N, 2) of a camera K (3, 3) -> the pose, or None.

    None means not found: too few pairs, no consensus, or an object behind the camera. Deterministic.
    Raises InputError for arrays that do not fit or an unknown method, BackendError when its library is missing.
    """
    X, u, K_ = (np.ascontiguousarray(a, dtype=np.float64) for a in (points_m, pixels, K))
    _check(X, u, solver)
    if len(X) < solver.min_correspondences:
        return None
    found = METHODS[solver.method](X, u, K_, solver)
    if found is None:
        return None
    pose, inliers = found
    if inliers.sum() < solver.min_correspondences or pose.t_m[2] <= 0:
        return None
    if solver.refine:
        pose = refined(pose, X[inliers], u[inliers], K_)
    error = reprojection_px(pose, X[inliers], u[inliers], K_)
    if pose.t_m[2] <= 0 or not np.isfinite(error).all():
        return None
    return Solution(pose, inliers, float(np.sqrt((error**2).mean())))


def reprojection_px(pose: Pose, points_m: Array, pixels: Array, K: Array) -> Array:
    """Distances (N,) between projected points and their pixels."""
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
            got=f"points {points_m.shape}, pixels {pixels.shape}, finite: {bool(np.isfinite(points_m).all())}",
            expected="points (N, 3) and pixels (N, 2), finite",
            remedy="Drop pairs without a coordinate before solving.",
        )
    if solver.method not in METHODS:
        raise InputError(
            "solver method",
            got=solver.method,
            expected=f"one of {', '.join(METHODS)}",
            remedy="Correct the solver section.",
        )


def _opencv_ransac(flag_name: str) -> Method:
    def solve(X: Array, u: Array, K: Array, solver: SolverEntry) -> tuple[Pose, npt.NDArray[np.bool_]] | None:
        import cv2

        cv2.setRNGSeed(0)  # the same pairs give the same pose
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
        if not ok or kept is None or not (np.isfinite(rotvec).all() and np.isfinite(t).all()):
            return None
        inliers = np.zeros(len(X), dtype=bool)
        inliers[kept.ravel()] = True
        return Pose.from_rotvec(rotvec.ravel(), t.ravel()), inliers

    return solve


def _poselib_lo_ransac(X: Array, u: Array, K: Array, solver: SolverEntry) -> tuple[Pose, npt.NDArray[np.bool_]] | None:
    """P3P with locally optimised RANSAC (PoseLib)."""
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
    pose, facts = poselib.estimate_absolute_pose(u, X, camera, options, {})
    inliers = np.asarray(facts["inliers"], dtype=bool)
    if not inliers.any() or not np.isfinite(pose.t).all():
        return None
    return Pose(nearest_rotation(pose.R), np.asarray(pose.t, dtype=np.float64)), inliers


METHODS: dict[str, Method] = {
    "epnp-ransac": _opencv_ransac("SOLVEPNP_EPNP"),
    "p3p-ransac": _opencv_ransac("SOLVEPNP_AP3P"),
    "sqpnp-ransac": _opencv_ransac("SOLVEPNP_SQPNP"),
    "p3p-lo-ransac": _poselib_lo_ransac,
}
