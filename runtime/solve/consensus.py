"""RANSAC: poses of random triples, kept by how well all pairs agree with them."""

from __future__ import annotations

import numpy as np

from posekit.runtime.pose import Array
from posekit.runtime.solve.fit import cost, fitted
from posekit.runtime.solve.p3p import p3p
from posekit.runtime.solve.pairs import Pairs, Poses, seen, together

CONFIDENCE = 0.9999
TRIPLES, MOST_TRIPLES = 32, 256  # at a time: few while the pairs may be good, more when they turn out not to be
SIEVES = ((32, 256), (96, 96))  # pairs that judge the poses of a round, and how many poses are left
MOST_PAIRS = 256  # that judge these
BEST = 4  # poses of a round that are fitted
WIDTHS, STEPS = (3.0, 1.5), 2  # of that fit


def consensus(pairs: Pairs, iterations: int) -> Poses:
    """The best poses of at most `iterations` triples, fitted, best first; none when no triple has one.

    Ends as soon as a triple without an outlier was drawn with CONFIDENCE. Whatever beats all triples before it is fitted
    to all pairs near it (locally optimised RANSAC: Chum et al. 2003), since a pose of three noisy pairs has few friends.
    """
    rng = np.random.default_rng(0)  # the same pairs give the same pose
    pairs = pairs.part(rng.permutation(len(pairs))[:MOST_PAIRS])
    rays, sieves = _rays(pairs), [(pairs.part(slice(judges)), kept) for judges, kept in SIEVES]
    best, least = Poses(np.zeros((0, 3, 3)), np.zeros((0, 3))), np.inf
    drawn, triples, enough = 0, TRIPLES, float(iterations)
    while drawn < enough:
        chosen = rng.integers(len(pairs), size=(min(triples, iterations - drawn), 3))
        drawn, triples = drawn + len(chosen), min(2 * triples, MOST_TRIPLES)
        found = p3p(pairs.points[chosen], rays[chosen])
        for judges, kept in sieves:
            found = found.part(np.argsort(cost(found, judges))[:kept])
        costs = cost(found, pairs)
        promising = np.flatnonzero(costs < least)
        if not len(promising):
            continue
        least = float(costs.min())
        found = found.part(promising[np.argsort(costs[promising])[:BEST]])
        best = together([best, fitted(found, pairs, WIDTHS, STEPS)])
        best = best.part(np.argsort(cost(best, pairs), kind="stable")[:BEST])
        good = (seen(best.part(slice(1)), pairs).squared_px < pairs.threshold_px**2).mean()
        enough = min(iterations, _triples_enough(float(good)))
    return best


def _triples_enough(good: float) -> float:
    """How many triples hold one of good pairs alone with CONFIDENCE. good: share of such pairs."""
    return float(np.log(1 - CONFIDENCE) / np.log1p(-min(max(good**3, 1e-12), 1 - 1e-12)))


def _rays(pairs: Pairs) -> Array:
    """Unit directions (N, 3) from the camera through the pixels."""
    rays = np.concatenate([pairs.pixels / pairs.focal_px, np.ones((len(pairs), 1))], axis=1)
    return np.asarray(rays / np.linalg.norm(rays, axis=1, keepdims=True))
