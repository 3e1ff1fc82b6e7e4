"""One piece of work and those who do it: held against the right answer first, then timed side by side, turn by turn."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from posekit.benchmarks.peers.result import ContestResult, Row
from posekit.benchmarks.studies.machine import busy_cpu_s
from posekit.benchmarks.studies.round_robin import PAUSE_S, Advance, interleaved
from posekit.runtime.errors import PosekitError

A = TypeVar("A")


class UnequalWorkError(PosekitError):
    """Contenders give different answers: the ratio of their times would say nothing."""


@dataclass(frozen=True, eq=False)
class Contender(Generic[A]):
    """run: the whole work once; its answer.  ran_on: library, version, what matters of its options.

    limits: how far its figures may be from the right answer; by default the contest's.   ours: posekit.
    """

    name: str
    run: Callable[[], A]
    ran_on: str
    limits: Mapping[str, float] | None = None
    ours: bool = False


@dataclass(frozen=True, eq=False)
class Contest(Generic[A]):
    """units: how many of `unit` (frame, query, object) one run does.   expected: the right answer.

    deviations: right answer, answer -> figures, 0 where they agree.   limits: of those figures.
    besides: what posekit does here that the others do not, in words.   absent: contender -> why it does not take part.
    """

    name: str
    work: str
    units: int
    unit: str
    expected: A
    deviations: Callable[[A, A], dict[str, float]]
    limits: Mapping[str, float]
    contenders: tuple[Contender[A], ...]
    besides: str
    absent: Mapping[str, str] = field(default_factory=dict)


def held(
    contest: Contest[Any], rounds: int, advance: Advance = lambda done, total: None, pause_s: float = PAUSE_S
) -> ContestResult:
    """Check every contender's answer, then time them. UnequalWorkError before anything is timed."""
    deviations = {contender.name: _checked(contest, contender) for contender in contest.contenders}
    wall_s, all_s, own_s = time.perf_counter(), busy_cpu_s(), time.process_time()
    samples_ms = interleaved({c.name: c.run for c in contest.contenders}, rounds, advance, pause_s)
    others_s = busy_cpu_s() - all_s - (time.process_time() - own_s)
    whole_s = (time.perf_counter() - wall_s) * (os.cpu_count() or 1)
    rows = (
        _row(contender, samples_ms[contender.name], contest.units, deviations[contender.name])
        for contender in contest.contenders
    )
    others_cpu = round(max(others_s, 0.0) / whole_s, 3)
    return ContestResult(
        contest.name,
        contest.work,
        contest.units,
        contest.unit,
        tuple(rows),
        dict(contest.absent),
        contest.besides,
        others_cpu,
    )


def _checked(contest: Contest[A], contender: Contender[A]) -> dict[str, float]:
    found = contest.deviations(contest.expected, contender.run())
    limits = contest.limits if contender.limits is None else contender.limits
    for name, limit in limits.items():
        if not found[name] <= limit:  # NaN is beyond every limit
            raise UnequalWorkError(
                f"{contest.name}: {contender.name}, {name}",
                got=f"{found[name]:.4g}",
                expected=f"at most {limit:g} from the right answer",
                remedy="Give all contenders the same work before their times are compared.",
            )
    return found


def _row(contender: Contender[Any], samples_ms: tuple[float, ...], units: int, deviations: Mapping[str, float]) -> Row:
    per_unit = tuple(round(sample / units, 5) for sample in samples_ms)
    return Row(
        contender.name,
        contender.ours,
        contender.ran_on,
        {name: float(f"{value:.3g}") for name, value in deviations.items()},
        statistics.median(per_unit),
        min(per_unit),
        per_unit,
    )
