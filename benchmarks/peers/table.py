"""Markdown from a result of `measure.py`: every figure comes out of the file, where posekit loses too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from posekit.benchmarks.markdown_table import markdown_table
from posekit.benchmarks.peers.result import ContestResult, Measured, PeersResult, Ratio, Row, ratio

ABSENT = "-"
Cells = Sequence[object]


def markdown(result: PeersResult) -> str:
    parts = (
        _heading(result),
        times(result.contests),
        "".join(f"- {sentence}\n" for measured in result.contests for sentence in _losses(measured)),
        markdown_table(("contest", "work of one run", "right answer missed by"), map(_work, result.contests)),
        markdown_table(("contender", "ran on"), _ran_on(result.contests)),
    )
    return "\n".join(part for part in parts if part)


def times(contests: Sequence[Measured]) -> str:
    """One row per contender; a ratio above 1 means that posekit is faster.

    posekit itself is there once or twice: as the others work, and in int8 or with a coarse search.
    """
    columns = ("contest", "contender", "ms per", "median", "over posekit", "over its int8 or coarse")
    return markdown_table(columns, (cells for measured in contests for cells in _rows(measured)))


def _rows(measured: Measured) -> Iterator[Cells]:
    result = measured.result
    name = f"{result.contest} (busy)" if measured.busy else result.contest
    exact, *other = result.ours
    for row in result.rows:
        plain = ABSENT if row == exact else _written(ratio(row, exact))
        fast = _written(ratio(row, other[0])) if other and not row.ours else ABSENT
        yield name, row.contender, result.unit, f"{row.median_ms:.3g}", plain, fast
    for contender in result.absent:
        yield name, contender, result.unit, *[ABSENT] * 3


def _losses(measured: Measured) -> Iterator[str]:
    """Who is faster than posekit, by how much, and what posekit does besides; then who did not take part, and why."""
    result = measured.result
    for ours in result.ours:
        faster = [(peer.contender, ratio(peer, ours)) for peer in result.peers if peer.median_ms < ours.median_ms]
        if faster:
            named = ", ".join(f"{name} takes {_written(found)} of its time" for name, found in faster)
            yield f"**{result.contest}**: {ours.contender} is not the fastest: {named}. It {result.besides}."
    for contender, reason in result.absent.items():
        yield f"**{result.contest}**: {contender} did not take part: {reason}."


def _written(found: Ratio) -> str:
    return f"{found.value:.2f} ({found.interval.low:.2f} to {found.interval.high:.2f})"


def _work(measured: Measured) -> Cells:
    return measured.result.contest, measured.result.work, "; ".join(map(_missed, measured.result.rows))


def _missed(row: Row) -> str:
    return f"{row.contender}: " + ", ".join(f"{name} {value:g}" for name, value in row.deviations.items())


def _ran_on(contests: Sequence[Measured]) -> list[Cells]:
    """Every contender once, with all that it ran on."""
    found: dict[str, dict[str, None]] = {}
    for measured in contests:
        for row in measured.result.rows:
            found.setdefault(row.contender, {})[row.ran_on] = None
    return [(name, "; ".join(ran_on)) for name, ran_on in found.items()]


def _heading(result: PeersResult) -> str:
    machine = result.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    runs = dict.fromkeys((row.run.date[:10], row.run.commit) for row in result.contests)
    busy = [_busy(row.result, row) for row in result.contests if row.busy]
    return (
        f"{machine.cpu}, {machine.cores} cores, {machine.memory_gb:g} GB, {', '.join(machine.flags)}"
        f"{f', governor {machine.governor}' if machine.governor else ''}; {machine.system}; {versions}; "
        f"{'; '.join(f'{date}, commit {commit}' for date, commit in runs)}. {result.threads} threads for everybody; medians "
        f"of {result.rounds} interleaved rounds in one process, ratios of medians with 95 % bootstrap intervals.\n"
        + (f"\n**Busy machine, do not quote: {'; '.join(busy)}.**\n" if busy else "")
    )


def _busy(result: ContestResult, measured: Measured) -> str:
    return f"{result.contest} begun at load {measured.run.load_before:g}, others took {result.others_cpu:.0%}"
