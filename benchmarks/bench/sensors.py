"""Every source of readings about the machine, one row each. The standard library alone: the sampling process imports this.

A reading's name begins with what it is, and KINDS has its unit; "clock.cpu0", "power.VDD_IN".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from posekit.benchmarks.bench import linux_sensors, nvidia_sensors

Read = Callable[
    [float], dict[str, float]
]  # seconds of the monotonic clock -> readings; OSError where there are none now

KINDS = {
    "clock": "MHz",
    "temperature": "°C",
    "power": "W",
    "load": "processors",  # of others: how many processors did not serve the run
    "busy": "%",
    "memory": "MB",
    "others": "processes",  # of others, on a GPU
    "own": "processes",  # the watched one, on a GPU
    "alert": "flags",  # 0 unless the machine holds itself back
    "state": "steps",  # how far the machine is held back; what counts is that it stays
    "count": "events",  # of the machine holding itself back, since it was started
    "sampler": "% of a core",
}


@dataclass(frozen=True)
class Source:
    """open: (root folder, watched process) -> its reader, or None where the machine has no such source.

    every_s: the least time between two readings.  power: whether it may tell some.  A PermissionError of `open` is a source that is there and not readable.
    """

    name: str
    every_s: float
    open: Callable[[Path, int], Read | None]
    power: bool = False


FAST, SLOW = 0.0, 1.0
SOURCES = (
    Source("processor clocks", FAST, linux_sensors.cpu_clocks),
    Source("GPU clock (devfreq)", FAST, linux_sensors.devfreq_clocks),
    Source("GPU load (devfreq)", FAST, linux_sensors.devfreq_load),
    Source("power rails (hwmon)", FAST, linux_sensors.power_rails, power=True),
    Source("RAPL energy counters", FAST, linux_sensors.rapl, power=True),
    Source("NVML", FAST, nvidia_sensors.nvml, power=True),
    Source("NVML's processes", 0.5, nvidia_sensors.nvml_processes),
    Source("nvidia-smi", FAST, nvidia_sensors.nvidia_smi, power=True),
    Source("tegrastats", FAST, nvidia_sensors.tegrastats, power=True),
    Source("load of other processes", 0.5, linux_sensors.load_of_others),
    Source("memory of the process", 0.5, linux_sensors.resident_memory),
    Source("temperatures", SLOW, linux_sensors.temperatures),
    Source("cooling devices", SLOW, linux_sensors.cooling),
    Source("over-current counters", SLOW, linux_sensors.over_current),
    Source("thermal throttle counters", SLOW, linux_sensors.thermal_throttle),
    Source("processor limit of the control group", SLOW, linux_sensors.cgroup_limit),
)


def unit(reading: str) -> str:
    """Of a reading, by its name."""
    return KINDS[reading.split(".")[0]]


def open_sources(root: Path, pid: int) -> tuple[list[tuple[Source, Read]], list[str]]:
    """What is there, and sentences about what is not."""
    found, absent, closed = [], [], []
    for source in SOURCES:
        try:
            read = source.open(root, pid)
        except PermissionError:
            closed.append(f"{source.name}: there, but not readable by this user.")
            continue
        except OSError:
            read = None
        if read is None:
            absent.append(source.name)
        else:
            found.append((source, read))
    return found, closed + ([f"Not on this machine: {', '.join(absent)}."] if absent else [])
