"""Runs and comparisons as JUnit XML: what CI systems show as tests."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from xml.etree import ElementTree as Xml

from posekit.benchmarks.bench.compare import Comparison, Verdict
from posekit.benchmarks.bench.markdown import VERDICTS, gate_row
from posekit.benchmarks.bench.result import TOTAL
from posekit.benchmarks.bench.shown import Shown

Outcome = Literal["failure", "error"] | None
OUTCOMES: dict[Verdict, Outcome] = {"held": None, "missed": "failure", "undecided": "error"}
UNPRINTABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # not in XML 1.0


@dataclass(frozen=True)
class _Case:
    """seconds: that it took.  says: why it failed.  figures: printed with it, failed or not."""

    suite: str
    name: str
    seconds: float
    outcome: Outcome
    says: str
    figures: str


def junit_from_runs(runs: Sequence[Shown]) -> bytes:
    """A case per run and mode; those of an INVALID run are errors, with the reasons."""
    cases = []
    for run in runs:
        for mode in run.result.runs:
            total = next((stage.summary for stage in mode.stages if stage.name == TOTAL), None)
            times = f"p50 {total.p50_ms:.3f} ms, p95 {total.p95_ms:.3f} ms, n {total.n}; " if total else ""
            outcome: Outcome = None if run.result.valid else "error"
            says = "INVALID: " + "; ".join(run.result.reasons)
            cases.append(_Case(run.label, mode.mode, mode.seconds, outcome, says, f"{times}{run.machine}"))
    return _xml("posekit bench", cases)


def junit_from_comparison(found: Comparison) -> bytes:
    """A case per gate: missed is a failure, undecided an error."""
    cases = []
    for gate in found.gates:
        _, _, base, new, change, between = gate_row(gate)
        figures = f"BASE {base}, NEW {new}, change {change} ({between}); {found.machine}"
        says = figures if gate.verdict == "missed" else f"{VERDICTS['undecided']} {figures}"
        cases.append(_Case("posekit compare", gate.gate, 0.0, OUTCOMES[gate.verdict], says, figures))
    return _xml("posekit compare", cases)


def _xml(name: str, cases: Sequence[_Case]) -> bytes:
    def count(outcome: str) -> str:
        return str(sum(case.outcome == outcome for case in cases))

    totals = {"tests": str(len(cases)), "failures": count("failure"), "errors": count("error")}
    root = Xml.Element("testsuites", {"name": name, **totals})
    suite = Xml.SubElement(root, "testsuite", {"name": name, **totals})
    for case in cases:
        at = {"classname": _printable(case.suite), "name": _printable(case.name), "time": f"{case.seconds:.3f}"}
        element = Xml.SubElement(suite, "testcase", at)
        if case.outcome:
            Xml.SubElement(element, case.outcome, message=_printable(case.says))
        Xml.SubElement(element, "system-out").text = _printable(case.figures)
    return bytes(Xml.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def _printable(text: str) -> str:
    return UNPRINTABLE.sub("?", text)
