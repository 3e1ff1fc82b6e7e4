"""Robust least squares of the reprojection error: the place where every method's pose comes to rest.

Nothing here counts pairs at a threshold: a pair's weight falls smoothly from one to nothing around it. So the pose is a
continuous function of the pairs, and the last bit of a network's output stays the last bit of the pose.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from posekit.runtime.pose import IDENTITY, Array
from posekit.runtime.solve.pairs import Pairs, Poses, Seen, seen, squared_px

REACH = 1.5  # thresholds: a pair this far off weighs nothing
STEPS = 40
AT_REST = 1e-6  # of a step, in radians and in the unit of the points' spread
FIRST_DAMPING, LEAST_DAMPING, MOST_DAMPING = 1e-4, 1e-9, 1e9
GENERATORS = np.array([[0, 0, 0, 0, 0, -1, 0, 1, 0], [0, 0, 1, 0, 0, 0, -1, 0, 0], [0, -1, 0, 1, 0, 0, 0, 0, 0]]) * 1.0
ROUNDING, TINY = 1e-14, 1e-300  # what keeps the equations solvable where a direction is not seen, or nothing is


def weights_and_costs(squared: Array, reach_px: float) -> tuple[Array, Array]:
    """Weights (S, N) in 0..1 of pairs by their squared errors (S, N), and each pose's cost (S,) in squared pixels.

    With y = error^2 / reach^2 the weight is (1 - y^2)^2, Tukey's with a flatter top, and the cost its integral, the
    same for whatever is beyond the reach.
    """
    y = np.minimum(squared / reach_px**2, 1.0)
    y2 = y * y
    costs = (y * (1 - y2 * (2 / 3 - y2 / 5))).sum(axis=1)
    return (1 - y2) ** 2, costs * reach_px**2


def cost(poses: Poses, pairs: Pairs) -> Array:
    """(S,), squared pixels, at the pairs' own threshold."""
    return weights_and_costs(squared_px(poses, pairs), REACH * pairs.threshold_px)[1]


def fitted(
    poses: Poses, pairs: Pairs, widths: Sequence[float] = (), steps: int = STEPS, at_rest: float = AT_REST
) -> Poses:
    """Descend in damped steps (Levenberg-Marquardt) from each pose, at most `steps` until all are at rest.

    widths: of the reach in one step each before, falling to 1, so that a rough start finds its valley.
    """
    damping = np.full(len(poses), FIRST_DAMPING)
    now, reach_px = seen(poses, pairs), 0.0
    for width in (*widths, *[1.0] * steps):
        wanted_px = REACH * pairs.threshold_px * width
        if reach_px != wanted_px:
            reach_px = wanted_px
            weights, costs = weights_and_costs(now.squared_px, reach_px)
        moves = _moves(now, weights, pairs.focal_px, damping, reach_px)
        moved = Poses(_rotations(moves[:, :3]) @ poses.R, poses.t + moves[:, 3:])
        then = seen(moved, pairs)
        new_weights, new_costs = weights_and_costs(then.squared_px, reach_px)
        better = new_costs <= costs
        damping = np.minimum(np.maximum(damping * np.where(better, 0.1, 10.0), LEAST_DAMPING), MOST_DAMPING)
        if better.all():
            poses, now, weights, costs = moved, then, new_weights, new_costs
        else:
            poses = Poses(*_chosen(better, (moved.R, moved.t), (poses.R, poses.t)))
            now = Seen(*_chosen(better, then, now))
            weights, costs = _chosen(better, (new_weights, new_costs), (weights, costs))
        if width == 1.0 and np.abs(moves).max() < at_rest:
            break
    return poses


def _chosen(first: npt.NDArray[np.bool_], a: Sequence[Array], b: Sequence[Array]) -> list[Array]:
    """Per pose that of a where `first`, else that of b."""
    return [np.where(first.reshape(-1, *[1] * (x.ndim - 1)), x, y) for x, y in zip(a, b, strict=True)]


def _moves(now: Seen, weights: Array, focal_px: Array, damping: Array, reach_px: float) -> Array:
    """Damped Newton steps (S, 6): a rotation vector about the points' origin in the camera's axes, and a shift."""
    J = _jacobian(now, focal_px)
    weighted, H = _weighted(J, weights)
    g = weighted @ now.errors_px.reshape(len(J), -1, 1)
    H = _with_falling_weights(H, J, now, weights, reach_px)
    diagonal = np.einsum("sii->si", H)
    diagonal += damping[:, None] * diagonal + ROUNDING * diagonal.max(axis=1, keepdims=True) + TINY
    return np.asarray(-np.linalg.solve(H, g)[:, :, 0])


def _with_falling_weights(H: Array, J: Array, now: Seen, weights: Array, reach_px: float) -> Array:
    """Take from Gauss-Newton's H (S, 6, 6) what the weights lose as the errors grow: Newton's steps, which end sooner.

    H stays as it is for a pose far from a minimum, where the difference is not positive definite.
    """
    pulls = np.einsum("sikn,skn->sin", J, now.errors_px)
    loss = (8 / reach_px**2) * np.minimum(now.squared_px / reach_px**2, 1.0) * np.sqrt(weights)
    newton = H - (pulls * loss[:, None]) @ pulls.transpose(0, 2, 1)
    return np.where((np.linalg.eigvalsh(newton)[:, 0] > 0)[:, None, None], newton, H)


def normal_matrix(now: Seen, weights: Array, focal_px: Array) -> Array:
    """(S, 6, 6) J' W J of the steps: a rotation vector in the camera's axes about the points' origin, and a shift."""
    return _weighted(_jacobian(now, focal_px), weights)[1]


def _weighted(J: Array, weights: Array) -> tuple[Array, Array]:
    """J' W (S, 6, 2N) and J' W J (S, 6, 6)."""
    weighted = (J * weights[:, None, None]).reshape(len(J), 6, -1)
    return weighted, np.asarray(weighted @ J.reshape(len(J), 6, -1).transpose(0, 2, 1))


def _jacobian(now: Seen, focal_px: Array) -> Array:
    """(S, 6, 2, N): of columns and rows of the pixels by the six numbers of a step."""
    x, y, z = now.turned.transpose(1, 0, 2)
    p, q = now.slopes.transpose(1, 0, 2)
    J = np.zeros((len(x), 6, 2, x.shape[1]))
    u, v = J[:, :, 0], J[:, :, 1]
    u[:, 0], u[:, 1], u[:, 2], u[:, 3], u[:, 5] = -p * y, z + p * x, -y, 1.0, -p
    v[:, 0], v[:, 1], v[:, 2], v[:, 4], v[:, 5] = -q * y - z, q * x, x, 1.0, -q
    J *= (now.per_depth[:, None] * focal_px[:, None])[:, None]
    return J


def _rotations(rotvecs: Array) -> Array:
    """Cayley's formula, (S, 3) -> (S, 3, 3): a rotation without a sine, by the given vector to the second order."""
    k = (rotvecs / 2 @ GENERATORS).reshape(-1, 3, 3)
    k2 = k @ k
    return np.asarray(IDENTITY + (2 / (1 - np.einsum("sii->s", k2) / 2))[:, None, None] * (k + k2))
