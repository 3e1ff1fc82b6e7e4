"""Readings of /proc and /sys: machines in recorded layouts, laws of counters, and files that are absent or garbage."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sensor_trees import PID, SAMPLES, sampled_machine, write

from posekit.benchmarks.bench import linux_sensors, sensors
from posekit.benchmarks.bench.linux_sensors import busy_ticks, process_ticks
from posekit.benchmarks.bench.sensors import KINDS, SOURCES, open_sources, unit

MACHINES = sorted(path.stem for path in SAMPLES.glob("*.txt") if path.stem not in ("tegrastats", "nvidia-smi"))


def readings_of(root: Path) -> dict[str, float]:
    """Of every source at once."""
    found: dict[str, float] = {}
    for _, read in open_sources(root, PID)[0]:
        found |= read(1.0)
    return found


def test_a_jetson_orin_nano(tmp_path: Path) -> None:
    """Rails are volts times amperes; the sensor of a unit without power is left out; a fan or a hot surface is no throttle."""
    assert readings_of(sampled_machine("jetson-orin-nano", tmp_path)) == pytest.approx(
        {
            "clock.cpu0": 1510.4,
            "clock.cpu4": 729.6,
            "clock.17000000.gpu": 1020.0,
            "busy.17000000.gpu": 47.3,
            "power.VDD_IN": 4.984 * 1.856,
            "power.VDD_CPU_GPU_CV": 4.984 * 0.416,
            "power.VDD_SOC": 4.976 * 0.288,
            "temperature.cpu-thermal": 51.687,
            "temperature.gpu-thermal": 48.5,
            "temperature.tj-thermal": 53.968,
            "alert.cpu-throttle-alert": 0.0,
            "alert.gpu-throttle-alert": 0.0,
            "state.cpufreq-cpu0": 0.0,
            "state.devfreq-17000000.gpu": 0.0,
            "count.oc1": 0.0,
            "count.oc2": 0.0,
            "count.oc3": 37.0,
        }
    )


def test_a_jetson_agx_orin(tmp_path: Path) -> None:
    """Two chips; a channel that is not connected has no rail; a locked GPU and its memory clock."""
    found = readings_of(sampled_machine("jetson-agx-orin", tmp_path))
    rails = {name: value for name, value in found.items() if name.startswith("power.")}
    assert rails == pytest.approx(
        {
            "power.VDD_GPU_SOC": 19.864 * 0.160,
            "power.VDD_CPU_CV": 19.864 * 0.720,
            "power.VIN_SYS_5V0": 4.968 * 0.953,
            "power.VDDQ_VDD2_1V8AO": 4.968 * 0.220,
        }
    )
    clocks = {name: value for name, value in found.items() if name.startswith("clock.")}
    assert clocks == pytest.approx(
        dict.fromkeys(("clock.cpu0", "clock.cpu4", "clock.cpu8"), 2201.6)
        | {"clock.17000000.ga10b": 1300.5, "clock.bwmgr": 3199.0}
    )


def test_a_jetson_agx_thor(tmp_path: Path) -> None:
    """The chip at the input tells watts itself, under the label of its voltage; one alert is up."""
    found = readings_of(sampled_machine("jetson-agx-thor", tmp_path))
    assert found["power.VIN"] == pytest.approx(58.0)
    assert found["power.VDD_GPU"] == pytest.approx(19.7 * 1.25)
    assert (found["alert.gpu-throttle-alert"], found["alert.cpu-throttle-alert"]) == (1.0, 0.0)
    assert (found["state.devfreq-gpu-gpc-0"], found["count.oc3"]) == (18.0, 813.0)
    assert {"clock.gpu-gpc-0", "clock.gpu-nvd-0", "clock.bwmgr"} <= set(found)


def test_a_server_with_two_packages(tmp_path: Path) -> None:
    """RAPL has power only from its second reading on; zones of one type are numbered; batteries are no rails."""
    root = sampled_machine("xeon-server", tmp_path)
    opened = open_sources(root, PID)[0]
    first = {name: value for _, read in opened for name, value in read(10.0).items()}
    assert first == pytest.approx(
        {
            "clock.cpu0": 3400.0,  # four policies of one highest clock: the fastest processor counts
            "temperature.acpitz": 27.8,
            "temperature.x86_pkg_temp.1": 54.0,
            "temperature.x86_pkg_temp.2": 51.0,
            "state.Processor": 0.0,
            "state.intel_powerclamp": 0.0,
            "count.thermal-throttle": 0 + 1 + 2 + 3 + 4 * 2,
            "count.control-group-limit": 3.0,
            "memory.rss": 25000 * os.sysconf("SC_PAGE_SIZE") / 1e6,
        }
    )
    write(root, "sys/class/powercap/intel-rapl:0/energy_uj", 99_671_150)  # wrapped: 100 J more
    write(root, "sys/class/powercap/intel-rapl:0:0/energy_uj", 65_712_000_000)
    write(root, "sys/class/powercap/intel-rapl:1/energy_uj", 31_000_000)
    second = {name: value for _, read in opened for name, value in read(12.0).items()}
    watts = {name: value for name, value in second.items() if name.startswith("power.")}
    assert watts == pytest.approx(
        {
            "power.package-0": (262_143_328_850 - 262_143_000_000 + 99_671_150) * 1e-6 / 2,
            "power.package-0.dram": 0.0,
            "power.package-1": 15.0,
            "power.package-1.dram": 0.0,
        }
    )


def test_a_desktop_whose_processor_is_no_thermal_zone(tmp_path: Path) -> None:
    found = readings_of(sampled_machine("ryzen-desktop", tmp_path))
    assert found == pytest.approx({"clock.cpu0": 4200.0, "temperature.k10temp": 61.25, "power.PPT": 17.042})


def test_a_container_of_the_first_cgroup_version(tmp_path: Path) -> None:
    """Its own group is the root of what it sees, whatever the path of its processes says."""
    assert readings_of(sampled_machine("container-cgroup-v1", tmp_path)) == {"count.control-group-limit": 14.0}


def test_an_empty_machine_has_no_source_and_says_so(tmp_path: Path) -> None:
    found, notes = open_sources(tmp_path, PID)
    assert found == []
    assert len(notes) == 1
    assert all(source.name in notes[0] for source in SOURCES)
    assert linux_sensors.settings(tmp_path)() == {}


@pytest.mark.parametrize("name", MACHINES)
def test_every_reading_has_a_unit(tmp_path: Path, name: str) -> None:
    for reading in readings_of(sampled_machine(name, tmp_path)):
        assert unit(reading) in KINDS.values()


@pytest.mark.parametrize("name", MACHINES)
def test_garbage_in_any_one_file_spoils_no_other_source(tmp_path: Path, name: str) -> None:
    """Each file in turn is replaced by garbage after it was opened; what is read then is a part of what was there."""
    root = sampled_machine(name, tmp_path)
    whole = set(readings_of(root))
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        text = path.read_bytes()
        opened = open_sources(root, PID)[0]
        for garbage in (b"", b"\xff\xfe\x0012 34"):
            path.write_bytes(garbage)
            found: set[str] = set()
            for source, read in opened:
                try:
                    found |= set(read(2.0))
                except (OSError, ValueError, LookupError):  # as the sampling process does
                    assert source.name in ("load of other processes", "memory of the process")
            assert found <= whole | {"load.others"} | {name for name in found if name.startswith("power.package")}
        path.write_bytes(text)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_counters_that_only_root_may_read_are_a_note(tmp_path: Path) -> None:
    root = sampled_machine("xeon-server", tmp_path)
    (root / "sys/class/powercap/intel-rapl:0/energy_uj").chmod(0)
    assert "RAPL energy counters: there, but not readable by this user." in open_sources(root, PID)[1]


def test_a_source_without_permission_is_a_note_and_not_an_absence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(root: Path, pid: int) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(sensors, "SOURCES", (sensors.Source("RAPL energy counters", 0.0, refuses),))
    assert open_sources(tmp_path, PID) == ([], ["RAPL energy counters: there, but not readable by this user."])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 999), st.floats(0.01, 10)), min_size=1, max_size=20), st.integers(0, 999))
def test_power_times_time_is_what_a_counter_has_counted(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, float]], start_uj: int
) -> None:
    """However often it wraps, as long as it does so less than once between two readings."""
    root, wraps_at = tmp_path_factory.mktemp("rapl"), 1000
    zone = "sys/class/powercap/intel-rapl:0"
    for file, value in (("name", "package-0"), ("max_energy_range_uj", wraps_at), ("energy_uj", start_uj)):
        write(root, f"{zone}/{file}", value)
    read = linux_sensors.rapl(root, PID)
    assert read is not None
    assert read(0.0) == {}
    t_s, joules, total_uj = 0.0, 0.0, start_uj
    for uj, seconds in steps:
        t_s, total_uj = t_s + seconds, total_uj + uj
        write(root, f"{zone}/energy_uj", total_uj % wraps_at)
        joules += read(t_s)["power.package-0"] * seconds
    assert joules == pytest.approx((total_uj - start_uj) * 1e-6, abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=2, max_size=20))
def test_load_of_others_adds_up_to_what_others_used(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, int]]
) -> None:
    """Coarse ticks may seem to give the process more than all used; over the whole time that evens out."""
    root, tick_s = tmp_path_factory.mktemp("load"), 1 / os.sysconf("SC_CLK_TCK")
    own, others = 0, 0

    def told(t_s: float) -> dict[str, float]:
        write(root, "proc/stat", f"cpu 0\ncpu0 {own} 0 0 777 9 0 {others} 0 0 0")
        write(root, f"proc/{PID}/stat", f"{PID} (a) R {' '.join(['0'] * 10)} {own} 0 0 0 20 0")
        if t_s == 0.0:
            told.read = linux_sensors.load_of_others(root, PID)  # type: ignore[attr-defined]
        found: dict[str, float] = told.read(t_s)  # type: ignore[attr-defined]
        return found

    assert told(0.0) == {}
    seconds = 0.0
    for n, (mine, theirs) in enumerate(steps):
        own, others = own + mine, others + theirs
        load = told((n + 1) * 0.5)["load.others"]
        assert load >= 0
        seconds += load * 0.5
    assert seconds == pytest.approx(others * tick_s, abs=0.5)  # abs: this process's own time is taken off


def test_busy_ticks_are_of_the_named_processors_and_not_idle_ones() -> None:
    stat = "cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 1 2 4 800 900 8 16 32 64 128\ncpu1 100 0 0 5 5 0 0 0 0 0\nintr 5 0 5\n"
    assert busy_ticks(stat, {"0"}) == 1 + 2 + 4 + 8 + 16 + 32  # neither idle, nor waiting, nor guests twice
    assert busy_ticks(stat, None) == 63 + 100
    assert busy_ticks(stat, {"7"}) == 0


@given(st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0\n"), max_size=15))
def test_the_name_of_a_process_may_be_anything(name: str) -> None:
    stat = f"7 ({name}) S 1 7 7 0 -1 4194304 500 0 0 0 250 50 7 3 20 0 9 0 1576160"
    assert process_ticks(stat) == 250 + 50 + 7 + 3


def test_settings_name_the_limits_of_the_clocks_that_are_read(tmp_path: Path) -> None:
    root = sampled_machine("jetson-agx-orin", tmp_path)
    found = linux_sensors.settings(root)()
    for clock in (name for name in readings_of(root) if name.startswith("clock.")):
        assert found[f"{clock.removeprefix('clock.')}.lowest"] == found[f"{clock.removeprefix('clock.')}.highest"]
    assert found["power mode (nvpmodel)"] == "pmode:0000"


def test_this_machine_can_be_read() -> None:
    """Whatever it has: its own process and the load of the others are there, on any Linux."""
    found, notes = open_sources(Path("/"), os.getpid())
    names = {source.name for source, _ in found}
    assert {"load of other processes", "memory of the process"} <= names
    values = {name: value for _, read in found for name, value in read(0.0).items()}
    assert values["memory.rss"] > 1.0
    assert all(note.endswith(".") for note in notes)
