"""`posekit report`: the files that are asked for, what it says, and what it refuses; a bundle's precision on the page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toy_bundles import write_toy_bundle
from toy_evidence import evidence, latencies_ms, written
from toy_figures import pose_figures
from typer.testing import CliRunner

from posekit.calibration.fitness import Fitness
from posekit.cli import app
from posekit.export.pack import pack_bundle
from posekit.export.precision.int8 import Int8Report
from posekit.export.precision.judge import Measured
from posekit.export.precision.search import Candidate, Search
from posekit.export.precision.variants import GraphVariants
from posekit.export.verify.figures import Spread
from posekit.export.verify.gates import GateResult, Outcome
from posekit.report import PRECISION_REPORT, precision_points
from posekit.runtime.bundle import Bundle
from posekit.runtime.errors import BundleError
from posekit.runtime.records import plain_from


def posekit(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


def measured(degrees: float, latency_ms: float, passed: bool = True) -> Measured:
    spread = Spread(degrees / 2, degrees)
    figures = pose_figures(rotation_deg=spread, translation_mm=spread, outputs={"R": spread})
    verdict: Outcome = "held" if passed else "missed"
    gates = (GateResult("rotation_p95_deg", verdict, degrees, 2.0, 0.1, degrees / 2, 40, 40, "settled poses"),)
    return Measured("openvino", figures, gates, latency_ms, 1_000_000)


def variants() -> GraphVariants:
    tried = (Candidate((), measured(3.0, 1.0, passed=False)), Candidate(("a",), measured(1.0, 1.5)))
    search = Search((), tried, tried[1])
    int8 = Int8Report(
        "a recording", Fitness(40, 40, 0, 0, 0, "ab"), {}, 2, search, ("b/Conv",), True, "1 of 2 blocks in INT8"
    )
    return GraphVariants("pose", "regressor", {"fp32 openvino": measured(0.0, 3.0)}, int8=int8)


def bundle_with(reports: Mapping[str, bytes], path: Path) -> Path:
    """A bundle with these reports in it."""
    plain = write_toy_bundle(path.with_name("plain.posekit"))
    with Bundle(plain) as opened:
        members = {name: bytes(opened.read(name)) for name in opened.manifest.files}
        pack_bundle(path, replace(opened.manifest, files={}), {**members, **reports})
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    where = tmp_path / "runs"
    written(where, evidence(latencies_ms(1), "base"))
    written(where, evidence(latencies_ms(2), "new", valid=False, reasons=("the clock moved",)))
    return where


def test_every_file_that_is_asked_for_is_written(folder: Path, tmp_path: Path) -> None:
    page, markdown, junit = (tmp_path / name for name in ("p.html", "p.md", "p.xml"))
    done = posekit(folder, "-o", page, "--markdown", markdown, "--junit", junit)
    assert done.exit_code == 0
    assert all(text in done.output for text in ("base: Toy CPU", "new (INVALID)", "the clock moved", str(page)))
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert markdown.read_text().startswith("# posekit bench")
    assert junit.read_text().startswith("<?xml")


def test_json_is_one_object(folder: Path, tmp_path: Path) -> None:
    done = posekit(folder / "base", folder / "new", "-o", tmp_path / "p.html", "--json")
    plain = json.loads(done.output)
    assert [(run["label"], run["valid"]) for run in plain["runs"]] == [("base", True), ("new", False)]
    assert plain["written"] == [str(tmp_path / "p.html")]


def test_precision_points_are_the_bundles(folder: Path, tmp_path: Path) -> None:
    report = json.dumps(plain_from([variants()])).encode()
    bundle = bundle_with({PRECISION_REPORT: report}, tmp_path / "x.posekit")
    points = {p.variant: p for p in precision_points(bundle)}
    assert set(points) == {"fp32 openvino", "int8 2/2 openvino", "int8 1/2 openvino"}
    assert [(p.chosen, p.passed, p.cost, p.latency_ms) for p in points.values()] == [
        (True, True, 0.0, 3.0),
        (False, False, 3.0, 1.0),
        (True, True, 1.0, 1.5),
    ]
    page = tmp_path / "p.html"
    assert posekit(folder, "-o", page, "--bundle", bundle).exit_code == 0
    assert "int8 1/2 openvino" in page.read_text()
    assert "x.posekit" in page.read_text()


@pytest.mark.parametrize("content", [None, b"", b"{}", b"[{}]", b"[" * 5000])
def test_a_bundle_without_its_precision_report_is_said(content: bytes | None, folder: Path, tmp_path: Path) -> None:
    reports = {} if content is None else {PRECISION_REPORT: content}
    bundle = bundle_with(reports, tmp_path / "x.posekit")
    with pytest.raises(BundleError):
        precision_points(bundle)
    done = posekit(folder, "-o", tmp_path / "p.html", "--bundle", bundle)
    assert done.exit_code == 2
    assert not (tmp_path / "p.html").exists()


def test_a_folder_without_evidence_is_an_error_and_writes_nothing(tmp_path: Path) -> None:
    done = posekit(tmp_path, "-o", tmp_path / "p.html")
    assert done.exit_code == 2
    assert "posekit bench" in done.output
    assert not list(tmp_path.iterdir())
