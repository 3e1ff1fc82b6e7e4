"""The arrays that a matcher searches: embedded views in the order of the search, with sketches for a coarse one."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from posekit.runtime.bank import Search, sketch_channels

SKETCHED_AT_ONCE = 1024
SAMPLED_VIEWS = 4096  # that the directions of sketches are taken from: they span the rest
SUBSPACE_ITERATIONS = 5


def matched_arrays(
    descriptors: npt.NDArray[np.floating], weights: npt.NDArray[np.float32], search: Search
) -> dict[str, npt.NDArray[Any]]:
    """What a bank keeps for its matcher (posekit.runtime.bank.MATCHED). descriptors: (N, L, C).  weights: (N,)."""
    if search == "flat":
        return {"templates": descriptors.transpose(1, 2, 0), "weights": weights}
    projection = sketch_projection(descriptors, weights)
    parts = range(0, len(descriptors), SKETCHED_AT_ONCE)
    sketches = [_weighted(descriptors, weights, slice(i, i + SKETCHED_AT_ONCE)) @ projection for i in parts]
    return {
        "templates": descriptors,
        "weights": weights,
        "projection": projection,
        "sketches": np.ascontiguousarray(np.concatenate(sketches).T),
    }


def sketch_projection(
    descriptors: npt.NDArray[np.floating], weights: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """(L C, S): the right singular vectors of the weighted templates that matter most, of evenly chosen views.

    Subspace iteration from a random start (Halko, Martinsson, Tropp 2011, algorithm 4.4).
    """
    chosen = np.linspace(0, len(descriptors) - 1, min(len(descriptors), SAMPLED_VIEWS)).round().astype(int)
    rows = _weighted(descriptors, weights, chosen)
    channels = sketch_channels(rows.shape[1])
    directions = np.random.default_rng(0).standard_normal((rows.shape[1], channels), np.float32)
    for _ in range(SUBSPACE_ITERATIONS):
        basis, _ = np.linalg.qr(rows @ directions)
        directions, _ = np.linalg.qr(rows.T @ basis)
    turn = np.linalg.svd(rows @ directions, full_matrices=False)[2]
    return np.ascontiguousarray(directions @ turn.T)


def _weighted(
    descriptors: npt.NDArray[np.floating], weights: npt.NDArray[np.float32], at: slice | npt.NDArray[np.int_]
) -> npt.NDArray[np.float32]:
    """(n, L C)."""
    part = np.asarray(descriptors[at], np.float32)
    return part.reshape(len(part), -1) * weights[at, None]
