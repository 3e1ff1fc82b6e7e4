"""Readings of NVIDIA's tools: NVML through pynvml (the package nvidia-ml-py), else nvidia-smi; tegrastats on a Jetson.

The two programs are started once and print a line per interval. They are ended with the process that reads them, and end
by themselves at their next line where that was killed.
Layouts: nvml.h, `nvidia-smi --help-query-gpu`, and the tegrastats pages of NVIDIA's Jetson Linux guide.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from posekit.benchmarks.bench.linux_sensors import OFFLINE_C, power_rails

Read = Callable[[float], dict[str, float]]
ROOT = Path("/")
ANSWER_TIMEOUT_S = 10.0
PROGRAM_FOLDERS = ("usr/bin", "usr/local/nvidia/bin", "usr/lib/wsl/lib")
INITIAL_PID_NAMESPACE = "pid:[4026531836]"  # a constant of Linux, PROC_PID_INIT_INO

# Clock event reasons that hold a GPU back (nvml.h); the others are idleness and what a user has set.
HELD_BACK = {
    0x04: "the power limit",
    0x08: "a hardware slowdown",
    0x20: "heat (software slowdown)",
    0x40: "heat (hardware slowdown)",
    0x80: "the external power brake",
}

SMI_FIELDS = {  # the older name of the reasons is known to old and new drivers
    "index": "",
    "clocks.sm": "clock",
    "power.draw": "power",
    "temperature.gpu": "temperature",
    "utilization.gpu": "busy",
    "clocks_throttle_reasons.active": "alert",
}


def nvml(root: Path, pid: int) -> Read | None:
    """Of every GPU: clock, power, temperature, use, and what holds it back. None without pynvml or a driver.

    What a GPU does not support (NVML on a Jetson has little) is left out.
    """
    opened = _nvml(root)
    if opened is None:
        return None
    pynvml, gpus = opened
    reasons = getattr(pynvml, "nvmlDeviceGetCurrentClocksEventReasons", None)  # since driver 535
    reasons = reasons or pynvml.nvmlDeviceGetCurrentClocksThrottleReasons
    rows: dict[str, Callable[[Any], float]] = {
        "clock": lambda gpu: pynvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_SM),
        "power": lambda gpu: pynvml.nvmlDeviceGetPowerUsage(gpu) * 1e-3,
        "temperature": lambda gpu: pynvml.nvmlDeviceGetTemperature(gpu, pynvml.NVML_TEMPERATURE_GPU),
        "busy": lambda gpu: pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu,
        "alert": lambda gpu: reasons(gpu) & sum(HELD_BACK),
    }
    works = [(kind, ask, n, gpu) for n, gpu in gpus for kind, ask in rows.items() if _asked(pynvml, ask, gpu)]

    def read(t_s: float) -> dict[str, float]:
        answers = {f"{kind}.gpu{n}": _asked(pynvml, ask, gpu) for kind, ask, n, gpu in works}
        return {name: answer[0] for name, answer in answers.items() if answer}

    return read if works else None


def nvml_processes(root: Path, pid: int) -> Read | None:
    """Of every GPU: whether the watched process is on it, and how many others are."""
    opened = _nvml(root)
    if opened is None:
        return None
    pynvml, gpus = opened

    def read(t_s: float) -> dict[str, float]:
        found: dict[str, float] = {}
        for n, gpu in gpus:
            with suppress(pynvml.NVMLError):
                pids = [process.pid for process in pynvml.nvmlDeviceGetComputeRunningProcesses(gpu)]
                found |= {f"own.gpu{n}": float(pid in pids), f"others.gpu{n}": float(count_others(pids, pid))}
        return found

    return read


def _nvml(root: Path) -> tuple[Any, list[tuple[int, Any]]] | None:
    """The library, and its GPUs with their numbers. A recorded tree has no driver."""
    if root != ROOT:
        return None
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        return pynvml, [(n, pynvml.nvmlDeviceGetHandleByIndex(n)) for n in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return None


def nvidia_smi(root: Path, pid: int) -> Read | None:
    """The same from nvidia-smi, once a second, where pynvml is not installed."""
    program = _program(root, "nvidia-smi")
    if program is None or _nvml(root) is not None or not _succeeds([program, "-L"]):  # -L fails without a driver
        return None
    table = "--format=csv,noheader,nounits"
    gpus = Lines([program, f"--query-gpu={','.join(SMI_FIELDS)}", table, "-l", "1"])
    processes = Lines([program, "--query-compute-apps=gpu_uuid,pid", table, "-l", "1"])

    def read(t_s: float) -> dict[str, float]:
        readings: dict[str, float] = {}
        for line in gpus.new():
            readings |= readings_from_smi(line)
        pids = list(pids_from_smi(processes.new()).values())
        concerned = [of for of in pids if pid in of] or pids  # other GPUs of the machine are not the run's
        if readings:
            readings["others.gpu"] = float(max((count_others(of, pid) for of in concerned), default=0))
        return readings

    return read


def readings_from_smi(line: str) -> dict[str, float]:
    """Of one line of `nvidia-smi --query-gpu`, in the order of SMI_FIELDS. What it does not support is left out."""
    cells = [cell.strip() for cell in line.split(",")]
    if len(cells) != len(SMI_FIELDS) or not cells[0].isdigit():
        return {}
    readings = {}
    for kind, cell in zip(SMI_FIELDS.values(), cells, strict=True):
        if kind == "alert" and re.fullmatch(r"0x[0-9a-fA-F]+", cell):
            readings[f"{kind}.gpu{cells[0]}"] = float(int(cell, 16) & sum(HELD_BACK))
        elif kind not in ("", "alert") and re.fullmatch(r"\d+(\.\d+)?", cell):
            readings[f"{kind}.gpu{cells[0]}"] = float(cell)
    return readings


def pids_from_smi(lines: Iterable[str]) -> dict[str, set[int]]:
    """Of `nvidia-smi --query-compute-apps=gpu_uuid,pid`: the processes on each GPU."""
    pids: dict[str, set[int]] = {}
    for line in lines:
        uuid, _, number = (part.strip() for part in line.partition(","))
        if number.isdigit():
            pids.setdefault(uuid, set()).add(int(number))
    return pids


def count_others(pids: Iterable[int], pid: int, namespace: str | None = None) -> int:
    """Processes but the watched one. The driver counts in the machine's numbers; in a container, where ours has another
    number, one of them is taken to be ours."""
    numbers = set(pids)
    if pid in numbers:
        return len(numbers) - 1
    inside = (namespace or _pid_namespace()) != INITIAL_PID_NAMESPACE
    return max(len(numbers) - 1, 0) if inside else len(numbers)


def tegrastats(root: Path, pid: int) -> Read | None:
    """Only where no rail can be read: it costs more than the files that it reads itself."""
    program = _program(root, "tegrastats")
    if program is None or power_rails(root, pid) is not None:
        return None
    lines = Lines([program, "--interval", "500"])

    def read(t_s: float) -> dict[str, float]:
        newest = lines.new()[-1:]
        return readings_from_tegrastats(newest[0]) if newest else {}

    return read


def readings_from_tegrastats(line: str) -> dict[str, float]:
    """Rails (the present value, not the mean behind the slash; without a unit before JetPack 5), temperatures, GPU."""
    readings = {
        f"power.{n}": int(mw) * 1e-3 for n, mw in re.findall(r"\b([A-Z]\w+) (\d+)(?:mW)?/\d+(?:mW)?(?=\s|$)", line)
    }
    celsius = [(name, float(c)) for name, c in re.findall(r"\b(\w+)@(-?\d+(?:\.\d+)?)C\b", line)]
    readings |= {f"temperature.{name}": c for name, c in celsius if c > OFFLINE_C}
    if gpu := re.search(r"\bGR3D_FREQ (\d+)%(?:@\[?(\d+))?", line):
        readings["busy.gpu"] = float(gpu[1])
        if gpu[2]:
            readings["clock.gpu"] = float(gpu[2])
    return readings


class Lines:
    """What a program prints, line by line, without waiting for it."""

    def __init__(self, command: Sequence[str]) -> None:
        quiet = subprocess.DEVNULL
        self.program = subprocess.Popen(command, stdin=quiet, stdout=subprocess.PIPE, stderr=quiet)
        atexit.register(self.program.kill)
        assert self.program.stdout is not None
        self.file, self.rest = self.program.stdout.fileno(), b""
        os.set_blocking(self.file, False)

    def new(self) -> list[str]:
        """The whole lines since the last call. OSError once the program has ended and all is read."""
        ended = False
        with suppress(BlockingIOError):
            while part := os.read(self.file, 1 << 16):
                self.rest += part
            ended = True
        *whole, self.rest = self.rest.split(b"\n")
        if ended and not whole:
            raise OSError("the program has ended")
        return [line.decode(errors="replace") for line in whole]


def _asked(pynvml: Any, ask: Callable[[Any], float], gpu: Any) -> tuple[float] | None:
    try:
        return (float(ask(gpu)),)
    except pynvml.NVMLError:
        return None


def _pid_namespace() -> str:
    return os.readlink("/proc/self/ns/pid")


def _program(root: Path, name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join(str(root / folder) for folder in PROGRAM_FOLDERS))


def _succeeds(command: Sequence[str]) -> bool:
    try:
        return (
            subprocess.run(
                command, capture_output=True, stdin=subprocess.DEVNULL, timeout=ANSWER_TIMEOUT_S, check=False
            ).returncode
            == 0
        )
    except (OSError, subprocess.SubprocessError):
        return False
