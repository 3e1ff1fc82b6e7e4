"""Latency of several contenders in one process, turn by turn, so that whatever else the machine does hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

WARM_UPS = 5
# Thread pools keep their threads spinning for some time after a run; nobody's turn begins before that is over.
PAUSE_S = 0.1
Advance = Callable[[int, int], None]


def interleaved(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int,
    advance: Advance = lambda done, total: None,
    pause_s: float = PAUSE_S,
) -> dict[str, tuple[float, ...]]:
    """Name -> milliseconds of wall clock, one per round.

    A turn is a pause, a run that counts nothing (it brings weights back into the caches, as a model that runs alone has
    them) and the run that is timed. Each round begins with another contender, so that nobody always follows the same.
    """
    for run in contenders.values():
        for _ in range(WARM_UPS):
            run()
    names = list(contenders)
    samples_ms: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            time.sleep(pause_s)
            contenders[name]()
            begin_ns = time.perf_counter_ns()
            contenders[name]()
            samples_ms[name].append((time.perf_counter_ns() - begin_ns) / 1e6)
        advance(turn + 1, rounds)
    return {name: tuple(values) for name, values in samples_ms.items()}
