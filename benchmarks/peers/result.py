"""What the comparison with peers found, as records; read and written by `precision_result.read` and `write`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from posekit.benchmarks.bench.result import Interval
from posekit.benchmarks.studies.machine import Machine
from posekit.benchmarks.studies.precision_result import BUSY_SHARE, Run

RESAMPLES, SEED = 2000, 0


@dataclass(frozen=True)
class Row:
    """One contender. deviations: of its answer from the right one.   samples_ms: per unit, in the order of the rounds."""

    contender: str
    ours: bool
    ran_on: str
    deviations: dict[str, float]
    median_ms: float
    min_ms: float
    samples_ms: tuple[float, ...]


@dataclass(frozen=True)
class ContestResult:
    """As posekit.benchmarks.peers.contest.Contest. others_cpu: share of the processors that others took meanwhile."""

    contest: str
    work: str
    units: int
    unit: str
    rows: tuple[Row, ...]
    absent: dict[str, str]
    besides: str
    others_cpu: float

    @property
    def ours(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.ours)

    @property
    def peers(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if not row.ours)


@dataclass(frozen=True)
class Measured:
    """run: when, with which code and command, and what the machine did beside it."""

    run: Run
    result: ContestResult

    @property
    def busy(self) -> bool:
        return self.run.busy or self.result.others_cpu > BUSY_SHARE


@dataclass(frozen=True)
class PeersResult:
    """threads: given to every contender."""

    machine: Machine
    threads: int
    rounds: int
    contests: tuple[Measured, ...] = ()


@dataclass(frozen=True)
class Ratio:
    """How many times posekit's time a peer takes, by medians. interval: 95 %, by bootstrap over the rounds."""

    value: float
    interval: Interval


def ratio(peer: Row, ours: Row) -> Ratio:
    """Rounds are drawn whole: in each of them both ran side by side."""
    a, b = np.asarray(peer.samples_ms), np.asarray(ours.samples_ms)
    drawn = np.random.default_rng(SEED).integers(len(a), size=(RESAMPLES, len(a)))
    low, high = np.percentile(np.median(a[drawn], axis=1) / np.median(b[drawn], axis=1), (2.5, 97.5))
    return Ratio(peer.median_ms / ours.median_ms, Interval(float(low), float(high)))
