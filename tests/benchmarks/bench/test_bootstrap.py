"""Draws have the right spread: t for few runs, blocks for passes that hang together, pairs for poses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t

from posekit.benchmarks.bench.bootstrap import (
    BLOCK_DRAWS,
    T,
    block_draws,
    block_length,
    interval,
    object_draws,
    places,
    run_draws,
    t_quantile,
)


@pytest.mark.parametrize("freedom", [*range(1, len(T) + 1), 31, 40, 100, 1000])
def test_t_is_students(freedom: int) -> None:
    assert t_quantile(freedom) == pytest.approx(float(t.ppf(0.975, freedom)), rel=1e-4)


@pytest.mark.parametrize(("old", "new"), [(2, 2), (3, 3), (5, 1), (8, 8)])
def test_intervals_of_runs_hold_the_truth_as_often_as_they_say(old: int, new: int) -> None:
    """95 % of them, however few the runs. 300 experiments: 3 standard deviations are 4 points."""
    random = np.random.default_rng(5)
    held = 0
    for _ in range(300):
        base, other = run_draws([random.normal(0, 1, old), random.normal(7, 1, new)])
        low, high = interval(other - base)
        held += low < 7 < high
    assert 0.91 <= held / 300 <= 0.995


def test_runs_without_spread_are_refused_or_certain() -> None:
    with pytest.raises(ValueError, match="no spread"):
        run_draws([np.array([1.0]), np.array([2.0])])
    for draws, middle in zip(run_draws([np.ones(3), np.full(2, 4.0)]), (1, 4), strict=True):
        assert (draws == middle).all()


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 99))
def test_blocks_are_consecutive_and_whole(count: int, block: int, seed: int) -> None:
    drawn = places(count, block, 3, np.random.default_rng(seed))
    assert drawn.shape == (3, count)
    assert drawn.min() >= 0
    assert drawn.max() < count
    steps = (np.diff(drawn, axis=1) - 1) % count == 0
    inside = np.arange(1, count) % block != 0
    assert steps[:, inside].all()


def test_passes_that_hang_together_are_drawn_in_longer_blocks_and_are_less_certain() -> None:
    random = np.random.default_rng(0)
    alone = random.normal(10, 1, 400)
    together = 10 + np.convolve(random.normal(size=429), np.ones(30) / 30**0.5, "valid")
    assert block_length(alone) == 8  # the cube root of 400, rounded up
    assert 20 <= block_length(together) <= 100
    widths = [np.ptp(interval(block_draws(x, lambda s: s.mean(-1), 1))) for x in (alone, together)]
    assert widths[1] > 2.5 * widths[0]


@given(st.integers(1, 30), st.floats(0.001, 1000))
def test_equal_passes_are_certain(count: int, value: float) -> None:
    samples = np.full(count, value)
    assert 1 <= block_length(samples) <= max(1, count // 4)
    draws = block_draws(samples, lambda s: s[..., -1], 0)
    assert draws.shape == (BLOCK_DRAWS,)
    assert (draws == value).all()


def test_a_long_series_has_as_many_draws_as_a_short_one() -> None:
    long, short = (np.random.default_rng(0).normal(10, 1, count) for count in (30_000, 50))
    draws = [block_draws(samples, lambda s: s[..., 0], 0) for samples in (long, short)]
    assert {d.shape for d in draws} == {(BLOCK_DRAWS,)}
    assert len(np.unique(draws[0])) > 1


def test_objects_are_drawn_alike_in_every_run() -> None:
    errors = np.arange(20.0)
    drawn = object_draws(np.stack([errors, errors + 100]), 3).reshape(BLOCK_DRAWS, 2, 20)
    assert (drawn[:, 1] - drawn[:, 0] == 100).all()
