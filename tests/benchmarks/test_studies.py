"""The precision study: fair turns, a result that survives a stop, a table that says what the file says, a toy run."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from recordings import write_recording

from posekit.benchmarks.studies import precision, precision_steps
from posekit.benchmarks.studies.command import Advance
from posekit.benchmarks.studies.machine import RESULTS, Machine, commit_of, this_machine
from posekit.benchmarks.studies.precision_measure import CROP_COUNTS, Setting, measured, of_variation
from posekit.benchmarks.studies.precision_result import (
    CONTENDERS,
    EAGER,
    NOISE,
    OPENVINO_FP16,
    OPENVINO_FP32,
    OPENVINO_INT8,
    ORT,
    Difference,
    Engine,
    GraphResult,
    Measurement,
    Options,
    Result,
    Run,
    Step,
    SystemResult,
    read,
    timing,
    write,
)
from posekit.benchmarks.studies.precision_subjects import SUBJECTS, full_size
from posekit.benchmarks.studies.precision_table import markdown, verdict
from posekit.benchmarks.studies.round_robin import WARM_UPS, interleaved
from posekit.runtime.errors import CalibrationError, InputError

ROOT = Path(__file__).resolve().parents[2]

MS = {EAGER: 80.0, ORT: 50.0, OPENVINO_FP32: 60.0, OPENVINO_FP16: 55.0, OPENVINO_INT8: 20.0}


def graph_result(
    ms: dict[str, float] = MS, poses: tuple[float, float] | None = None, others_cpu: float = 0.02
) -> GraphResult:
    """poses: rotation, degrees, and translation, of the diameter, that int8 costs; None: random weights."""
    turned, moved = poses or (None, None)
    names = (NOISE, OPENVINO_FP32, OPENVINO_FP16, OPENVINO_INT8)
    return GraphResult(
        graph="pose",
        sizes_bytes={"fp32": 4_000_000, "fp16": 2_000_000, "int8": 1_000_000},
        ran_on=dict.fromkeys(CONTENDERS, "a toy"),
        steps=(Step("export fp32", 1.5, 700.0),),
        timings=tuple(timing(name, crops, (value * crops,) * 3) for name, value in ms.items() for crops in (1, 4)),
        differences=tuple(
            Difference(name, {"R": 0.02, "t": 0.01}, rotation_p95_deg=turned, translation_p95_of_diameter=moved)
            for name in names
        ),
        layer_shares={"Convolution I8": 0.6, "ConvolutionBackpropData F32": 0.3, "Multiply I8": 0.1},
        others_cpu=others_cpu,
        engines=(Engine("int8", 86, 1.0, 500_000, {"Int8": 3}, "no | yes"),),
    )


def system_result(name: str = "gdr-net", busy: bool = False, graph: GraphResult | None = None) -> SystemResult:
    run = Run("2026-01-01T00:00:00+00:00", "abc", "a command", 0.1, 2.0, busy)
    return SystemResult(name, run, measurement(graph or graph_result()))


def measurement(graph: GraphResult) -> Measurement:
    return Measurement("random, seed 0", "toys", False, True, 64, 64, (Step("prepare", 1.0, 300.0),), (graph,))


def machine() -> Machine:
    return Machine("A CPU(R) 9 @ 2 GHz", 2, ("avx2",), 8.0, "Linux", {"numpy": "2"})


# Turns.


@given(st.integers(1, 4), st.integers(1, 6))
def test_every_contender_has_its_turn_in_every_round_and_begins_equally_often(count: int, rounds: int) -> None:
    names = [f"contender {i}" for i in range(count)]
    calls: list[str] = []
    found = interleaved({name: partial(calls.append, name) for name in names}, rounds, pause_s=0.0)
    turns = calls[count * WARM_UPS :: 2]
    assert turns == calls[count * WARM_UPS + 1 :: 2], "a run that counts nothing, then the one that is timed"
    assert [sorted(turns[i * count : (i + 1) * count]) for i in range(rounds)] == [sorted(names)] * rounds
    firsts = [turns[i * count] for i in range(rounds)]
    assert max(map(firsts.count, names)) - min(map(firsts.count, names)) <= 1
    assert list(found) == names
    assert all(len(samples) == rounds for samples in found.values())


def test_peak_memory_is_of_the_step_alone() -> None:
    stopwatch = precision_steps.Stopwatch()
    with stopwatch.step("large"):
        assert len(bytearray(b"x" * 200_000_000))
    with stopwatch.step("small"):
        pass
    large, small = stopwatch.done
    assert large.peak_rss_mb - small.peak_rss_mb > 150


# The machine.


def test_the_machine_is_described() -> None:
    found = this_machine()
    assert found.cores >= 1
    assert found.memory_gb > 0
    assert {"posekit", "numpy", "torch"} <= set(found.versions)
    assert machine().slug == "a-cpu-9-2-ghz"


def test_a_commit_is_named_with_its_changes_but_without_results(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    for file in ("code.py", f"{RESULTS}/x.json"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("1")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "one")
    clean = commit_of(tmp_path)
    (tmp_path / RESULTS / "x.json").write_text("2")
    assert commit_of(tmp_path) == clean
    (tmp_path / "code.py").write_text("2")
    changed = commit_of(tmp_path)
    assert changed.startswith(f"{clean}+")
    (tmp_path / "code.py").write_text("3")
    assert commit_of(tmp_path) != changed


# The result and its table.


def test_a_result_reads_as_it_was_written(tmp_path: Path) -> None:
    whole = Result(machine(), Options(3, 64, "ycbv"), (system_result(), system_result("tram3d", busy=True)))
    write(tmp_path / "r.json", whole)
    assert read(tmp_path / "r.json", Result) == whole


@pytest.mark.parametrize("text", ["", "{", "[]", '{"machine": 1}', '{"systems": [], "extra": 1}'])
def test_what_is_no_result_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(InputError, match="Result"):
        read(tmp_path / "r.json", Result)
    assert precision.main(["--table", str(tmp_path / "r.json")]) == 2


def test_a_table_is_whole_and_says_what_is_busy(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write(tmp_path / "r.json", Result(machine(), Options(3, 64, "ycbv"), (system_result(busy=True),)))
    assert precision.main(["--table", str(tmp_path / "r.json")]) == 0
    text = capsys.readouterr().out
    for block in text.split("\n\n"):
        bars = {line.replace("\\|", "").count("|") for line in block.splitlines() if line.startswith("|")}
        assert len(bars) <= 1, block
    assert "| gdr-net (busy) | pose | 4 | 320.0 | 200.0 | 240.0 | 220.0 | 80.0 | 4.0 x | 2.5 x |" in text
    assert "Busy machine, do not quote: gdr-net begun at load 0.1, others took 2% of the processors" in text
    assert "busy" not in markdown(Result(machine(), Options(3, 64, "ycbv"), (system_result(),))).lower()


def test_load_that_comes_while_a_system_is_measured_is_busy_too() -> None:
    assert not system_result(graph=graph_result(others_cpu=0.1)).busy
    loaded = system_result(graph=graph_result(others_cpu=0.11))
    assert loaded.busy
    assert "Measured on a busy machine" in verdict(loaded, loaded.measured.graphs[0])


def test_a_missed_aim_says_by_how_much_and_why() -> None:
    text = verdict(system_result(), graph_result())
    assert f"4.0 times as fast as {EAGER} (aim 4: met)" in text
    assert f"2.5 times as fast as {ORT} (aim 3: missed by 17%)" in text
    assert "40% is not spent in integer products (ConvolutionBackpropData F32 30%, Multiply I8 10%)" in text
    assert "Weights are random, seed 0: numbers only, R differs by 2.00% at p95" in text
    fast = verdict(system_result(), graph_result({**MS, OPENVINO_INT8: 10.0}))
    assert "missed" not in fast
    assert "integer products" not in fast


def test_a_transformer_has_no_aim_for_speed() -> None:
    base = system_result("tram3d")
    text = verdict(replace(base, measured=replace(base.measured, convolutional=False)), graph_result())
    assert "aim" not in text


def test_poses_of_trained_networks_are_held_against_their_aim() -> None:
    text = verdict(system_result(), graph_result(poses=(0.75, 0.005)))
    assert "0.75 degrees (aim 0.50 degrees: missed by 50%" in text
    assert "0.5% of the diameter (aim 1.0% of the diameter: met" in text
    assert "numbers only" not in text


# Stopping and going on.


@pytest.fixture
def request_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> precision.Request:
    monkeypatch.setattr(precision, "commit_of", lambda root: "abc")
    monkeypatch.setattr(precision, "load_average", lambda: 0.2)
    return precision.Request(("tram3d", "gdr-net"), tmp_path, 30, 64, tmp_path / "r.json", "a command")


def quiet(stage: str, done: int, total: int) -> None: ...


class Measuring:
    """Stands for the fresh processes; `fails` names what raises."""

    def __init__(self, fails: dict[str, type[BaseException]] | None = None) -> None:
        self.asked: list[str] = []
        self.fails = fails or {}

    def __call__(self, system: str, request: precision.Request, advance: Advance) -> Measurement:
        self.asked.append(system)
        if self.fails.get(system) is KeyboardInterrupt:
            raise KeyboardInterrupt
        if system in self.fails:
            raise precision.SystemFailed(system, got="a fault", expected="none", remedy="None.")
        return measurement(graph_result())


def test_a_stopped_study_goes_on_where_it_was(request_of: precision.Request) -> None:
    with pytest.raises(KeyboardInterrupt):
        precision.study(request_of, Measuring({"gdr-net": KeyboardInterrupt}), quiet)
    assert [row.system for row in read(request_of.out, Result).systems] == ["tram3d"]
    rest = Measuring()
    result, failures = precision.study(request_of, rest, quiet)
    assert (rest.asked, failures) == (["gdr-net"], [])
    assert read(request_of.out, Result) == result
    again = Measuring()
    assert precision.study(request_of, again, quiet)[0] == result
    assert again.asked == []


@pytest.mark.parametrize("change", ["commit", "options"])
def test_figures_of_other_code_or_options_are_measured_again(
    request_of: precision.Request, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    precision.study(request_of, Measuring(), quiet)
    monkeypatch.setattr(precision, "commit_of", lambda root: "def" if change == "commit" else "abc")
    other = replace(request_of, systems=("gdr-net",), rounds=31 if change == "options" else 30)
    again = Measuring()
    result, _ = precision.study(other, again, quiet)
    assert again.asked == ["gdr-net"]
    assert [row.system for row in result.systems] == ["gdr-net"]


def test_one_failure_costs_no_other_system(request_of: precision.Request) -> None:
    result, failures = precision.study(request_of, Measuring({"tram3d": ValueError}), quiet)
    assert [row.system for row in result.systems] == ["gdr-net"]
    assert [failure.what for failure in failures] == ["tram3d"]


@pytest.mark.parametrize(("load", "busy"), [(1.5, False), (1.51, True)])
def test_a_busy_machine_is_marked(
    request_of: precision.Request, monkeypatch: pytest.MonkeyPatch, load: float, busy: bool
) -> None:
    monkeypatch.setattr(precision, "load_average", lambda: load)
    result, _ = precision.study(request_of, Measuring(), quiet)
    assert [row.run.busy for row in result.systems] == [busy, busy]


@pytest.mark.parametrize("arguments", [["--rounds", "29"], ["--crops", "63"]])
def test_too_few_samples_are_refused(arguments: list[str]) -> None:
    with pytest.raises(InputError, match="at least"):
        precision.requested(arguments)


def test_the_command_line_knows_every_subject() -> None:
    assert tuple(SUBJECTS) == precision.SYSTEMS


# The work itself, small.


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """64 frames of one object, half for calibration."""
    root = write_recording(tmp_path / "toy", 64)
    row = {"diameter": 100.0, **{f"min_{a}": -30.0 for a in "xyz"}, **{f"size_{a}": 60.0 for a in "xyz"}}
    (root / "models").mkdir()
    (root / "models" / "models_info.json").write_text(json.dumps({"1": row}))
    return root


def test_a_toy_system_is_measured_from_network_to_latency(recording: Path, tmp_path: Path) -> None:
    """A transformer of one block, through every step but engines, which have tests of their own."""
    threads = torch.get_num_threads()
    stages: list[str] = []
    try:
        with full_size(recording, quiet, "tram3d", dim=32, depth=1, heads=2) as subject:
            found = measured(
                subject,
                Options(2, 32, "toy"),
                lambda stage, done, total: stages.append(stage),
                precision_steps.Stopwatch(),
                Setting(threads=1, pause_s=0.0, capabilities=()),
            )
    finally:
        torch.set_num_threads(threads)
    write(tmp_path / "m.json", found)
    assert read(tmp_path / "m.json", Measurement) == found
    (graph,) = found.graphs
    assert graph.graph == "embedder"
    assert {(t.contender, t.crops, len(t.samples_ms)) for t in graph.timings} == {
        (name, crops, 2) for name in CONTENDERS for crops in CROP_COUNTS
    }
    assert graph.sizes_bytes["fp32"] > graph.sizes_bytes["fp16"] > graph.sizes_bytes["int8"]
    worst = {difference.contender: difference.outputs_p95["descriptors"] for difference in graph.differences}
    varied = {difference.contender: difference.of_variation["descriptors"] for difference in graph.differences}
    assert varied[OPENVINO_FP32] < varied[OPENVINO_FP16] < varied[OPENVINO_INT8] < 1
    assert worst[OPENVINO_FP32] < worst[OPENVINO_FP16] < worst[OPENVINO_INT8] < 0.2
    assert worst[NOISE] > 0
    cosine = graph.difference(OPENVINO_INT8).cosine_p1
    assert cosine is not None
    assert 0.98 < cosine <= 1
    assert "in int8" in graph.ran_on[OPENVINO_INT8]
    assert sum(graph.layer_shares.values()) == pytest.approx(1)
    assert 0 <= graph.others_cpu < 1
    assert any(name.endswith("I8") for name in graph.layer_shares)
    assert [step.name for step in graph.steps] == ["export fp32", "export fp16", "int8 ranges", "int8 file"]
    wanted = ("export", "latency, 1 crop", "latency, 4 crops", "errors", "engines")
    assert set(stages) <= {f"embedder: {stage}" for stage in wanted}
    assert {f"embedder: {stage}" for stage in wanted[:-1]} <= set(stages), "engines only with TensorRT-RTX"


@given(st.floats(0, 10), st.integers(0, 100))
def test_errors_are_held_against_what_an_output_varies_by(error: float, seed: int) -> None:
    """Whatever the constant is that most of an output consists of."""
    rows = np.random.default_rng(seed).normal(size=(5, 3))
    spread = rows - rows.mean(axis=0)
    exact = [{"t": row + 1000, "score": np.zeros(1), "index": np.zeros(1, int)} for row in spread]
    seen = [{**one, "t": one["t"] + error * row} for one, row in zip(exact, spread, strict=True)]
    found = of_variation(exact, seen)
    assert set(found) == {"t"}, "what never varies has no such figure"
    assert found["t"] == pytest.approx(error, abs=1e-9)


def test_too_few_crops_are_refused_before_anything_is_exported(recording: Path) -> None:
    with (
        full_size(recording, quiet, "tram3d", dim=32, depth=1, heads=2) as subject,
        pytest.raises(CalibrationError, match="expected 64"),
    ):
        measured(subject, Options(2, 64, "toy"), quiet, precision_steps.Stopwatch(), Setting(1))


def test_what_a_fresh_process_refuses_is_said(tmp_path: Path) -> None:
    request = precision.Request(("tram3d",), tmp_path / "nothing", 30, 64, tmp_path / "r.json", "a command")
    with pytest.raises(precision.SystemFailed, match=r"SourceError.*models_info\.json"):
        precision.in_fresh_process("tram3d", request, quiet)


@pytest.mark.parametrize("result", sorted((ROOT / "benchmarks/results").glob("precision-*.json")), ids=lambda p: p.stem)
def test_the_committed_tables_are_what_the_script_makes_of_the_result(result: Path) -> None:
    """A result is read by today's code, and no table was written by hand."""
    made = markdown(read(result, Result))
    assert result.with_suffix(".md").read_text() == made
    latencies = made.split("\n\n")[1]
    assert latencies.startswith("| system | graph | crops |")
    assert latencies in (ROOT / "README.md").read_text()
