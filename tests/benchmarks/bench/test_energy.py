"""Energy per pose: laws of power and time, and which rails add up to the machine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posekit.benchmarks.bench.energy import Phase, energy, power_w, total_rails
from posekit.benchmarks.bench.result import Readings

RUN, IDLE = Phase("sequential", 10.0, 30.0), Phase("idle", 0.0, 10.0)


def constant(**watts: float) -> Readings:
    return {f"power.{name}": tuple((n / 10, value) for n in range(301)) for name, value in watts.items()}


@given(st.floats(0, 500), st.integers(1, 10_000))
def test_constant_power_costs_power_times_time(watts: float, poses: int) -> None:
    found = energy(constant(VDD_IN=watts), RUN, poses, IDLE)
    assert found is not None
    assert found.mean_w == pytest.approx(watts)
    assert found.j_per_pose * poses == pytest.approx(watts * 20.0)
    assert found.above_idle_j_per_pose == pytest.approx(0.0, abs=1e-6)
    assert (found.idle_s, found.rails) == (10.0, ("VDD_IN",))


def test_idle_power_is_taken_off_and_both_are_told() -> None:
    readings = {"power.VDD_IN": tuple((n / 10, 5.0 if n <= 100 else 15.0) for n in range(301))}
    found = energy(readings, RUN, 200, IDLE)
    assert found is not None
    assert found.idle_w == pytest.approx(5.0)
    assert found.mean_w == pytest.approx(15.0)
    assert found.j_per_pose == pytest.approx(1.5)
    assert found.above_idle_j_per_pose == pytest.approx(1.0)


def test_without_an_idle_phase_only_the_whole_is_known() -> None:
    found = energy(constant(VDD_IN=5.0), RUN, 10)
    assert found is not None
    assert (found.idle_w, found.idle_s, found.above_idle_j_per_pose) == (None, None, None)


@given(st.lists(st.tuples(st.floats(0.01, 3), st.floats(0, 300)), min_size=1, max_size=30))
def test_each_reading_holds_for_the_time_since_the_one_before(steps: list[tuple[float, float]]) -> None:
    """However unevenly they come: it is what an energy counter has counted, divided by the time."""
    t_s, joules, series = 0.0, 0.0, []
    for seconds, watts in steps:
        t_s, joules = t_s + seconds, joules + seconds * watts
        series.append((t_s, watts))
    mean_w = power_w({"power.package-0": tuple(series)}, ("package-0",), Phase("run", 0.0, t_s))
    assert mean_w == pytest.approx(joules / t_s)


@pytest.mark.parametrize("poses", [0, -1])
def test_no_pose_has_no_energy(poses: int) -> None:
    assert energy(constant(VDD_IN=5.0), RUN, poses, IDLE) is None


def test_no_rail_or_none_during_the_run_is_no_energy() -> None:
    assert energy({}, RUN, 10, IDLE) is None
    assert energy({"temperature.cpu": ((11.0, 50.0),)}, RUN, 10) is None
    assert energy({"power.VDD_IN": ((1.0, 5.0), (40.0, 5.0))}, RUN, 10) is None


def test_a_rail_that_is_missing_makes_the_sum_unknown_not_smaller() -> None:
    readings = {**constant(**{"package-0": 50.0}), "power.package-1": ((1.0, 50.0),)}
    assert power_w(readings, total_rails(tuple(readings)), RUN) is None


@pytest.mark.parametrize(
    ("rails", "total"),
    [
        (("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"), ("VDD_IN",)),
        (("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"), ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")),
        (("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0", "VIN", "gpu0"), ("VIN",)),
        (("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"), ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0")),
        (("package-0", "package-0.dram", "package-1", "gpu0"), ("package-0", "package-0.dram", "package-1", "gpu0")),
        (("gpu0", "gpu1"), ("gpu0", "gpu1")),
        (("POM_5V_GPU", "POM_5V_IN", "POM_5V_CPU"), ("POM_5V_IN",)),
        (("PPT",), ()),
        ((), ()),
    ],
)
def test_rails_inside_another_are_not_counted_twice(rails: tuple[str, ...], total: tuple[str, ...]) -> None:
    assert total_rails([f"power.{rail}" for rail in rails] + ["clock.cpu0"]) == total
