"""`posekit bench` on the command line: the evidence folder, what it says, its exit codes, and what it refuses."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from quiet_bench import make_quiet
from recordings import write_recording
from toy_bundles import write_toy_bundle
from typer.testing import CliRunner

from posekit.bench import objects_from
from posekit.bench_view import show_bench
from posekit.benchmarks.bench import bench
from posekit.benchmarks.bench.clock import checked_clock
from posekit.benchmarks.bench.result import (
    RESULT,
    SAMPLES,
    WATCH,
    Drift,
    Interval,
    read_readings,
    read_result,
    read_samples,
)
from posekit.cli import app
from posekit.runtime.errors import InputError

FRAMES = 4


@pytest.fixture
def asked(tmp_path: Path) -> list[object]:
    """A bundle, frames with truth, and a folder that is not there yet."""
    bundle = write_toy_bundle(tmp_path / "toy.posekit")
    frames = write_recording(tmp_path / "recording", FRAMES)
    return ["bench", bundle, frames, "--path", "regressor", "--frames", FRAMES, "-o", tmp_path / "evidence"]


def posekit(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def refused(*arguments: object, code: int = 2) -> str:
    """One line on stderr, after what was being done; no traceback."""
    result = posekit(*arguments)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return str(result.stderr.strip().splitlines()[-1])


def test_the_folder_has_all_evidence_and_the_next_command_is_said(
    asked: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_quiet(monkeypatch)
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/posekit", "bench", "a b.posekit"])
    result = posekit(*asked, "--paced", 200, "--objects", "1,2", "--pipelined")
    assert result.exit_code == 0, result.output
    folder = tmp_path / "evidence"
    assert {path.name for path in folder.iterdir()} == {RESULT, SAMPLES, WATCH}
    found = read_result(folder)
    assert found.command == "posekit bench 'a b.posekit'"
    modes = ["back-to-back", "paced", "objects-1", "objects-2", "sequential", "pipelined"]
    assert [run.mode for run in found.runs] == modes
    assert set(read_samples(folder)) == set(modes)
    for words in (
        "times as many frames per second as sequential", "cold start", "total by boxes per frame", "deadlines missed", "network", "p50, 95 %", "VALID", f"wrote {folder}",
        f"next: posekit report {folder}", "accuracy",
    ):  # fmt: skip
        assert words in result.stdout, words
    assert "INVALID" not in result.stdout
    assert f"{found.runs[0].stages[-1].summary.max_ms:.2f}" in result.stdout
    assert "paced" in result.stderr


def test_everything_is_real_but_the_bundle(asked: list[object], tmp_path: Path) -> None:
    """With a fresh process and the machine watched: valid or not is a matter of who else is on this machine."""
    result = posekit(*asked, "--json")
    assert result.exit_code in (0, 2), result.output
    shown = json.loads(result.stdout)
    assert shown["folder"] == str(tmp_path / "evidence")
    found = read_result(tmp_path / "evidence")
    assert shown["runs"][0]["frames"] == found.runs[0].frames == FRAMES
    assert found.cold_start is not None
    assert found.cold_start.total_ms > 0
    assert {watched.source for watched in found.watched} == set(read_readings(tmp_path / "evidence"))
    assert result.exit_code == (0 if found.valid else 2)
    assert found.valid == (not found.reasons)


def test_an_invalid_run_is_written_and_its_exit_code_is_2(
    asked: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_quiet(monkeypatch)
    (tmp_path / "boxes.json").write_text(json.dumps({f"000001/{i:06d}": [] for i in range(FRAMES)}))
    result = posekit(*asked, "--boxes", tmp_path / "boxes.json")
    assert result.exit_code == 2
    assert "INVALID" in result.stdout
    assert "no box in any of 4 frames" in result.stdout
    found = read_result(tmp_path / "evidence")
    assert not found.valid
    assert "boxes.json" in found.boxes


def test_what_a_longer_run_on_a_device_has_besides(
    asked: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Drift, energy, the far tail, device events and an engine: each in words or a column, and in full."""
    make_quiet(monkeypatch)
    assert posekit(*asked).exit_code == 0
    found = read_result(tmp_path / "evidence")
    (run,) = found.runs
    network = next(stage for stage in run.stages if stage.name == "network")
    summary = replace(network.summary, p99_ms=7.77, p99_interval_ms=Interval(6.66, 8.88), p999_ms=9.99)
    on_device = replace(network, name="pose gpu", clock="device", summary=summary)
    drift = Drift(10.0, 12.5, 300.0, 310.5)
    longer = replace(run, mode="soak", drift=drift, stages=(on_device,), energy_j_per_pose=0.5)
    longer = replace(longer, energy_above_idle_j_per_pose=0.25)
    assert found.cold_start is not None
    built = replace(found.cold_start, engine="pose: built: no engine in the cache")
    show_bench(replace(found, runs=(longer,), cold_start=built), tmp_path)
    shown = capsys.readouterr().out
    for words in (
        "p50 10.00 to 12.50 ms (+25.0%), memory 300.0 to 310.5 MB", "0.500 J, 0.250 J above idle", "pose gpu", "device",
        "7.77", "6.66 to 8.88", "9.99", "engine: pose: built: no engine in the cache",
    ):  # fmt: skip
        assert words in shown, words


def test_too_few_frames_are_refused_and_leave_no_folder(asked: list[object], tmp_path: Path) -> None:
    line = refused(*asked, "--frames", FRAMES + 1)
    assert "got 4 that can be held, expected 5. Let them repeat (--repeat)" in line
    assert not (tmp_path / "evidence").exists()


def test_who_does_not_ask_for_a_number_gets_repeats_and_is_told(asked: list[object]) -> None:
    at = asked.index("--frames")
    shown = posekit(*asked[:at], *asked[at + 2 :])
    assert "Frames repeat, as allowed: 4 of them" in shown.stdout


def test_a_bad_clock_is_a_matter_of_the_environment(asked: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "checked_clock", lambda: checked_clock(lambda: 7))
    assert "clock perf_counter: got the same reading" in refused(*asked, code=3)


def test_evidence_is_never_replaced(asked: list[object], tmp_path: Path) -> None:
    (tmp_path / "evidence").mkdir()
    (tmp_path / "evidence" / RESULT).write_text("mine")
    assert f"got another {RESULT}" in refused(*asked)
    assert (tmp_path / "evidence" / RESULT).read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_told_before_measuring(asked: list[object], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "expected a folder that can be written" in refused(*asked[:-1], tmp_path / "file" / "evidence")


def test_numbers_of_boxes_are_numbers() -> None:
    assert objects_from("1,2,16") == (1, 2, 16)
    for text in ("", "1,", "a", "1.5"):
        with pytest.raises(InputError, match="--objects"):
            objects_from(text)
