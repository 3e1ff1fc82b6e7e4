"""The arrays that a matcher searches: embedded views in the order of the search, with sketches for a coarse one."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from posekit.runtime.bank import Search, sketch_channels

SKETCHED_AT_ONCE = 1024
SAMPLED_VIEWS = 4096  # that the directions of sketches are taken from: they span the rest
SVD_ITERATIONS = 4


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
    """(L C, S): the right singular vectors of the weighted templates that matter most, of evenly chosen views."""
    chosen = np.linspace(0, len(descriptors) - 1, min(len(descriptors), SAMPLED_VIEWS)).round().astype(int)
    rows = torch.from_numpy(_weighted(descriptors, weights, chosen))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _, _, directions = torch.svd_lowrank(rows, q=sketch_channels(rows.shape[1]), niter=SVD_ITERATIONS)
    return np.ascontiguousarray(directions.numpy())


def _weighted(
    descriptors: npt.NDArray[np.floating], weights: npt.NDArray[np.float32], at: slice | npt.NDArray[np.int_]
) -> npt.NDArray[np.float32]:
    """(n, L C)."""
    part = np.asarray(descriptors[at], np.float32)
    return part.reshape(len(part), -1) * weights[at, None]
