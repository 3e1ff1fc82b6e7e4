"""BASE against NEW: every change with its interval, and gates that are held, missed, or cannot be decided.

A gate is held when NEW is shown to be within the limit: the whole 95 % interval is. So a change as large as the limit
does not pass (1 time in 40 by chance), however noisy the machine is. A limit of change is missed when it is not held and
NEW is shown to be worse than BASE at all; noise alone does that 1 time in 40 too. A limit of NEW's own figure is missed
when the whole interval is beyond it. In between the runs are too few for their noise, and that is what is answered:
neither a pass nor a regression.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from posekit.benchmarks.bench.alike import Allowed, checked_alike
from posekit.benchmarks.bench.baseline import Evidence
from posekit.benchmarks.bench.change import Change, change_of
from posekit.benchmarks.bench.figures import stage_figure
from posekit.benchmarks.bench.gate_text import Gate
from posekit.benchmarks.bench.machine_line import machine_line

Verdict = Literal["held", "missed", "undecided"]
SHOWN = ("p50", "p95")  # of every stage, in the table of changes


@dataclass(frozen=True)
class GateResult:
    """limit: as in `Gate`, of the same kind as what was measured."""

    gate: str
    limit: float
    verdict: Verdict
    measured: Change


@dataclass(frozen=True)
class Comparison:
    """base, new: names of the runs.  machine: one line, NEW's.  changes: p50 and p95 of every stage that all runs have.

    notes: what differs between the sides, sentences.
    """

    base: tuple[str, ...]
    new: tuple[str, ...]
    machine: str
    gates: tuple[GateResult, ...]
    changes: tuple[Change, ...]
    notes: tuple[str, ...]

    @property
    def verdict(self) -> Verdict:
        """The worst of all gates; held where there are none."""
        verdicts = {gate.verdict for gate in self.gates}
        return next((verdict for verdict in _WORST_FIRST if verdict in verdicts), "held")


_WORST_FIRST: tuple[Verdict, ...] = ("missed", "undecided")


def compare(
    base: Sequence[Evidence], new: Sequence[Evidence], gates: Sequence[Gate], allow: Sequence[Allowed] = ()
) -> Comparison:
    """Judge every gate. Raises InputError for sides that may not be compared, and for a figure that was not measured."""
    notes = (*checked_alike(base, new, allow), *_found_notes(base[0], new[0]))
    first = new[0].result.runs[0].mode
    results = (judged(gate, change_of(gate.figure, gate.mode or first, gate.kind, base, new)) for gate in gates)
    changes = (
        change_of(stage_figure(stage, of), mode, "ratio", base, new)
        for mode, stage in _stages_of_all([*base, *new])
        for of in SHOWN
    )
    return Comparison(
        tuple(run.name for run in base),
        tuple(run.name for run in new),
        machine_line(new[0].result.machine),
        tuple(results),
        tuple(changes),
        notes,
    )


def judged(gate: Gate, change: Change) -> GateResult:
    """Held, missed or undecided, as at the head of this file. A change between two single values decides nothing."""
    if change.method == "none" and gate.kind != "value":
        return GateResult(gate.text, gate.limit, "undecided", change)
    worse = -1 if gate.figure.more_is_better else 1
    low, high = sorted((worse * change.low, worse * change.high))
    limit = worse * gate.limit
    harm = limit if gate.kind == "value" else min(limit, 0.0)  # a limit below none asks for an improvement
    verdict: Verdict = "held" if high <= limit else "missed" if low > harm else "undecided"
    return GateResult(gate.text, gate.limit, verdict, change)


def _stages_of_all(runs: Sequence[Evidence]) -> list[tuple[str, str]]:
    """(mode, stage) that every run has, and that takes time in all of them."""
    each = [
        {(run.mode, stage.name): None for run in e.result.runs for stage in run.stages if stage.summary.min_ms > 0}
        for e in runs
    ]
    return [key for key in each[0] if all(key in other for other in each)]


def _found_notes(base: Evidence, new: Evidence) -> list[str]:
    """Errors are of poses that were found: who finds fewer may look better."""
    found = [e.result.accuracy and e.result.accuracy.total for e in (base, new)]
    if found[0] and found[1] and found[0].n_matched != found[1].n_matched:
        texts = [f"{total.n_matched} of {total.n_true}" for total in found if total]
        return [f"poses found: {texts[0]} in BASE, {texts[1]} in NEW; errors are of those that both found"]
    return []
