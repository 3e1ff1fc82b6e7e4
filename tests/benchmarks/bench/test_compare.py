"""Gates let noise pass and slowdowns not; sides that are not alike are refused, with the difference."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_evidence import MACHINE, MODE, evidence, latencies_ms, several, written

from posekit.benchmarks.bench.alike import ALLOWED, Allowed
from posekit.benchmarks.bench.baseline import Evidence, side_from, write_baseline
from posekit.benchmarks.bench.change import change_of
from posekit.benchmarks.bench.compare import Comparison, compare, judged
from posekit.benchmarks.bench.gate_text import gate_from
from posekit.benchmarks.bench.result import read_result, read_samples
from posekit.runtime.errors import InputError, OutputError
from posekit.runtime.machine import Cpu

FIVE = gate_from("total.p95<+5%")
ROTATION = tuple(np.linspace(0.1, 2.0, 40).tolist())


def verdict(base: Sequence[Evidence], new: Sequence[Evidence], *gates: str, allow: Sequence[Allowed] = ()) -> str:
    return compare(base, new, [gate_from(gate) for gate in gates], allow).verdict


@pytest.mark.parametrize("runs", [1, 2, 5])
def test_a_side_against_itself_has_not_changed(runs: int) -> None:
    side = several(runs)
    found = compare(side, side, [FIVE])
    assert all(change.change == pytest.approx(0) and change.low <= 0 <= change.high for change in found.changes)
    assert {(c.mode, c.figure) for c in found.changes} >= {(MODE, "total.p50"), (MODE, "network.p95")}
    assert found.machine == "Toy CPU, 4 processors, governor performance, 8 GiB"


@given(st.integers(1, 4), st.integers(1, 4), st.floats(0.5, 2.0))
@settings(max_examples=20, deadline=None)
def test_a_ratio_does_not_depend_on_which_side_is_which(old: int, new: int, slower: float) -> None:
    sides = several(old, name="old"), several(new, slower, seed=9, name="new")
    there, back = (compare(*pair, [FIVE]).gates[0].measured for pair in (sides, sides[::-1]))
    assert (1 + there.change) * (1 + back.change) == pytest.approx(1)
    assert there.low <= there.change <= there.high


def test_a_slowdown_of_the_limit_rarely_passes_and_noise_is_rarely_a_regression() -> None:
    """200 comparisons of 6 runs a side that differ by 1 %: 5 are expected to be wrong, either way."""
    gate, random = gate_from("total.p50<+5%"), np.random.default_rng(4)
    alike, slower = several(40), several(40, 1.05)

    def found(pool: list[Evidence]) -> str:
        base, new = ([side[k] for k in random.integers(len(side), size=6)] for side in (alike, pool))
        return judged(gate, change_of(gate.figure, MODE, gate.kind, base, new)).verdict

    assert sum(found(slower) == "held" for _ in range(200)) <= 12
    assert sum(found(alike) == "missed" for _ in range(200)) <= 12


@pytest.mark.parametrize(
    ("slower", "between", "gate", "expected"),
    [
        (1.2, 0.005, "total.p95<+5%", "missed"),
        (0.9, 0.005, "total.p95<+5%", "held"),
        (1.0, 0.005, "total.p95<+5%", "held"),
        (1.0, 0.3, "total.p95<+5%", "undecided"),
        (1.2, 0.3, "total.p95<+5%", "undecided"),
        (1.2, 0.005, "total.p95<+50%", "held"),
        (0.8, 0.005, "total.p95<-10%", "held"),
        (1.0, 0.005, "total.p95<-10%", "missed"),
        (1.0, 0.005, "total.p50<20ms", "held"),
        (1.0, 0.005, "total.p50<5ms", "missed"),
        (1.0, 0.3, "total.p50<10.1ms", "undecided"),
        (1.2, 0.005, "total.p50<+1ms", "missed"),
        (1.2, 0.005, "throughput>-5%", "missed"),
        (0.9, 0.005, "throughput>-5%", "held"),
        (1.2, 0.005, "throughput>10Hz", "held"),
        (1.0, 0.005, "cold_start.total<+5%", "held"),
        (1.0, 0.005, "cold_start.total<60000ms", "held"),
    ],
)
def test_verdicts(slower: float, between: float, gate: str, expected: str) -> None:
    new = several(5, slower, seed=50, between=between)
    assert verdict(several(5, between=between), new, gate) == expected


def test_the_worst_gate_is_the_verdict() -> None:
    base, new = several(5), several(5, 1.3, seed=50)
    assert verdict(base, new) == "held"
    assert verdict(base, new, "total.p95<+90%", "total.p95<+5%") == "missed"


def test_single_runs_are_compared_by_their_passes_and_it_is_said() -> None:
    gate = compare(several(1), several(1, 1.5, seed=3), [FIVE]).gates[0]
    assert gate.verdict == "missed"
    assert gate.measured.method == "passes"
    assert compare(several(2), several(1), [FIVE]).gates[0].measured.method == "runs"


def test_two_single_values_decide_no_change() -> None:
    base, new = several(1), several(1, seed=3)
    gate = compare(base, new, [gate_from("cold_start.total<+50%")]).gates[0]
    assert (gate.measured.method, gate.verdict) == ("none", "undecided")
    assert verdict(base, new, "cold_start.total<60000ms") == "held"


def test_the_figure_of_a_single_run_is_the_one_in_its_result() -> None:
    run = evidence()
    measured = compare([run], [run], [gate_from("network.p90<+1ms")]).gates[0].measured
    [summary] = [stage.summary for stage in run.result.runs[0].stages if stage.name == "network"]
    assert measured.base == measured.new == summary.p90_ms


# Accuracy


def test_poses_are_compared_in_pairs() -> None:
    """Twice as wrong everywhere is certain, though the errors themselves are spread widely."""
    base = [evidence(rotation_deg=ROTATION)]
    worse = [evidence(rotation_deg=tuple(error * 2 for error in ROTATION))]
    assert verdict(base, base, "rotation.p95<+0.1deg", "translation.p95<+5%", "recall_add>-0") == "held"
    assert verdict(base, worse, "rotation.p95<+50%") == "missed"
    assert verdict(base, base, "rotation.p95<5deg") == "held"
    assert verdict(base, base, "rotation.p95<0.5deg") == "missed"
    found = compare(base, worse, [gate_from("rotation.p95<+50%")]).gates[0].measured
    assert found.change == pytest.approx(1)
    assert [found.low, found.high] == pytest.approx([1, 1])


def test_a_lost_pose_is_counted_and_said() -> None:
    base, new = (
        [evidence(rotation_deg=ROTATION)],
        [evidence(rotation_deg=tuple(e if k % 4 else None for k, e in enumerate(ROTATION)))],
    )
    found = compare(base, new, [gate_from("recall_add>-0.02"), gate_from("rotation.p95<+0.1deg")])
    assert [gate.verdict for gate in found.gates] == ["missed", "held"]
    assert any("40 of 40 in BASE, 30 of 40 in NEW" in note for note in found.notes)


def test_other_true_objects_are_compared_as_samples() -> None:
    base, new = [evidence(rotation_deg=ROTATION)], [evidence(rotation_deg=ROTATION[:30])]
    found = compare(base, new, [gate_from("rotation.p95<+0.1deg")]).gates[0].measured
    assert found.high - found.low > 0.1


def test_latency_and_accuracy_are_judged_together() -> None:
    base = [replace_errors(run, ROTATION) for run in several(5)]
    new = [replace_errors(run, tuple(2 * e for e in ROTATION)) for run in several(5, seed=70)]
    found = compare(base, new, [FIVE, gate_from("rotation.p95<+0.5deg")])
    assert [gate.verdict for gate in found.gates] == ["held", "missed"]


def replace_errors(run: Evidence, rotation_deg: Sequence[float]) -> Evidence:
    other = evidence(rotation_deg=rotation_deg).result
    return replace(run, result=replace(run.result, accuracy=other.accuracy, truth_errors=other.truth_errors))


@pytest.mark.parametrize(
    ("gate", "says"),
    [
        ("soak:total.p95<+5%", "mode 'soak'"),
        ("wobble.p95<+5%", "whose stages are detect"),
        ("total.p999<+5%", "too few samples"),
        ("rotation.p95<1deg", "ground truth"),
        ("energy<+5%", "not measured"),
    ],
)
def test_what_was_not_measured_is_refused(gate: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        verdict(several(2), several(2), gate)
    assert says in str(caught.value)


def test_no_share_of_nothing() -> None:
    side = [evidence(np.full(200, 5.0), paced=True)] * 2
    with pytest.raises(InputError, match="own unit"):
        verdict(side, side, "paced:missed_deadlines<+5%")
    assert verdict(side, side, "paced:missed_deadlines<+0.01") == "held"


# What may be compared


OTHER: dict[Allowed, tuple[dict[str, Any], str]] = {
    "machine": ({"machine": replace(MACHINE, cpu=Cpu("Other CPU", 4))}, "processor: Toy CPU, then Other CPU"),
    "bundle": ({"bundle_sha256": "cd" * 32}, f"bundle, sha256: {'ab' * 32}, then {'cd' * 32}"),
    "settings": ({"path": "bank"}, "path: direct, then bank"),
    "invalid": ({"valid": False, "reasons": ("the clock moved",)}, "the clock moved"),
}


@pytest.mark.parametrize("what", ALLOWED)
def test_another_kind_of_run_is_refused_unless_asked_and_the_difference_is_shown(what: Allowed) -> None:
    changed, difference = OTHER[what]
    base, new = [evidence()], [evidence(name="new", **changed)]
    with pytest.raises(InputError) as caught:
        compare(base, new, [])
    assert difference in str(caught.value)
    assert f"--allow {what}" in str(caught.value)
    assert any(difference in note for note in compare(base, new, [], [what]).notes)


def test_runs_of_one_side_are_alike_whatever_is_allowed() -> None:
    mixed = [evidence(name="a"), evidence(name="b", bundle_sha256="cd" * 32)]
    with pytest.raises(InputError, match="runs of one side"):
        compare([evidence()], mixed, [], ALLOWED)


def test_another_power_mode_is_another_machine_and_other_software_is_a_note() -> None:
    slower = replace(MACHINE, cpu=replace(MACHINE.cpu, governor="powersave"))
    with pytest.raises(InputError, match="governor: performance, then powersave"):
        compare([evidence()], [evidence(machine=slower)], [])
    notes = compare([evidence()], [evidence(packages={"numpy": "2.1", "openvino": "1"})], []).notes
    assert notes == ("differs in numpy: 2.0, then 2.1", "differs in openvino: none, then 1")


def test_modes_that_one_side_lacks_do_not_forbid_it() -> None:
    found = compare([evidence()], [evidence(paced=True)], [])
    assert {change.mode for change in found.changes} == {MODE}


# Sides


def test_a_side_is_a_folder_or_a_folder_of_folders(tmp_path: Path) -> None:
    runs = several(3)
    folders = [written(tmp_path, run) for run in runs]
    assert [run.name for run in side_from(tmp_path)] == ["run-0", "run-1", "run-2"]
    [one] = side_from(folders[1])
    assert one == replace(runs[1], folder=folders[1])
    assert side_from(folders[1] / "result.json") == (one,)
    assert (read_result(folders[1]), read_samples(folders[1])) == (one.result, one.samples)


def test_a_baseline_gives_the_verdict_that_its_runs_give_and_is_small(tmp_path: Path) -> None:
    runs, new = [replace_errors(run, ROTATION) for run in several(5)], [replace_errors(several(1)[0], ROTATION)]
    file = tmp_path / "baseline.json"
    write_baseline(file, runs)
    kept = side_from(file)
    gates = [FIVE, gate_from("rotation.p95<+0.5deg")]
    assert plain(compare(kept, new, gates)) == plain(compare(runs, new, gates))
    assert file.stat().st_size < 5 * 6000


def plain(found: Comparison) -> Comparison:
    return replace(found, base=())


def test_a_baseline_of_one_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 run"):
        write_baseline(tmp_path / "b.json", several(1))
    assert not list(tmp_path.iterdir())
    with pytest.raises(OutputError):
        write_baseline(tmp_path / "none" / "b.json", several(2))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda plain: plain | {"baseline": 2}, "got 2, expected 1"),
        (lambda plain: plain["runs"][0], "got None, expected 1"),
        (lambda plain: [], "baseline"),
        (lambda plain: plain | {"runs": plain["runs"][:1]}, "got 1, expected 2"),
        (lambda plain: plain | {"runs": [run | {"format": 99} for run in plain["runs"]]}, "99"),
        (lambda plain: plain | {"runs": [run | {"wobble": 1} for run in plain["runs"]]}, "wobble"),
    ],
)
def test_a_baseline_of_another_schema_is_refused(change: Any, says: str, tmp_path: Path) -> None:
    file = tmp_path / "baseline.json"
    write_baseline(file, several(2))
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(InputError) as caught:
        side_from(file)
    assert says in str(caught.value)
    assert "posekit baseline" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\x00\xff", b"[" * 10000, b'{"baseline": 1}', b"NaN"])
def test_what_is_no_baseline_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "b.json").write_bytes(content)
    with pytest.raises(InputError):
        side_from(tmp_path / "b.json")


def test_a_place_without_evidence_is_refused(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match="posekit bench"):
            side_from(place)


def test_a_run_without_its_samples_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path, evidence())
    (folder / "samples.json").unlink()
    with pytest.raises(InputError, match=r"samples\.json|result"):
        side_from(folder)


def test_correlated_passes_make_single_runs_less_certain() -> None:
    calm = [evidence(latencies_ms(1, within=0.001))], [evidence(latencies_ms(2, within=0.001))]
    noisy = [evidence(latencies_ms(1, within=0.1))], [evidence(latencies_ms(2, within=0.1))]
    widths = [m.high - m.low for m in (compare(*sides, [FIVE]).gates[0].measured for sides in (calm, noisy))]
    assert widths[1] > 10 * widths[0]
