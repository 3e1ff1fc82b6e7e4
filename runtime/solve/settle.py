"""From rough poses to the one that the pairs support best, and to the other one where they support two.

Points of a plane that is small or far are seen nearly alike from two sides (Schweighofer and Pinz, "Robust pose estimation
from a planar target", PAMI 28, 2006): both poses are valleys of the reprojection error, and noise says which is deeper.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from posekit.runtime.pose import IDENTITY, Array
from posekit.runtime.solve.fit import REACH, cost, fitted, normal_matrix, weights_and_costs
from posekit.runtime.solve.pairs import Pairs, Poses, seen, together

MOST_PAIRS = 256  # that tell valleys apart; the deepest are then fitted to all
WIDTHS, STEPS, AT_REST = (2.0, 1.2), 4, 1e-3  # of the fit to those: enough to see which valleys there are
LEAST_NOISE = 0.02  # thresholds: errors below are rounding, and say nothing about which of two valleys is deeper
INDEPENDENT_PAIRS = 100  # at most: neighbouring pairs of a map err alike
HOPELESS = 1e-3  # belief in a pose, against the best one's 1: it is not looked at any longer
ALIKE = 11.0  # errors of a map's cells are alike: the variance of a pose is so many times that of independent ones
TINY, IDENTITY_6 = 1e-30, np.eye(6)
# Distances of two poses, in the points' spread: starts in one valley, one pose, and a tenth of the object's diameter.
CLOSE, SAME, FAR = 0.05, 1e-3, 0.4


@dataclass(frozen=True, eq=False)
class Valleys:
    """poses: deepest first, all distinct.   beliefs: (S,) likelihoods of the pairs under each, the deepest's being 1."""

    poses: Poses
    beliefs: Array

    @property
    def rivalry(self) -> Array:
        """(S,) beliefs, less what does not contradict the deepest: a pose that is nearly the same is no rival."""
        return np.asarray(self.beliefs * (1 - np.exp(-((_distances(self.poses) / FAR) ** 2))))


def settled(starts: Poses, pairs: Pairs) -> Valleys:
    """The valleys of the robust reprojection error around `starts`, which are not empty, and around their mirror image."""
    part = pairs.part(np.random.default_rng(0).permutation(len(pairs))[:MOST_PAIRS])
    starts = together([starts.part(_distinct(starts, CLOSE)), _mirrored(starts.part(slice(1)), part)])
    rough = _deepest_first(fitted(starts, part, WIDTHS, STEPS, AT_REST), part).poses
    return _deepest_first(fitted(rough, pairs), pairs)


def precision(best: Poses, pairs: Pairs) -> float:
    """How likely the one pose moves the points by less than FAR from where they are, by the covariance of its fit: 0..1.

    The pose's six numbers err with (J' W J)^-1 times the variance of the pairs, which is ALIKE times what it would be if
    they erred on their own; the points' distance is taken as a normal error in two directions.
    """
    now = seen(best, pairs)
    weights = weights_and_costs(now.squared_px, REACH * pairs.threshold_px)[0]
    normal = normal_matrix(now, weights, pairs.focal_px)[0] + TINY * IDENTITY_6
    covariance = ALIKE * _variance(now.squared_px, weights) * np.linalg.inv(normal)
    points = now.turned[0]
    second = points @ points.T / points.shape[1]
    squared = np.trace(covariance[:3, :3] @ (np.trace(second) * IDENTITY - second)) + np.trace(covariance[3:, 3:])
    return float(-np.expm1(-(FAR**2) / max(float(squared), TINY)))


def _deepest_first(poses: Poses, pairs: Pairs) -> Valleys:
    depths = cost(poses, pairs)
    order = np.argsort(depths, kind="stable")
    poses, depths = poses.part(order), depths[order]
    beliefs = np.exp(-_evidence(poses.part(slice(1)), pairs) * (depths - depths[0]))
    kept = (beliefs > HOPELESS) & _distinct(poses, SAME)
    return Valleys(poses.part(kept), beliefs[kept])


def _evidence(best: Poses, pairs: Pairs) -> float:
    """What a squared pixel of cost takes from the logarithm of a pose's likelihood: 1 / (2 variance)."""
    squared = seen(best, pairs).squared_px
    weights = weights_and_costs(squared, REACH * pairs.threshold_px)[0]
    least = (LEAST_NOISE * pairs.threshold_px) ** 2
    independent = min(1.0, INDEPENDENT_PAIRS / (float(weights.sum()) + TINY))
    return independent / (2 * (_variance(squared, weights) + least))


def _variance(squared: Array, weights: Array) -> float:
    """Of one coordinate of the agreeing pairs, squared pixels, of one pose."""
    return float((weights * np.where(weights > 0, squared, 0.0)).sum() / (2 * weights.sum() + TINY))


def _distinct(poses: Poses, gap: float) -> npt.NDArray[np.bool_]:
    """Whether each pose (S,) is further than `gap` from all before it."""
    gaps = np.abs(poses.R[:, None] - poses.R).max(axis=(2, 3)) + np.abs(poses.t[:, None] - poses.t).max(axis=2)
    return np.asarray(~np.tril(gaps < gap, -1).any(axis=1))


def _distances(poses: Poses) -> Array:
    """Root mean square by which each pose (S,) moves the points against the first, in their spread."""
    return np.asarray(
        np.sqrt(((poses.R - poses.R[0]) ** 2).sum(axis=(1, 2)) + ((poses.t - poses.t[0]) ** 2).sum(axis=1))
    )


def _mirrored(pose: Poses, pairs: Pairs) -> Poses:
    """One pose -> the one that shows the plane of the agreeing points alike, tilted the other way against the viewing ray."""
    weights = weights_and_costs(seen(pose, pairs).squared_px, REACH * pairs.threshold_px)[0][0]
    centre = weights @ pairs.points / max(float(weights.sum()), 1e-9)
    offsets = (pairs.points - centre) * weights[:, None]
    normal = np.linalg.eigh(offsets.T @ offsets)[1][:, 0]
    middle = pose.R[0] @ centre + pose.t[0]
    ray = middle / np.linalg.norm(middle)
    R = _reflection(ray) @ pose.R[0] @ _reflection(normal)
    return Poses(R[None], (middle - R @ centre)[None])


def _reflection(normal: Array) -> Array:
    return np.asarray(np.eye(3) - 2 * np.outer(normal, normal))
