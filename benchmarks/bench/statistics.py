"""From raw nanoseconds to a Summary. Every sample counts: nothing is clipped, smoothed or left out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from posekit.benchmarks.bench.result import Interval, Summary
from posekit.runtime.errors import ClockError, InputError

NS_PER_MS = 1e6
P99_SAMPLES, P999_SAMPLES = 100, 1000  # fewer have no sample beyond the percentile
REPLICATES, SEED = 10_000, 0
CONFIDENCE = 0.95

Sorted = npt.NDArray[np.int64]


def summary_from(samples_ns: Sequence[int]) -> Summary:
    """Of one stage's durations, in any order. InputError for none, ClockError for one that ended before it began."""
    if not len(samples_ns):
        raise InputError("samples", got="none", expected="at least one", remedy="Measure a frame.")
    sorted_ns = np.sort(np.asarray(samples_ns, dtype=np.int64))
    if sorted_ns[0] < 0:
        raise ClockError(
            "sample",
            got=f"{sorted_ns[0]} ns",
            expected="0 ns or more",
            remedy="The clock went backwards: measure again.",
        )
    n, mean = len(sorted_ns), float(sorted_ns.mean())
    tail = n >= P99_SAMPLES
    return Summary(
        n=n,
        mean_ms=mean / NS_PER_MS,
        min_ms=float(sorted_ns[0]) / NS_PER_MS,
        p50_ms=percentile_ms(sorted_ns, 0.50),
        p90_ms=percentile_ms(sorted_ns, 0.90),
        p95_ms=percentile_ms(sorted_ns, 0.95),
        max_ms=float(sorted_ns[-1]) / NS_PER_MS,
        cov=cov(sorted_ns),
        p50_interval_ms=percentile_interval_ms(sorted_ns, 0.50),
        p95_interval_ms=percentile_interval_ms(sorted_ns, 0.95),
        p99_ms=percentile_ms(sorted_ns, 0.99) if tail else None,
        p99_interval_ms=percentile_interval_ms(sorted_ns, 0.99) if tail else None,
        p999_ms=percentile_ms(sorted_ns, 0.999) if n >= P999_SAMPLES else None,
    )


def nearest_rank(n: int, share: float) -> int:
    """1-based rank ceil(share n) of the sample that `share` of n samples do not exceed."""
    return max(1, math.ceil(share * n - 1e-9))  # 0.95 * 20 is a little more than 19 in floating point


def percentile_ms(sorted_ns: Sorted, share: float) -> float:
    """A sample, not a value between two."""
    return float(sorted_ns[nearest_rank(len(sorted_ns), share) - 1]) / NS_PER_MS


def percentile_interval_ms(sorted_ns: Sorted, share: float) -> Interval:
    """Of the percentile, by bootstrap: what it would have been in resamples of n out of these n, with replacement.

    The k-th of n resampled values is sample ceil(n U), where U, the k-th of n uniform numbers, is Beta(k, n + 1 - k)
    distributed (David & Nagaraja, Order Statistics, 2003, 2.1): so a replicate costs one random number instead of n.
    It takes samples as independent. Where a machine slows down and recovers they are not, and the interval is too narrow.
    """
    n = len(sorted_ns)
    k = nearest_rank(n, share)
    ranks = np.ceil(n * np.random.default_rng(SEED).beta(k, n + 1 - k, REPLICATES)).astype(np.int64)
    replicates = np.sort(sorted_ns[np.clip(ranks, 1, n) - 1])
    outside = (1 - CONFIDENCE) / 2
    return Interval(percentile_ms(replicates, outside), percentile_ms(replicates, 1 - outside))


def cov(samples_ns: Sequence[int] | Sorted) -> float:
    """Standard deviation over mean; 0 for samples that are all zero."""
    mean = float(np.mean(samples_ns))
    return float(np.std(samples_ns)) / mean if mean else 0.0
