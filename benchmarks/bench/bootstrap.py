"""How sure a figure is: bootstrap over runs where there are several, over blocks of passes where there is one.

Passes of one run are correlated (caches, clocks, whatever else the machine does lasts longer than a pass), so single
passes must not be drawn: blocks are (circular block bootstrap, Politis and Romano 1992). And runs differ by more than
their passes tell (memory layout, placement of threads), so where a side has several runs, runs are what is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
DRAWS, BLOCK_DRAWS = 4000, 1000
MOST_DRAWN, LEAST_DRAWS = 4_000_000, 200  # samples in all, so that a soak of an hour takes seconds, too
LEVEL = 0.95
SEED = 20260101  # the same evidence gives the same verdict
Z = 1.959964
# 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom.
T = (
    12.706, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281, 2.2010, 2.1788, 2.1604, 2.1448,
    2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860, 2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484,
    2.0452, 2.0423,
)  # fmt: skip


def interval(draws: Values) -> tuple[float, float]:
    """What the middle 95 % of the draws lie between."""
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def run_draws(sides: Sequence[Values]) -> list[Values]:
    """Mean of each side, DRAWS times: every run's deviation from its side's mean is drawn anew, from all sides' alike.

    sides: one figure per run. Sides of the same machine and settings are equally noisy, so that a single new run is judged
    by the spread of its base. Deviations are widened to be unbiased, and by t over Z for few runs (Hesterberg 2015,
    expanded percentiles), so that 95 % of such intervals hold the truth with four runs as with forty. ValueError without any spread
    to draw from: as many runs as sides.
    """
    rest = np.concatenate([side - side.mean() for side in sides])
    freedom = rest.size - len(sides)
    if freedom < 1:
        raise ValueError(f"{rest.size} runs of {len(sides)} sides have no spread")
    rest *= math.sqrt(rest.size / freedom) * t_quantile(freedom) / Z
    random = np.random.default_rng(SEED)
    return [side.mean() + rest[random.integers(rest.size, size=(DRAWS, side.size))].mean(1) for side in sides]


def t_quantile(freedom: int) -> float:
    """97.5 % of Student's t; beyond the table by its expansion (Abramowitz and Stegun 26.7.5)."""
    return T[freedom - 1] if freedom <= len(T) else Z + 2.3724 / freedom + 2.8225 / freedom**2


def block_draws(samples: Values, figure: Callable[[Values], Values], seed: int) -> Values:
    """`figure` (of ascending samples along the last axis) of BLOCK_DRAWS series of drawn blocks. samples: in order.

    A long series is drawn less often, and its draws are repeated.
    """
    count, length = samples.size, block_length(samples)
    random = np.random.default_rng(seed)
    times = min(BLOCK_DRAWS, max(LEAST_DRAWS, MOST_DRAWN // count))
    found = [figure(np.sort(samples[places(count, length, 1, random)[0]])) for _ in range(times)]
    return np.resize(np.asarray(found), BLOCK_DRAWS)


def object_draws(errors: Values, seed: int) -> Values:
    """(BLOCK_DRAWS, runs x objects) of errors (runs, objects): objects drawn in blocks, as those of one frame or of a video
    have much in common; the same for every run, and for the same seed."""
    count = errors.shape[1]
    drawn = places(count, math.ceil(float(count) ** (1 / 3)), BLOCK_DRAWS, np.random.default_rng(seed))
    found: Values = errors[:, drawn].transpose(1, 0, 2).reshape(BLOCK_DRAWS, -1)
    return found


def places(count: int, block: int, draws: int, random: np.random.Generator) -> NDArray[np.int64]:
    """(draws, count): blocks of consecutive places, the first following the last, so that all weigh alike."""
    starts = random.integers(count, size=(draws, math.ceil(count / block)))
    found: NDArray[np.int64] = (starts[:, :, None] + np.arange(block)).reshape(draws, -1)[:, :count] % count
    return found


def block_length(samples: Values) -> int:
    """The number of passes after which a pass tells nothing of the one before: twice the first lag whose autocorrelation
    is within noise (2 / sqrt(n)), at least n^(1/3) (Hall, Horowitz and Jing 1995), at most a quarter of all."""
    count = samples.size
    rest = samples - samples.mean()
    power = float(rest @ rest)
    lag = 1
    while power > 0 and lag < count // 8 and float(rest[lag:] @ rest[:-lag]) / power > 2 / math.sqrt(count):
        lag += 1
    wanted = max(math.ceil(float(count) ** (1 / 3)), 2 * lag if lag > 1 else 1)
    return int(max(1, min(wanted, count // 4)))
