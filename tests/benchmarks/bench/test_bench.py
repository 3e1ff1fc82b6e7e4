"""The whole instrument on toy bundles: every mode, and what a failing device, empty frames or a bad clock leave behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quiet_bench import COLD, make_quiet
from recordings import write_recording
from toy_bundles import write_toy_bundle

from posekit.benchmarks.bench import bench, plan
from posekit.benchmarks.bench.bench import Subject, measure
from posekit.benchmarks.bench.clock import checked_clock
from posekit.benchmarks.bench.cold_start import Opening
from posekit.benchmarks.bench.modes import Extent
from posekit.benchmarks.bench.plan import Plan
from posekit.benchmarks.bench.record import Recorded, bundle_sha256, evidence_from
from posekit.benchmarks.bench.result import TOTAL, WarmUp, read_readings, read_result, read_samples, write_evidence
from posekit.benchmarks.bench.warm_up import warm_up
from posekit.runtime.backends.ort import OrtSession
from posekit.runtime.detection import Detection
from posekit.runtime.errors import BackendError, ClockError, InputError
from posekit.runtime.sources import Frame, frames_from

FRAMES = 6
NO_WARM_UP = WarmUp(0, 0.0, True, 0.0)
BOX = np.array([40.0, 40, 80, 80])
Measure = Callable[..., Recorded]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    make_quiet(monkeypatch)


@pytest.fixture
def measured(tmp_path: Path) -> Measure:
    """Measures a toy bundle on six frames of a recording; keyword arguments as Plan, boxes and path apart."""
    bundle, root = write_toy_bundle(tmp_path / "toy.posekit"), write_recording(tmp_path / "recording", FRAMES)

    def run(boxes: Any = None, path: str = "regressor", said: list[str] | None = None, **options: Any) -> Recorded:
        opening = Opening(bundle, path, "onnxruntime")
        subject = Subject(opening, str(root), lambda: frames_from(root), boxes, "a test" if boxes else "")
        wanted = Plan(**{"frames": FRAMES} | options)
        say = [] if said is None else said
        return evidence_from(measure(subject, wanted, say.append), subject, wanted, "0.0", "posekit bench as given")

    return run


def lose_the_device(patch: pytest.MonkeyPatch, after_runs: int) -> None:
    """Every session refuses after so many runs in all, and then cannot be closed either."""
    right, close, runs = OrtSession.run, OrtSession.close, [0]

    def lost() -> BackendError:
        return BackendError("session", got="a lost device", expected="a device", remedy="Plug it in.")

    def run(self: Any, feed: Any) -> Any:
        runs[0] += 1
        if runs[0] > after_runs:
            raise lost()
        return right(self, feed)

    def close_if_there(self: Any) -> None:
        close(self)
        if runs[0] > after_runs:
            raise lost()

    patch.setattr(OrtSession, "run", run)
    patch.setattr(OrtSession, "close", close_if_there)


def test_back_to_back_measures_every_frame_and_keeps_every_sample(measured: Measure) -> None:
    evidence = measured()
    result = evidence.result
    (run,) = result.runs
    assert (run.mode, run.frames, run.objects, result.valid, result.reasons) == ("back-to-back", FRAMES, 1.0, True, ())
    assert [stage.name for stage in run.stages] == ["capture", "crop", "network", "decode", "total"]
    assert {stage.clock for stage in run.stages} == {"host"}
    samples = evidence.samples["back-to-back"]
    for stage in run.stages:
        ns = samples[stage.name]
        assert (len(ns), max(ns) / 1e6, min(ns) / 1e6) == (stage.summary.n, stage.summary.max_ms, stage.summary.min_ms)
    parts = np.array([samples[name] for name in ("crop", "network", "decode")]).sum(axis=0)
    assert (parts <= np.array(samples[TOTAL])).all()
    assert run.throughput_hz == pytest.approx(FRAMES / run.seconds)
    assert sum(samples[TOTAL]) / 1e9 <= run.seconds


def test_the_record_says_what_ran_where_on_what(measured: Measure, tmp_path: Path) -> None:
    result = measured().result
    assert (result.path, result.command, result.posekit) == ("regressor", "posekit bench as given", "0.0")
    assert result.bundle_sha256 == bundle_sha256(tmp_path / "toy.posekit")
    assert "ONNX Runtime" in result.backends[0]
    assert "6 frames of 160 x 120 px" in result.frames_source
    assert result.boxes == "truth of the data set: the bundle has no detector"
    assert (result.frame_wh_px, result.cold_start) == ((160, 120), COLD)
    assert {"numpy", "onnxruntime"} <= set(result.packages)
    assert result.machine.architecture
    assert any("steps of" in note for note in result.notes)


def test_poses_are_scored_where_truth_is_known(measured: Measure) -> None:
    """Six true objects half a metre away, from 167 mm left of the axis on; the toy says one metre, on the axis."""
    result = measured(pipelined=True).result
    assert result.accuracy is not None
    assert result.truth_errors is not None
    assert result.accuracy.total.n_true == FRAMES
    aside_mm = 500 * (np.arange(FRAMES) - 50) / 150
    assert result.truth_errors.translation_mm == pytest.approx(np.hypot(500, aside_mm).tolist())


def test_the_folder_gives_back_what_was_measured(measured: Measure, tmp_path: Path) -> None:
    evidence = measured(paced_hz=500.0, objects=(1, 3))
    write_evidence(tmp_path, evidence.result, evidence.samples, evidence.readings)
    assert read_result(tmp_path) == evidence.result
    assert read_samples(tmp_path) == evidence.samples
    assert read_readings(tmp_path) == evidence.readings


def test_every_mode_is_a_run_of_its_own(measured: Measure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "MLPERF", Extent(9, 0.01))
    said: list[str] = []
    options: dict[str, Any] = {"paced_hz": 200.0, "objects": (1, 2), "pipelined": True, "mlperf": True, "soak_s": 0.2}
    evidence = measured(said=said, repeat=True, **options)
    runs = {run.mode: run for run in evidence.result.runs}
    names = [
        "back-to-back", "paced", "objects-1", "objects-2", "sequential", "pipelined", "single-stream", "offline", "soak",
    ]  # fmt: skip
    assert list(runs) == list(evidence.samples) == names
    assert [line.split(":")[0] for line in said if line.split(":")[0] in names] == names
    assert evidence.result.reasons == ()
    deadlines, drift = runs["paced"].deadlines, runs["soak"].drift
    assert deadlines is not None
    assert drift is not None
    assert deadlines.of == runs["paced"].frames + deadlines.dropped == FRAMES
    assert runs["soak"].seconds >= 0.2
    assert [runs[f"objects-{n}"].objects for n in (1, 2)] == [1.0, 2.0]
    assert runs["single-stream"].frames >= 9
    assert runs["offline"].frames >= 9
    for mode in ("sequential", "pipelined"):
        assert runs[mode].frames == FRAMES
        assert runs[mode].stages[0].name == "capture"
        assert len(evidence.samples[mode]["capture"]) == FRAMES


def test_frames_that_repeat_are_told(measured: Measure) -> None:
    with pytest.raises(InputError, match="got 6 that can be held, expected 13"):
        measured(frames=13)
    result = measured(frames=13, repeat=True).result
    assert result.runs[0].frames == 13
    assert any("6 of them, each up to 3 times" in note for note in result.notes)
    assert not any("Frames repeat" in note for note in measured().result.notes)


@pytest.mark.parametrize("options", [{"soak_s": 1.0}, {"mlperf": True}])
def test_a_run_by_time_needs_leave_to_repeat(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="frames that may not repeat"):
        Plan(**options)
    Plan(**options, repeat=True)


def test_a_lost_device_leaves_what_was_measured_marked_invalid(
    measured: Measure, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_the_device(monkeypatch, after_runs=400)
    monkeypatch.setattr(bench, "warm_up", lambda *given: NO_WARM_UP)
    evidence = measured(frames=1000, repeat=True, paced_hz=100.0)
    (run,) = evidence.result.runs
    assert (run.frames, len(evidence.samples["back-to-back"][TOTAL])) == (400, 400)
    assert not evidence.result.valid
    (reason,) = evidence.result.reasons
    assert "back-to-back ended after 400 frames: session: got a lost device" in reason


def test_a_device_lost_between_modes_leaves_the_modes_before(
    measured: Measure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the warm-up of the second mode, which measures nothing."""
    calls = [0]

    def failing(*given: Any) -> Any:
        calls[0] += 1
        if calls[0] == 3:
            raise BackendError("session", got="a lost device", expected="a device", remedy="Plug it in.")
        return warm_up(*given)

    monkeypatch.setattr(bench, "warm_up", failing)
    result = measured(paced_hz=100.0).result
    assert [run.mode for run in result.runs] == ["back-to-back"]
    assert not result.valid
    assert "the run ended after back-to-back: session: got a lost device" in result.reasons[0]


def test_a_stop_leaves_what_was_measured_marked_invalid(measured: Measure, monkeypatch: pytest.MonkeyPatch) -> None:
    """Boxes are asked for once for the cold start, then for each of a thousand frames."""
    monkeypatch.setattr(bench, "warm_up", lambda *given: NO_WARM_UP)
    seen: list[str] = []

    def boxes(frame: Frame) -> list[Detection]:
        seen.append(frame.name)
        if len(seen) == 500:
            raise KeyboardInterrupt
        return [Detection(1, 1.0, BOX)]

    result = measured(boxes, frames=1000, repeat=True).result
    assert result.runs[0].frames == 498
    assert not result.valid
    assert "was stopped after" in result.reasons[0]


def test_a_device_that_is_lost_at_once_is_an_error(measured: Measure, monkeypatch: pytest.MonkeyPatch) -> None:
    lose_the_device(monkeypatch, after_runs=0)
    with pytest.raises(BackendError, match="a lost device"):
        measured()


def test_frames_without_any_box_are_no_figure(measured: Measure) -> None:
    evidence = measured(lambda frame: [], objects=(2,))
    (run,) = evidence.result.runs
    assert (run.frames, run.objects, evidence.result.valid) == (FRAMES, 0.0, False)
    assert "network" not in evidence.samples["back-to-back"]
    assert any("objects-2 was not run: no frame has a box" in reason for reason in evidence.result.reasons)
    assert any("back-to-back: no box in any of 6 frames" in reason for reason in evidence.result.reasons)


def test_boxes_that_end_without_a_pose_are_counted(measured: Measure, tmp_path: Path) -> None:
    """Every frame has a good box and one outside the image; every other one a third that is too thin."""
    bad = [Detection(1, 1.0, BOX + 1000), Detection(1, 1.0, np.array([5.0, 5, 5, 9]))]
    evidence = measured(lambda frame: [bad[0], Detection(1, 1.0, BOX), *bad[1:] * (frame.index % 2)])
    (run,) = evidence.result.runs
    assert (run.objects, run.reasons) == (2.5, {"box_outside_image": FRAMES, "box_too_thin": FRAMES // 2})
    told = f"back-to-back: {FRAMES * 3 // 2} of {FRAMES * 5 // 2} boxes ended without a pose: 6 box_outside_image, 3 box_too_thin."
    assert told in evidence.result.notes
    write_evidence(tmp_path, evidence.result, evidence.samples, evidence.readings)
    assert read_result(tmp_path) == evidence.result


def test_the_sweep_leaves_out_frames_without_a_box(measured: Measure) -> None:
    """Every other frame has one: their mean is a half back to back, and three in the sweep."""
    result = measured(lambda frame: [Detection(1, 1.0, BOX)] * (frame.index % 2), objects=(3,)).result
    assert [run.objects for run in result.runs] == [0.5, 3.0]
    assert result.reasons == ()


def test_no_frame_is_measured_with_a_bad_clock(measured: Measure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "checked_clock", lambda: checked_clock(lambda: 7))
    monkeypatch.setattr(bench, "held_frames", lambda *given: pytest.fail("frames were read"))
    with pytest.raises(ClockError, match="the same reading"):
        measured()


@pytest.mark.parametrize(
    "options",
    [
        {"frames": 0}, {"paced_hz": 0.0}, {"paced_hz": float("nan")}, {"objects": (0,)}, {"objects": (2, 2)},
        {"soak_s": -1.0, "repeat": True},
    ],
)  # fmt: skip
def test_a_plan_that_measures_nothing_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="what to measure"):
        Plan(**options)


def test_a_folder_bundle_has_the_hash_of_its_manifest(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(b"one")
    (tmp_path / "other").write_bytes(b"two")
    assert bundle_sha256(tmp_path) == bundle_sha256(tmp_path / "manifest.json") != bundle_sha256(tmp_path / "other")
