"""The study of a planted slowdown: what quiet runs decide, what noisy ones never get wrong, a table that says what the file says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from posekit.benchmarks.bench.gate_text import gate_from
from posekit.benchmarks.studies.machine import RESULTS, this_machine
from posekit.benchmarks.studies.slowdown import others_cpu
from posekit.benchmarks.studies.slowdown_power import (
    COMPARISONS,
    GATES,
    FreshRun,
    Noise,
    Result,
    Row,
    Verdicts,
    lognormal_runs,
    markdown,
    needed,
    noise,
    simulated,
)
from posekit.runtime.records import plain_from, record_from

ROOT = Path(__file__).resolve().parents[2]
P50 = gate_from(GATES[0])
GOOD, BAD = Verdicts(0, COMPARISONS, 0), Verdicts(50, 0, 50)


def result(rows: tuple[Row, ...], noises: tuple[Noise, ...]) -> Result:
    runs = (FreshRun((10_000, 10_100), 0.02), FreshRun((10_000, 10_200), 0.4))
    return Result("a command", "2026-01-01", "abc", this_machine(), "2 runs", 7, noises, rows, runs)


def test_runs_that_differ_by_1_percent_decide_and_by_20_percent_are_never_wrong() -> None:
    quiet, loud = (simulated("", lognormal_runs(between, 40), P50, 8) for between in (0.01, 0.2))
    assert quiet.decisive
    assert quiet.never_wrong
    assert not loud.decisive
    assert loud.never_wrong
    assert loud.planted.undecided > 0.8 * COMPARISONS
    for verdicts in (quiet.planted, quiet.alike, loud.planted, loud.alike):
        assert verdicts.held + verdicts.missed + verdicts.undecided == COMPARISONS


@pytest.mark.parametrize("between", [0.005, 0.05])
def test_noise_is_what_runs_differ_by(between: float) -> None:
    assert noise("", lognormal_runs(between, 80), P50).between_runs == pytest.approx(between, rel=0.3)


def test_what_is_needed_is_the_fewest_runs_that_decide() -> None:
    held = Verdicts(COMPARISONS, 0, 0)
    sides = {1: (BAD, held), 2: (GOOD, BAD), 3: (GOOD, held), 5: (GOOD, held)}
    rows = tuple(Row("all", "g", count, *verdicts) for count, verdicts in sides.items())
    found = Noise("all", "g", 0.01)
    assert needed(result(rows, (found,)), found) == "3"
    assert needed(result(rows[:2], (found,)), found) == "more than 2"


def test_the_table_has_every_row_and_what_others_did() -> None:
    rows = (Row("1 valid", "g", 3, GOOD, BAD), Row("all 2", "g", 3, BAD, BAD))
    made = result(rows, (Noise("1 valid", "g", 0.012),))
    text = markdown(made)
    assert "| 1 valid | g | 3 | 200 | 0 | 0 | 50 | 50 | 0 | never wrong |" in text
    assert "| all 2 | g | 3 | 0 | 50 | 50 | 50 | 50 | 0 | **wrong too often** |" in text
    assert "others used 21% of the processors" in text
    assert "1 runs are valid" in text
    assert record_from(Result, json.loads(json.dumps(plain_from(made)))) == made


def test_others_are_not_this_process() -> None:
    given, share = others_cpu(lambda: float(np.sum(np.sqrt(np.arange(3_000_000)))))
    assert given > 0
    assert share >= 0


@pytest.mark.parametrize("file", sorted((ROOT / RESULTS).glob("slowdown-*.json")), ids=lambda file: file.name)
def test_a_committed_table_is_made_from_its_result(file: Path) -> None:
    kept = record_from(Result, json.loads(file.read_bytes()))
    assert file.with_suffix(".md").read_text() == markdown(kept)
    assert replace(kept, rows=()) != kept
