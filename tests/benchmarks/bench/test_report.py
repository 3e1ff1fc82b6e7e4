"""The report: every figure as in result.json, charts that show something, nothing from anywhere else, in a real browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from toy_evidence import MODE, evidence, latencies_ms, written

from posekit.benchmarks.bench.junit import junit_from_runs
from posekit.benchmarks.bench.markdown import markdown_from_runs
from posekit.benchmarks.bench.page import page
from posekit.benchmarks.bench.page_parts import number
from posekit.benchmarks.bench.report import ReportFiles, write_report
from posekit.benchmarks.bench.shown import ParetoPoint, Shown, shown_from
from posekit.benchmarks.bench.svg import Scale, thinned
from posekit.runtime.errors import InputError, OutputError

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
browser = pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium")
TIMEOUT_S = 60
REASON = "The governor changed from <performance> to powersave & back."
WIDTH_PX, HEIGHT_PX = 1280, 3000
POINTS = [
    ParetoPoint("pose", "fp32", 2.0, 0.0, "rotation, degrees", 4_000_000, True, True, True),
    ParetoPoint("pose", "int8", 1.0, 3.0, "rotation, degrees", 1_000_000, False, False, True),
]
Runs = tuple[Shown, ...]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of a paced bench; the second is INVALID and slower."""
    where = tmp_path_factory.mktemp("evidence")
    rotation = np.random.default_rng(0).gamma(2, 1, 50).tolist()
    written(where, evidence(latencies_ms(1), "base", rotation, paced=True))
    slow = latencies_ms(2) * 1.2
    written(where, evidence(slow, "new", rotation, paced=True, valid=False, reasons=(REASON,)))
    return where


@pytest.fixture(scope="module")
def runs(folder: Path) -> Runs:
    return shown_from([folder])


class Figures(HTMLParser):
    """(run, key, exact, shown) of every table figure, and all text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.found: list[tuple[int, str, str, str]] = []
        self.words: list[str] = []
        self._open: dict[str, str | None] | None = None
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open = dict(attrs) if tag == "td" and any(name == "data-key" for name, _ in attrs) else None

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self._open:
            at = self._open
            self.found.append((int(at["data-run"] or 0), str(at["data-key"]), str(at["data-value"]), data))
            self._open = None


def value_at(plain: Any, key: str) -> Any:
    for part in key.split("."):
        plain = plain[int(part)] if isinstance(plain, list) else plain[part]
    return plain


def check_figures(source: str, folder: Path) -> None:
    """Every figure of the tables is in its run's result.json, and every latency of that file is in a table."""
    results = [json.loads((folder / name / "result.json").read_text()) for name in ("base", "new")]
    found = Figures(source).found
    for run, key, exact, shown in found:
        value = value_at(results[run], key)
        assert float(exact) == value
        assert shown == number(value)
    keys = {(run, key) for run, key, _, _ in found}
    for run, result in enumerate(results):
        for i, mode in enumerate(result["runs"]):
            for j, stage in enumerate(mode["stages"]):
                wanted = {"n", "cov"} | {f for f in stage["summary"] if f.endswith("_ms") and "interval" not in f}
                assert {(run, f"runs.{i}.stages.{j}.summary.{field}") for field in wanted} <= keys


def test_every_figure_is_the_one_in_its_result(runs: Runs, folder: Path) -> None:
    check_figures(page(runs), folder)


def test_the_page_is_alone(runs: Runs) -> None:
    source = page(runs, POINTS, "from a bundle")
    assert not re.search(r"<script|<link|<iframe|<img|src=|href=|@import|url\(|javascript:", source, re.IGNORECASE)
    assert "http" not in source.replace("http-equiv", "")
    assert "default-src 'none'" in source


def test_an_invalid_run_is_marked_with_its_reason_wherever_it_is_named(runs: Runs) -> None:
    source = page(runs)
    assert html.escape(REASON) in source
    assert REASON not in source
    names = re.findall(r"<b>new</b>(.{0,40})", source)
    assert len(names) > 5
    assert all("INVALID" in rest for rest in names)
    assert "new (INVALID)" in source
    assert not re.search(r"<b>base</b> <strong", source)


def test_every_figure_and_table_has_its_machine(runs: Runs) -> None:
    source = page(runs)
    captions = re.findall(r"<figcaption>.*?</figcaption>", source)
    assert len(captions) >= 10
    assert all("Toy CPU" in caption for caption in captions)
    assert all("Toy CPU" in table for table in re.findall(r"<table>.*?</table>", source))


def test_equal_evidence_gives_equal_pages(folder: Path) -> None:
    assert page(shown_from([folder])) == page(shown_from([folder / "base", folder / "new"]))


def test_a_name_cannot_become_html(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>|`x`"
    written(tmp_path, evidence(name="run", bundle=hostile, command=hostile, notes=(hostile,)))
    runs = shown_from([tmp_path / "run"])
    assert "<script" not in page(runs)
    assert "<script" not in re.sub("`[^`]*`", "", markdown_from_runs(runs))  # code is shown as it is
    Xml.fromstring(junit_from_runs(runs))


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    folders = [written(tmp_path / side, evidence(name="run")) for side in ("left", "right")]
    assert [run.label for run in shown_from(folders)] == ["left/run", "right/run"]


def test_a_mode_without_passes_and_a_run_without_anything_is_a_page(tmp_path: Path) -> None:
    """A stopped bench keeps what it has."""
    bare = evidence(runs=(), cold_start=None, watched=(), valid=False, reasons=("stopped",))
    written(tmp_path, bare)
    source = page(shown_from([tmp_path]))
    assert "stopped" in source
    assert "<svg" not in source


@pytest.mark.parametrize("values", [np.full(120, 5.0), np.array([4.0]), np.geomspace(1, 5000, 300)])
def test_any_samples_can_be_drawn(values: Any, tmp_path: Path) -> None:
    written(tmp_path, evidence(values, paced=True))
    source = page(shown_from([tmp_path]))
    assert "nan" not in source.lower().replace("nanosecond", "")
    assert source.count("<svg") >= 6


# Markdown, JUnit, files


def test_markdown_says_the_figures_the_machine_and_what_is_invalid(runs: Runs) -> None:
    text = markdown_from_runs(runs)
    assert text.count("Toy CPU, 4 processors") == 2
    assert "**INVALID**: The governor" in text
    for run in runs:
        for mode in run.result.runs:
            [total] = [stage.summary for stage in mode.stages if stage.name == "total"]
            assert f"| {mode.mode} | {mode.frames} | {total.p50_ms:.2f} | {total.p95_ms:.2f} |" in text


def test_junit_has_a_case_per_mode_and_errors_for_invalid_runs(runs: Runs) -> None:
    root = Xml.fromstring(junit_from_runs(runs))
    cases = {(case.get("classname"), case.get("name")): case for case in root.iter("testcase")}
    assert set(cases) == {(run, mode) for run in ("base", "new") for mode in (MODE, "paced")}
    assert all((case.find("error") is not None) == (run == "new") for (run, _), case in cases.items())
    assert (root.get("tests"), root.get("errors"), root.get("failures")) == ("4", "2", "0")
    errors = [case.find("error") for case in cases.values()]
    assert all(REASON in str(error.get("message")) for error in errors if error is not None)


def test_a_report_that_cannot_be_written_leaves_what_was_there(runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "page.html").mkdir()
    with pytest.raises(OutputError):
        write_report(ReportFiles(tmp_path / "page.html"), runs)
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_a_folder_without_evidence_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(InputError, match="posekit bench"):
        shown_from([folder, tmp_path])
    (folder / "base" / "watch.json").rename(tmp_path / "watch.json")
    try:
        with pytest.raises(InputError, match="watch"):
            shown_from([folder])
    finally:
        (tmp_path / "watch.json").rename(folder / "base" / "watch.json")


# Scales


@given(st.floats(0.001, 1e5), st.floats(1.001, 1e4), st.booleans())
def test_ticks_are_round_few_and_inside(low: float, factor: float, log: bool) -> None:
    scale = Scale(low, low * factor, 0, 100, log)
    ticks = scale.ticks()
    assert 1 <= len(ticks) <= 20
    assert all(low - 1e-6 * low <= t <= low * factor * (1 + 1e-6) for t in ticks)
    assert all(-1e-6 <= scale(t) <= 100 + 1e-6 for t in ticks)
    assert scale(low) == pytest.approx(0, abs=1e-6)
    assert scale(low * factor) == pytest.approx(100)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=3000), st.integers(1, 50))
def test_thinning_keeps_every_peak(values: list[float], most: int) -> None:
    kept = list(thinned(values, most))
    assert len(kept) <= max(2 * most, 2)
    assert all(values[place] == value for place, value in kept)
    assert [place for place, _ in kept] == sorted({place for place, _ in kept})
    assert (max(v for _, v in kept), min(v for _, v in kept)) == (max(values), min(values))


# A real browser


def chromium(source: Path, *options: str) -> bytes:
    """Without any network: every name resolves to nothing."""
    assert CHROMIUM is not None
    fixed = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run")
    offline = ("--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={source.parent / 'profile'}")
    window = f"--window-size={WIDTH_PX},{HEIGHT_PX}"
    command = [CHROMIUM, *fixed, *offline, window, *options, source.as_uri()]
    return subprocess.run(command, capture_output=True, check=True, timeout=TIMEOUT_S).stdout


@pytest.fixture(scope="module")
def page_file(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("browser") / "report.html"
    write_report(ReportFiles(where), runs, POINTS, "From a bundle.")
    return where


@browser
def test_a_browser_sees_the_same_figures(page_file: Path, folder: Path) -> None:
    seen = chromium(page_file, "--dump-dom").decode()
    check_figures(seen, folder)
    assert "INVALID" in seen
    assert seen.count("<svg") == page_file.read_text().count("<svg")


@browser
@pytest.mark.parametrize("scheme", ["bright", "dark"])
def test_a_browser_draws_charts_that_are_not_empty(page_file: Path, scheme: str, tmp_path: Path) -> None:
    """Both runs' colours, the stages' and the red of INVALID are on the picture, in bright and in dark."""
    shot = tmp_path / "shot.png"
    dark = ["--force-dark-mode"] if scheme == "dark" else []
    chromium(page_file, f"--screenshot={shot}", *dark)
    with Image.open(shot) as picture:
        pixels = np.asarray(picture.convert("RGB"), np.int16)
    assert pixels.shape == (HEIGHT_PX, WIDTH_PX, 3)
    first, second, stages, device, invalid = COLOURS[scheme]
    assert pixels[2, 2].mean() > 240 if scheme == "bright" else pixels[2, 2].mean() < 40
    for colour, least in ((first, 1500), (second, 1500), (stages, 8000), (device, 2000), (invalid, 800)):
        near = (np.abs(pixels - np.array(colour)).max(-1) <= 12).sum()
        assert near >= least, (colour, near)


COLOURS = {
    "bright": ((0x1F, 0x6F, 0xB4), (0xD9, 0x73, 0x0D), (0x2F, 0x6F, 0xB0), (0x7A, 0x4F, 0xB5), (0xC6, 0x28, 0x28)),
    "dark": ((0x5A, 0xA9, 0xF0), (0xF5, 0xA0, 0x4A), (0x5B, 0x9F, 0xE0), (0xB0, 0x8C, 0xF0), (0xFF, 0x6B, 0x6B)),
}
