"""NVIDIA's tools: recorded lines, programs in their place, and a simulated pynvml with the names of the real one.

No GPU and no Jetson has run this; nvidia-ml-py 13.615 has every function and constant that is simulated here.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sensor_trees import PID, SAMPLES, program, sampled_machine

from posekit.benchmarks.bench import nvidia_sensors
from posekit.benchmarks.bench.nvidia_sensors import (
    HELD_BACK,
    INITIAL_PID_NAMESPACE,
    SMI_FIELDS,
    Lines,
    count_others,
    nvidia_smi,
    nvml,
    nvml_processes,
    pids_from_smi,
    readings_from_smi,
    readings_from_tegrastats,
    tegrastats,
)

TEGRASTATS = (SAMPLES / "tegrastats.txt").read_text().splitlines()
SMI = (SAMPLES / "nvidia-smi.txt").read_text().splitlines()
ROOT = Path("/")


def test_tegrastats_of_an_orin_nano() -> None:
    assert readings_from_tegrastats(TEGRASTATS[1]) == pytest.approx(
        {
            "power.VDD_IN": 4.824,
            "power.VDD_CPU_GPU_CV": 0.518,
            "power.VDD_SOC": 1.475,
            "temperature.cpu": 50.031,
            "temperature.soc2": 49.031,
            "temperature.soc0": 50.0,
            "temperature.gpu": 49.031,
            "temperature.tj": 50.25,
            "temperature.soc1": 50.25,
            "busy.gpu": 0.0,
        }
    )


def test_tegrastats_of_an_agx_orin_as_root_tells_the_clock_and_an_offline_sensor() -> None:
    found = readings_from_tegrastats(TEGRASTATS[3])
    assert (found["busy.gpu"], found["clock.gpu"]) == (14.0, 407.0)
    assert found["power.VDD_GPU_SOC"] == pytest.approx(3.150)  # the present value, not the mean
    assert found["power.VDDQ_VDD2_1V8AO"] == pytest.approx(1.091)
    assert "temperature.CV0" not in found
    assert found["temperature.CPU"] == 77.281


def test_tegrastats_before_jetpack_5_has_no_units() -> None:
    found = readings_from_tegrastats(TEGRASTATS[5])
    rails = {name: value for name, value in found.items() if name.startswith("power.")}
    assert rails == pytest.approx({"power.VDD_SYS_GPU": 0.182, "power.VDD_4V0_WIFI": 0.0, "power.VDD_IN": 5.297})
    assert (found["clock.gpu"], found["temperature.GPU"]) == (114.0, 39.5)


@given(st.text(max_size=200))
def test_any_other_line_has_only_finite_readings(line: str) -> None:
    for found in (readings_from_tegrastats(line), readings_from_smi(line)):
        assert all(abs(value) < float("inf") for value in found.values())


def test_nvidia_smi_tells_each_gpu_and_what_holds_it_back() -> None:
    calm, hot, idle, silent = (readings_from_smi(line) for line in SMI)
    assert calm == pytest.approx(
        {"clock.gpu0": 1980.0, "power.gpu0": 312.45, "temperature.gpu0": 61.0, "busy.gpu0": 97.0, "alert.gpu0": 0.0}
    )
    assert hot["alert.gpu0"] == 0x04 | 0x20
    assert (idle["clock.gpu1"], idle["alert.gpu1"]) == (210.0, 0.0)  # idleness holds nothing back
    assert set(silent) == {"clock.gpu0", "temperature.gpu0"}  # what is not supported is absent, not nought


def test_processes_are_counted_per_gpu() -> None:
    assert pids_from_smi(["GPU-a, 10", "GPU-b, 11", "GPU-a, 12", "", "[N/A], [N/A]"]) == {
        "GPU-a": {10, 12},
        "GPU-b": {11},
    }


def test_others_are_all_but_the_watched_process() -> None:
    inside, outside = "pid:[4026532233]", INITIAL_PID_NAMESPACE
    assert count_others([7, 8, 9], 8, outside) == 2
    assert count_others([8], 8, outside) == 0
    assert count_others([7], 8, outside) == 1  # the run is not on this GPU, somebody is
    assert count_others([31337], 8, inside) == 0  # a container's own process under the number that the machine gave it
    assert count_others([31337, 31338], 8, inside) == 1
    assert count_others([], 8, inside) == count_others([], 8, outside) == 0


def test_tegrastats_is_read_while_it_runs(tmp_path: Path) -> None:
    program(
        tmp_path, "tegrastats", 'test "$1 $2" = "--interval 500" || exit 1', f"echo '{TEGRASTATS[1]}'", "exec sleep 60"
    )
    read = tegrastats(tmp_path, PID)
    assert read is not None
    assert _soon(lambda: read(0.0))["power.VDD_IN"] == pytest.approx(4.824)
    assert read(0.0) == {}  # nothing new


def test_tegrastats_is_left_alone_where_rails_can_be_read(tmp_path: Path) -> None:
    program(tmp_path, "tegrastats", "exec sleep 60")
    assert tegrastats(sampled_machine("jetson-orin-nano", tmp_path), PID) is None


def test_nvidia_smi_is_read_while_it_runs(tmp_path: Path) -> None:
    fields = ",".join(SMI_FIELDS)
    program(
        tmp_path,
        "nvidia-smi",
        'case "$1" in',
        "-L) exit 0;;",
        f"--query-gpu={fields}) echo '{SMI[0]}'; exec sleep 60;;",
        f"--query-compute-apps=gpu_uuid,pid) printf 'GPU-a, %s\\n' {PID} 99; echo 'GPU-b, 7'; echo 'GPU-b, 8'; echo 'GPU-b, 9'; exec sleep 60;;",
        "esac",
    )
    read = nvidia_smi(tmp_path, PID)
    assert read is not None
    time.sleep(0.3)  # both have spoken
    found = _soon(lambda: read(0.0))
    assert (found["clock.gpu0"], found["others.gpu"]) == (1980.0, 1.0)


@pytest.mark.parametrize("script", ["exit 9", "exec sleep 60"])
def test_an_nvidia_smi_without_a_driver_is_no_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    monkeypatch.setattr(nvidia_sensors, "ANSWER_TIMEOUT_S", 0.3)
    program(tmp_path, "nvidia-smi", script)
    assert nvidia_smi(tmp_path, PID) is None


def test_a_program_that_ended_is_an_error_once_all_is_read() -> None:
    lines = Lines([sys.executable, "-c", "print('a'); print('b'); print('half', end='')"])
    lines.program.wait(30)
    assert lines.new() == ["a", "b"]
    with pytest.raises(OSError, match="ended"):
        lines.new()


class Simulated(ModuleType):
    """pynvml of one GPU. unsupported: functions that this GPU does not have."""

    NVML_CLOCK_SM, NVML_TEMPERATURE_GPU = 1, 0

    class NVMLError(Exception):
        pass

    def __init__(self, pids: tuple[int, ...] = (), reasons: int = 0, unsupported: tuple[str, ...] = ()) -> None:
        super().__init__("pynvml")
        self.pids, self.reasons, self.unsupported = pids, reasons, unsupported
        answers: dict[str, Callable[..., object]] = {
            "nvmlInit": lambda: None,
            "nvmlDeviceGetCount": lambda: 1,
            "nvmlDeviceGetHandleByIndex": lambda index: f"handle {index}",
            "nvmlDeviceGetClockInfo": lambda gpu, kind: {1: 1980}[kind],
            "nvmlDeviceGetPowerUsage": lambda gpu: 312_450,
            "nvmlDeviceGetTemperature": lambda gpu, sensor: {0: 61}[sensor],
            "nvmlDeviceGetUtilizationRates": lambda gpu: SimpleNamespace(gpu=97, memory=12),
            "nvmlDeviceGetCurrentClocksEventReasons": lambda gpu: self.reasons,
            "nvmlDeviceGetComputeRunningProcesses": lambda gpu: [SimpleNamespace(pid=pid) for pid in self.pids],
        }
        self.lost = False
        for name, answer in answers.items():
            setattr(self, name, partial(self._answered, name, answer))

    def _answered(self, name: str, answer: Callable[..., object], *arguments: object) -> object:
        if self.lost or name in self.unsupported:
            raise self.NVMLError("GPU is lost" if self.lost else "Not Supported")
        return answer(*arguments)


def _installed(monkeypatch: pytest.MonkeyPatch, pynvml: ModuleType | None) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", pynvml)  # None: its import fails


def test_nvml_tells_clock_power_and_temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    _installed(monkeypatch, Simulated(reasons=0x1 | 0x4 | 0x40))
    read = nvml(ROOT, PID)
    assert read is not None
    assert read(0.0) == pytest.approx(
        {
            "clock.gpu0": 1980.0,
            "power.gpu0": 312.45,
            "temperature.gpu0": 61.0,
            "busy.gpu0": 97.0,
            "alert.gpu0": 0x4 | 0x40,
        }
    )


@pytest.mark.parametrize(("pids", "own", "others"), [((PID, 99), 1, 1), ((PID,), 1, 0), ((99,), 0, 1), ((), 0, 0)])
def test_nvml_tells_whose_processes_are_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, pids: tuple[int, ...], own: int, others: int
) -> None:
    monkeypatch.setattr(nvidia_sensors, "_pid_namespace", lambda: INITIAL_PID_NAMESPACE)
    _installed(monkeypatch, Simulated(pids=pids))
    read = nvml_processes(ROOT, PID)
    assert read is not None
    assert read(0.0) == {"own.gpu0": own, "others.gpu0": others}
    _installed(monkeypatch, Simulated(unsupported=("nvmlDeviceGetComputeRunningProcesses",)))
    silent = nvml_processes(ROOT, PID)
    assert silent is not None
    assert silent(0.0) == {}


@pytest.mark.parametrize("function", ["nvmlDeviceGetPowerUsage", "nvmlDeviceGetTemperature"])
def test_what_a_gpu_does_not_support_is_left_out(monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    _installed(monkeypatch, Simulated())
    whole = nvml(ROOT, PID)
    _installed(monkeypatch, Simulated(unsupported=(function,)))
    part = nvml(ROOT, PID)
    assert whole is not None
    assert part is not None
    missing = set(whole(0.0)) - set(part(0.0))
    assert len(missing) == 1


def test_a_gpu_that_vanishes_gives_no_readings_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    pynvml = Simulated()
    _installed(monkeypatch, pynvml)
    read = nvml(ROOT, PID)
    assert read is not None
    assert read(0.0)
    pynvml.lost = True
    assert read(1.0) == {}


def test_without_pynvml_or_without_a_driver_there_is_no_source(monkeypatch: pytest.MonkeyPatch) -> None:
    _installed(monkeypatch, None)
    assert nvml(ROOT, PID) is None
    _installed(monkeypatch, Simulated(unsupported=("nvmlInit",)))
    assert nvml(ROOT, PID) is None
    _installed(monkeypatch, Simulated(unsupported=("nvmlDeviceGetCount",)))
    assert nvml(ROOT, PID) is None


def test_drivers_before_535_have_the_reasons_under_their_older_name(monkeypatch: pytest.MonkeyPatch) -> None:
    pynvml = Simulated(reasons=0x8)
    pynvml.nvmlDeviceGetCurrentClocksThrottleReasons = pynvml.nvmlDeviceGetCurrentClocksEventReasons  # type: ignore[attr-defined]
    del pynvml.nvmlDeviceGetCurrentClocksEventReasons
    _installed(monkeypatch, pynvml)
    read = nvml(ROOT, PID)
    assert read is not None
    assert read(0.0)["alert.gpu0"] == 0x8


def test_the_flags_are_those_of_the_header() -> None:
    """nvml.h: nvmlClocksEventReason*; 1, 2, 0x10 and 0x100 are idleness, settings, sync boost and the display."""
    assert set(HELD_BACK) == {0x4, 0x8, 0x20, 0x40, 0x80}


def _soon(ask: Callable[[], dict[str, float]]) -> dict[str, float]:
    """The first answer, within 10 s."""
    end_s = time.monotonic() + 10
    while not (found := ask()) and time.monotonic() < end_s:
        time.sleep(0.02)
    return found


@pytest.fixture(autouse=True)
def _no_program_outlives_its_test(monkeypatch: pytest.MonkeyPatch) -> object:
    """The sampling process ends them when it exits; here they are ended before."""
    started: list[subprocess.Popen[bytes]] = []
    opened = Lines.__init__

    def remembered(self: Lines, command: list[str]) -> None:
        opened(self, command)
        started.append(self.program)

    monkeypatch.setattr(Lines, "__init__", remembered)
    yield
    for one in started:
        one.kill()
        one.wait()
        assert one.stdout is not None
        one.stdout.close()
