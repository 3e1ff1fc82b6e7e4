"""The study of retrieval: both searches and the floor in one table, which is the file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from posekit.benchmarks.peers.retrieval import Size
from posekit.benchmarks.studies.precision_result import read
from posekit.benchmarks.studies.retrieval import Request, RetrievalResult, markdown, measure, requested
from posekit.runtime.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> RetrievalResult:
    out = tmp_path_factory.mktemp("study") / "retrieval.json"
    stages: list[tuple[str, int, int]] = []
    sizes = (Size("global", 1, 24, 600, 1), Size("local", 4, 8, 600, 1, 0.2))
    made = measure(Request(sizes, 2, out, "toy", pause_s=0.0), 1, lambda *stage: stages.append(stage))
    assert read(out, RetrievalResult) == made
    assert {name for name, done, total in stages if done == total} == {"global", "local"}
    return made


def test_both_searches_and_the_floor_are_timed(result: RetrievalResult) -> None:
    for row in result.reached:
        assert min(row.floor_ms, row.flat_ms, row.coarse_ms) > 0
        assert row.megabytes == pytest.approx(600 * (24 if row.bank == "global" else 32) * 4 / 1e6)
        assert row.equal_top1 == 1


def test_the_table_says_what_the_file_says(result: RetrievalResult) -> None:
    row = replace(result.reached[0], floor_ms=0.7, flat_ms=1.0, coarse_ms=0.25, equal_top1=0.996)
    run = replace(result.run, busy=False)
    table = markdown(replace(result, run=run, reached=(row,)))
    assert "| 0.70 | 1.00 | 70% | 0.25 | 4.0 x | 99.6% of 256 |" in table
    assert "Busy" not in table
    assert "Busy" in markdown(replace(result, run=replace(run, busy=True)))


def test_too_few_rounds_are_refused() -> None:
    with pytest.raises(InputError, match="--rounds: got 3"):
        requested(["--rounds", "3"])


@pytest.mark.parametrize("kept", sorted((ROOT / "benchmarks/results").glob("retrieval-*.json")), ids=lambda p: p.stem)
def test_committed_results_are_of_quiet_machines_and_shown(kept: Path) -> None:
    found = read(kept, RetrievalResult)
    assert not found.run.busy
    assert kept.with_suffix(".md").read_text() == markdown(found)
    assert f"(benchmarks/results/{kept.stem}.md)" in (ROOT / "README.md").read_text()
