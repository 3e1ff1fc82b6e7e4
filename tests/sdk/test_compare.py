"""`posekit compare` and `posekit baseline`: exit codes for CI, reports, a JSON object, and sentences for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import pytest
from toy_evidence import evidence, latencies_ms, several, written
from typer.testing import CliRunner

from posekit.benchmarks.bench.alike import ALLOWED
from posekit.cli import Difference, app


def posekit(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return side(tmp_path / "base", several(5))


def side(folder: Path, runs: Any) -> Path:
    for run in runs:
        written(folder, run)
    return folder


def new(tmp_path: Path, slower: float, between: float = 0.01) -> Path:
    return side(tmp_path / "new", several(5, slower, seed=40, between=between, name="new"))


@pytest.mark.parametrize(
    ("slower", "between", "code", "says"),
    [
        (1.0, 0.01, 0, "Every gate is held"),
        (1.2, 0.01, 1, "A gate is missed"),
        (1.0, 0.5, 2, "too large to decide"),
    ],
)
def test_exit_codes(base: Path, tmp_path: Path, slower: float, between: float, code: int, says: str) -> None:
    done = posekit("compare", base, new(tmp_path, slower, between), "--gate", "total.p95<+5%")
    assert done.exit_code == code
    assert says in done.output
    assert "Toy CPU, 4 processors" in done.output
    assert "bootstrap over runs" in done.output


def test_without_gates_changes_are_shown_and_nothing_is_judged(base: Path, tmp_path: Path) -> None:
    done = posekit("compare", base, new(tmp_path, 1.2))
    assert done.exit_code == 0
    assert "--gate" in done.output
    assert "network.p95" in done.output


def test_json_markdown_and_junit_say_the_same(base: Path, tmp_path: Path) -> None:
    markdown, junit = tmp_path / "c.md", tmp_path / "c.xml"
    gates = ("--gate", "total.p95<+5%", "--gate", "total.p50<90ms")
    done = posekit("compare", base, new(tmp_path, 1.2), *gates, "--markdown", markdown, "--junit", junit, "--json")
    assert done.exit_code == 1
    plain = json.loads(done.output)
    assert (plain["verdict"], [gate["verdict"] for gate in plain["gates"]]) == ("missed", ["missed", "held"])
    assert plain["gates"][0]["measured"]["change"] == pytest.approx(0.2, abs=0.05)
    text = markdown.read_text()
    assert text.startswith("# posekit compare: missed")
    assert "| total.p95&lt;+5% | ❌ missed |" in text
    cases = {case.get("name"): case for case in Xml.fromstring(junit.read_bytes()).iter("testcase")}
    assert cases["total.p95<+5%"].find("failure") is not None
    assert cases["total.p50<90ms"].find("failure") is None


def test_an_undecided_gate_is_an_error_in_junit(base: Path, tmp_path: Path) -> None:
    junit = tmp_path / "c.xml"
    posekit("compare", base, new(tmp_path, 1.0, 0.5), "--gate", "total.p95<+5%", "--junit", junit)
    [case] = Xml.fromstring(junit.read_bytes()).iter("testcase")
    assert case.find("error") is not None


def test_a_baseline_is_kept_and_judged_against(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "baseline.json"
    kept = posekit("baseline", base, "-o", file)
    assert kept.exit_code == 0
    assert "5 runs" in kept.output
    single = written(tmp_path, evidence(latencies_ms(77) * 1.3, "single"))
    assert posekit("compare", file, single, "--gate", "total.p95<+5%").exit_code == 1
    summary = json.loads(posekit("baseline", base, "-o", file, "--json").output)
    assert summary["size_bytes"] == file.stat().st_size


def test_a_baseline_of_runs_that_differ_is_refused(tmp_path: Path) -> None:
    runs = [evidence(name="a"), evidence(name="b", bundle_sha256="cd" * 32)]
    done = posekit("baseline", side(tmp_path / "mixed", runs), "-o", tmp_path / "b.json")
    assert done.exit_code == 2
    assert "another bundle" in done.output
    assert not (tmp_path / "b.json").exists()


def test_an_invalid_run_is_in_no_baseline_and_only_compare_offers_a_way_round(base: Path, tmp_path: Path) -> None:
    runs = [evidence(name="a"), evidence(name="b", valid=False, reasons=("throttled",))]
    bad = side(tmp_path / "bad", runs)
    kept = posekit("baseline", bad, "-o", tmp_path / "b.json")
    assert kept.exit_code == 2
    assert "b is INVALID: throttled" in kept.output
    assert "--allow" not in kept.output
    assert "--allow invalid" in posekit("compare", base, bad).output


def test_another_bundle_is_refused_unless_asked(base: Path, tmp_path: Path) -> None:
    other = side(tmp_path / "other", [evidence(latencies_ms(k), f"run-{k}", bundle_sha256="cd" * 32) for k in range(5)])
    refused = posekit("compare", base, other, "--gate", "total.p95<+50%")
    assert refused.exit_code == 2
    assert "ab" * 32 in refused.output
    assert "cd" * 32 in refused.output
    asked = posekit("compare", base, other, "--gate", "total.p95<+50%", "--allow", "bundle")
    assert asked.exit_code == 0
    assert "cd" * 32 in asked.output


@pytest.mark.parametrize("gate", ["total.p95", "total.p95<5%", "wobble<1", "soak:total.p95<+5%"])
def test_what_is_no_gate_is_an_error(base: Path, gate: str) -> None:
    done = posekit("compare", base, base, "--gate", gate)
    assert done.exit_code == 2
    assert "expected" in done.output


def test_every_difference_can_be_allowed_by_name() -> None:
    assert tuple(kind.value for kind in Difference) == ALLOWED
