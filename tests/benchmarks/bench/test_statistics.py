"""Laws of a summary: what is in it was measured, and nothing that was measured is left out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posekit.benchmarks.bench.statistics import NS_PER_MS, nearest_rank, percentile_interval_ms, summary_from
from posekit.runtime.errors import ClockError, InputError

SAMPLES = st.lists(st.integers(0, 10**12), min_size=1, max_size=150)


@given(SAMPLES)
def test_figures_are_samples_in_order(samples_ns: list[int]) -> None:
    found = summary_from(samples_ns)
    figures = [found.min_ms, found.p50_ms, found.p90_ms, found.p95_ms, found.max_ms]
    assert found.n == len(samples_ns)
    assert figures == sorted(figures)
    assert {round(figure * NS_PER_MS) for figure in figures} <= set(samples_ns)
    assert (round(found.min_ms * NS_PER_MS), round(found.max_ms * NS_PER_MS)) == (min(samples_ns), max(samples_ns))
    assert found.min_ms <= found.p50_interval_ms.low <= found.p50_ms <= found.p50_interval_ms.high <= found.max_ms
    assert found.p95_interval_ms.low <= found.p95_ms <= found.p95_interval_ms.high


@settings(max_examples=25)
@given(SAMPLES, st.randoms(use_true_random=False))
def test_order_does_not_matter(samples_ns: list[int], random: object) -> None:
    shuffled = samples_ns[:]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert summary_from(shuffled) == summary_from(samples_ns)


@given(SAMPLES, st.sampled_from([0.5, 0.9, 0.95, 0.99, 0.999]))
def test_a_percentile_is_the_least_sample_that_so_many_do_not_exceed(samples_ns: list[int], share: float) -> None:
    value = sorted(samples_ns)[nearest_rank(len(samples_ns), share) - 1]
    n = len(samples_ns)
    assert sum(s <= value for s in samples_ns) >= share * n - 1e-6
    assert sum(s < value for s in samples_ns) < share * n


@pytest.mark.parametrize(
    ("n", "share", "rank"), [(20, 0.95, 19), (200, 0.95, 190), (10, 0.9, 9), (100, 0.99, 99), (1, 0.5, 1)]
)
def test_ranks_that_floating_point_would_round_up(n: int, share: float, rank: int) -> None:
    assert nearest_rank(n, share) == rank


@pytest.mark.parametrize(("n", "has_p99", "has_p999"), [(99, False, False), (100, True, False), (1000, True, True)])
def test_a_tail_is_told_only_from_enough_samples(n: int, has_p99: bool, has_p999: bool) -> None:
    found = summary_from(range(n))
    assert (found.p99_ms is not None, found.p99_interval_ms is not None) == (has_p99, has_p99)
    assert (found.p999_ms is not None) == has_p999


def test_one_slow_frame_is_in_the_maximum_and_in_the_spread() -> None:
    quick, slow = summary_from([1000] * 500), summary_from([1000] * 499 + [1_000_000])
    assert (quick.cov, quick.max_ms) == (0.0, 0.001)
    assert slow.max_ms == 1.0
    assert slow.cov > 1
    assert slow.p99_ms == 0.001


def test_the_interval_is_that_of_plain_resampling() -> None:
    """Against ten thousand resamples of all values: within a rank or two of each other."""
    rng = np.random.default_rng(1)
    samples = np.sort((rng.lognormal(0, 0.3, 200) * NS_PER_MS).astype(np.int64))
    for share in (0.5, 0.95):
        found = percentile_interval_ms(samples, share)
        resampled = np.sort(rng.choice(samples, (10_000, 200)), axis=1)[:, nearest_rank(200, share) - 1]
        for end, plain in ((found.low, np.quantile(resampled, 0.025)), (found.high, np.quantile(resampled, 0.975))):
            assert (
                abs(int(np.searchsorted(samples, round(end * NS_PER_MS))) - int(np.searchsorted(samples, plain))) <= 2
            )


def test_the_interval_covers_the_median_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(300):
        interval = percentile_interval_ms(np.sort(rng.exponential(1e6, 100).astype(np.int64)), 0.5)
        hits += interval.low <= np.log(2) <= interval.high
    assert 0.90 <= hits / 300 <= 0.99


def test_nothing_and_time_that_ran_backwards_are_refused() -> None:
    with pytest.raises(InputError, match="none"):
        summary_from([])
    with pytest.raises(ClockError, match="-5 ns"):
        summary_from([3, -5, 4])
