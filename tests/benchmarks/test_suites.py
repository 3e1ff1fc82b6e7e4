"""The suites of host code run, give right results at full size, and stay out of the default test run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SUITES = sorted(path.name for path in (ROOT / "benchmarks" / "suites").glob("test_*.py"))
LARGE = "642 or global"  # banks of tens and hundreds of megabytes


def run(*arguments: str) -> str:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("large", [pytest.param(True, marks=pytest.mark.slow), False], ids=["large", "usual"])
def test_every_benchmark_runs_once(large: bool) -> None:
    """--benchmark-disable: each function is called once and its result checked; nothing is timed."""
    chosen = LARGE if large else f"not ({LARGE})"
    out = run("benchmarks/suites", "--benchmark-disable", "-k", chosen)
    assert " passed" in out
    assert "skipped" not in out
    if not large:
        assert [name for name in SUITES if f"benchmarks/suites/{name} " not in out] == []


def test_each_kind_of_host_code_has_a_suite() -> None:
    kinds = ("bank", "bundle", "crop", "decode", "letterbox", "retrieval", "solvers")
    assert [f"test_{kind}.py" for kind in kinds] == SUITES


def test_the_default_run_leaves_them_out(pytestconfig: pytest.Config) -> None:
    assert pytestconfig.getini("testpaths") == ["tests"]
