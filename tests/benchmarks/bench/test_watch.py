"""The watching process: it reads while the block runs, ends with it and with its parent, and its death is said."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sensor_trees import program, sampled_machine, write

from posekit.benchmarks.bench import watch
from posekit.benchmarks.bench.energy import Phase
from posekit.benchmarks.bench.result import Watched
from posekit.benchmarks.bench.sampler import BUDGET, LONGEST_PAUSE_S, pause_s
from posekit.benchmarks.bench.watch import Watch, watching

TIMEOUT_S = 20.0
Started = list[subprocess.Popen[bytes]]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    """The processes that were started, newest last."""
    processes: Started = []

    class Remembered(subprocess.Popen[bytes]):
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, **options)  # type: ignore[call-overload]
            processes.append(self)

    monkeypatch.setattr(subprocess, "Popen", Remembered)
    return processes


def wait_until(true: Callable[[], bool]) -> bool:
    end_s = time.monotonic() + TIMEOUT_S
    while not (found := true()) and time.monotonic() < end_s:
        time.sleep(0.02)
    return found


def is_alive(pid: int) -> bool:
    """A process that only waits to be reaped is dead."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@contextmanager
def watched_run(root: Path, changes: Callable[[], None] = lambda: None) -> Iterator[Watch]:
    """A run in which `changes` happens: every source is read before the block begins and after it has ended."""
    with watching(0.02, root=root) as seen:
        changes()
    yield seen


def test_this_machine_is_read_while_the_block_runs(started: Started) -> None:
    with watching(0.02) as seen, seen.during("busy"):
        time.sleep(0.3)
    assert started[0].returncode == 0
    times = [t_s for t_s, _ in seen.readings["memory.rss"]]
    assert times == sorted(times)
    assert seen.phases[0].start_s <= seen.phases[0].end_s <= times[-1]
    assert {one.source for one in seen.watched} == set(seen.readings)
    assert not any("not watched" in reason for reason in seen.reasons)
    rss_mb = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    assert seen.readings["memory.rss"][-1][1] == pytest.approx(rss_mb, rel=0.3)


def test_a_machine_without_sensors_is_said_and_no_reason(tmp_path: Path) -> None:
    with watched_run(tmp_path) as seen:
        pass
    assert seen.reasons == ()
    assert set(seen.readings) <= {"sampler.cpu"}
    assert any("power rails (hwmon)" in note and note.startswith("Not on this machine:") for note in seen.notes)
    assert "No power rail is readable: energy is not known." in seen.notes


def test_a_jetson_that_stands_still_is_valid(tmp_path: Path) -> None:
    with watched_run(sampled_machine("jetson-agx-orin", tmp_path)) as seen:
        pass
    assert seen.reasons == ()
    assert "Power is the sum of VDD_CPU_CV, VDD_GPU_SOC, VIN_SYS_5V0." in seen.notes
    assert not any("not locked" in note for note in seen.notes)
    gpu = next(one for one in seen.watched if one.source == "clock.17000000.ga10b")
    assert gpu == Watched("clock.17000000.ga10b", "MHz", *[1300.5] * 5)


def test_energy_is_of_the_named_part_above_the_idling_machine() -> None:
    """Ten seconds at 5 W, then ten at 15 W, with a reading every 0.5 s."""
    seen = Watch(0.0, phases=[Phase("idle", 0.0, 10.0), Phase("run", 10.0, 20.0)])
    lines = [[n / 2, {"power.VDD_IN": 5.0 if n <= 20 else 15.0}] for n in range(42)]
    watch._fill(seen, [{"notes": ["a note."]}, *lines], 20.5, True, (None, None))
    found = seen.energy("run", 50)
    assert found is not None
    assert (found.j_per_pose, found.above_idle_j_per_pose) == pytest.approx((15 * 10 / 50, 10 * 10 / 50))
    assert seen.notes == ("a note.", "Power is the sum of VDD_IN; 5.0 W when idle, measured for 10.0 s.")
    assert seen.reasons == ()


def test_clocks_that_are_not_locked_are_a_note(tmp_path: Path) -> None:
    with watched_run(sampled_machine("jetson-orin-nano", tmp_path)) as seen:
        pass
    assert seen.reasons == ()
    (note,) = [note for note in seen.notes if note.startswith("Clocks are not locked")]
    assert "cpu0 (schedutil, 729600 to 1728000)" in note
    assert seen.settings["cpu0.governor"] == "schedutil"


CLOCK_FILES = ("scaling_cur_freq", "scaling_min_freq", "scaling_max_freq")
CPU0 = "sys/devices/system/cpu/cpufreq/policy0"
THROTTLE = [
    (f"{CPU0}/scaling_governor", "powersave", "run: cpu0.governor went from performance to powersave."),
    (f"{CPU0}/scaling_max_freq", 1200000, "run: cpu0.highest went from 2201600 to 1200000."),
    (f"{CPU0}/scaling_cur_freq", 1200000, "run: the clock of cpu0 moved between 1200 and 2202 MHz."),
    ("sys/class/devfreq/17000000.ga10b/cur_freq", 510000000, "run: the clock of 17000000.ga10b moved between 510 and"),
    ("sys/class/devfreq/17000000.ga10b/max_freq", 9, "run: 17000000.ga10b.highest went from 1300500000 to 9."),
    ("sys/class/thermal/cooling_device1/cur_state", 1, "run: CPU-throttle-alert was throttled."),
    ("var/lib/nvpmodel/status", "pmode:0003", "run: power mode (nvpmodel) went from pmode:0000 to pmode:0003."),
    ("sys/devices/system/cpu/online", "0-3", "run: processors that are on went from 0-11 to 0-3."),
]


@pytest.mark.parametrize(("path", "text", "reason"), THROTTLE, ids=[path.split("/")[-1] for path, _, _ in THROTTLE])
def test_what_changes_on_a_machine_is_a_reason(tmp_path: Path, path: str, text: object, reason: str) -> None:
    root = sampled_machine("jetson-agx-orin", tmp_path)
    with watched_run(root, lambda: write(root, path, text)) as seen:
        pass
    assert [one[: len(reason)] for one in seen.reasons] == [reason]


def test_a_changed_power_mode_is_named_as_nvpmodel_does(tmp_path: Path) -> None:
    root = sampled_machine("jetson-agx-orin", tmp_path)
    (root / "usr/sbin").mkdir(parents=True)
    program(root, "../sbin/nvpmodel", "printf 'NV Power Mode: '", f"cat {root}/mode")
    write(root, "mode", "MAXN\n0")
    with watched_run(root, lambda: write(root, "mode", "15W\n2")) as seen:
        pass
    assert seen.reasons == ("run: power mode went from MAXN to 15W.",)


def test_a_power_mode_of_which_only_the_ends_are_known_concerns_every_part() -> None:
    seen = Watch(0.0, phases=[Phase("sequential", 0.0, 2.0), Phase("paced", 90.0, 92.0)])
    lines = [[n / 2, {"memory.rss": 1.0}] for n in range(190)]
    watch._fill(seen, [{"notes": []}, *lines], 94.0, True, ("MAXN", None))
    assert [reason.split(":")[0] for reason in seen.reasons] == ["sequential", "paced"]


@pytest.fixture
def few_open_files() -> Iterator[None]:
    """As many as a process may usually have open at first; it may raise that itself."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= before[1] < 4096:
        pytest.skip("this machine does not allow many open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("few_open_files")
def test_a_server_with_more_files_than_a_process_may_open_at_first(tmp_path: Path) -> None:
    files = {"scaling_governor": "powersave", "cpuinfo_max_freq": 9, **dict.fromkeys(CLOCK_FILES, 3400000)}
    for n in range(320):
        for name, text in files.items():
            write(tmp_path, f"sys/devices/system/cpu/cpufreq/policy{n}/{name}", text)
    with watched_run(tmp_path) as seen:
        pass
    assert seen.reasons == ()
    assert len([name for name in seen.settings if name.endswith(".governor")]) == 320
    assert [one.last for one in seen.watched if one.source == "clock.cpu0"] == [3400.0]


def test_nobody_waits_for_idle_power_that_cannot_be_read(tmp_path: Path) -> None:
    with watching(root=tmp_path) as seen:
        seen.idle(3600.0)
    assert seen.phases == []


def test_an_error_in_the_block_is_the_one_that_is_seen(started: Started) -> None:
    with pytest.raises(ZeroDivisionError), watching(0.02) as seen, seen.during("run"):
        _ = 1 / 0
    assert started[0].returncode == 0
    assert seen.phases[0].name == "run"


def test_a_reader_that_is_killed_is_a_reason_and_its_readings_stay(started: Started) -> None:
    with watching(0.02) as seen:
        time.sleep(0.2)
        started[0].kill()
        started[0].wait()
    assert any("not watched to the end: the reading process ended early (SIGKILL)" in one for one in seen.reasons)
    assert seen.readings["memory.rss"]


def test_a_reader_that_hangs_is_ended_and_a_reason(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "END_TIMEOUT_S", 0.3)
    with watching(0.02) as seen:
        os.kill(started[0].pid, signal.SIGSTOP)
    assert started[0].returncode == -signal.SIGKILL
    assert any("did not answer at the end" in reason for reason in seen.reasons)


@pytest.mark.parametrize(
    ("module", "cause"), [("posekit.no_such_module", "No module named posekit.no_such_module"), ("this", "")]
)
def test_a_reader_that_cannot_start_is_a_reason_with_its_cause(
    monkeypatch: pytest.MonkeyPatch, module: str, cause: str
) -> None:
    """Also another program in its place, which says something and ends well."""
    monkeypatch.setattr(watch, "SAMPLER", module)
    with watching(0.02) as seen, seen.during("run"):
        pass
    (reason,) = seen.reasons
    assert "did not begin to read" in reason
    assert cause in reason
    assert seen.readings == {}


def test_no_python_is_a_reason_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with watching(0.02) as seen:
        pass
    (reason,) = seen.reasons
    assert "could not be started" in reason


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "raise SystemExit(3)"])
def test_the_reader_ends_with_its_parent(end: str) -> None:
    """However it ends, and also where a forked child keeps the pipe open."""
    script = f"""
import os, signal, subprocess, time
from posekit.benchmarks.bench.watch import watching
started, real = [], subprocess.Popen
class Remembered(real):
    def __init__(self, *a, **k):
        super().__init__(*a, **k)
        started.append(self.pid)
subprocess.Popen = Remembered
with watching(0.02):
    child = os.fork()
    if child == 0:
        os.closerange(0, 3)
        time.sleep(600)
    print(started[0], child, flush=True)
    {end}
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid, child = map(int, parent.stdout.readline().split())
    try:
        parent.wait(TIMEOUT_S)
        assert wait_until(lambda: not is_alive(pid))
    finally:
        parent.stdout.close()
        os.kill(child, signal.SIGKILL)


def test_the_programs_of_the_reader_end_with_it(tmp_path: Path) -> None:
    line = "RAM 1/2MB cpu@50C VDD_IN 4824mW/4824mW"
    program(tmp_path, "tegrastats", f"echo $$ > {tmp_path}/pid", f"echo '{line}'", "exec sleep 600")
    with watching(0.02, root=tmp_path) as seen:
        assert wait_until(lambda: (tmp_path / "pid").is_file() and bool((tmp_path / "pid").read_text().strip()))
        time.sleep(0.1)
    assert wait_until(lambda: not is_alive(int((tmp_path / "pid").read_text())))
    assert seen.readings["power.VDD_IN"][0][1] == pytest.approx(4.824)


def test_ctrl_c_reaches_the_benchmark_alone(started: Started) -> None:
    """The reader is in no group that a terminal interrupts."""
    with watching(0.02):
        assert os.getpgid(started[0].pid) != os.getpgid(0)


def test_the_reader_loads_neither_numpy_nor_torch() -> None:
    code = "import posekit.benchmarks.bench.sampler, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"numpy", "torch", "onnxruntime", "openvino"} & {name.split(".")[0] for name in done.stdout.split()}


@given(st.floats(0.001, 2), st.floats(0, 5), st.floats(0, 5))
def test_reading_takes_no_more_than_its_budget(interval_s: float, took_s: float, cpu_s: float) -> None:
    """Except where one reading alone costs more than the longest pause allows; and never faster than asked."""
    pause = pause_s(interval_s, took_s, cpu_s)
    assert 0 <= pause <= LONGEST_PAUSE_S
    assert pause == LONGEST_PAUSE_S or took_s + pause >= interval_s * 0.999
    assert pause == LONGEST_PAUSE_S or cpu_s <= BUDGET * (took_s + pause) * 1.001


def test_lines_that_a_killed_process_cut_off_are_left_out() -> None:
    whole = [{"notes": []}, [0.1, {"clock.cpu0": 1.0}]]
    text = "".join(json.dumps(line) + "\n" for line in whole)
    for cut in range(len(text) + 1):
        assert watch._lines(text[:cut]) == whole[: text[:cut].count("\n")]


def test_what_is_rare_is_read_once_more_at_the_end(tmp_path: Path) -> None:
    root = sampled_machine("jetson-orin-nano", tmp_path)
    with watching(0.02, root=root) as seen, seen.during("run"):
        write(root, "sys/class/hwmon/hwmon3/oc3_event_cnt", 40)
    assert seen.reasons == ("run: the machine was throttled 3 times (oc3).",)
