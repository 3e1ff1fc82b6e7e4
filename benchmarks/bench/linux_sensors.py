"""Readings of Linux: /proc and /sys below a root folder. Each function opens one source, or gives None where it is absent.

Files are opened once and read in place, which costs a few microseconds per reading.
Layouts: the kernel's Documentation/hwmon/ina3221, power/powercap, driver-api/thermal, admin-guide/pm/cpufreq and
filesystems/proc; NVIDIA's additions (devfreq of the GPU, soctherm's event counters) as its Jetson Linux guide has them.
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

Read = Callable[[float], dict[str, float]]
INTEGER = re.compile(r"-?[0-9]{1,20}")
ENOUGH_BYTES = 1 << 16  # /proc/stat begins with its processors, 100 bytes each
OFFLINE_C = -50.0  # a Jetson's sensor that has no power says -256
GPU = re.compile(r"gpu|ga10b|gv11b|gp10b|gm20b")
THROTTLERS = re.compile(r"cpufreq|devfreq|powerclamp|^Processor$")
HWMON_TEMPERATURES = ("k10temp",)  # AMD's processors are no thermal zone


class Files:
    """Open files by name. What cannot be read at the moment is left out: a unit without power has no temperature."""

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self.files: dict[str, int] = {}
        for name, path in paths.items():
            self.files[name] = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        for file in self.files.values():
            os.close(file)

    def texts(self) -> dict[str, str]:
        found = {}
        for name, file in self.files.items():
            with suppress(OSError):
                found[name] = os.pread(file, ENOUGH_BYTES, 0).decode(errors="replace").strip("\0 \n")
        return found

    def text(self, name: str) -> str:
        """Of one file. OSError where it cannot be read: its process has ended."""
        return os.pread(self.files[name], ENOUGH_BYTES, 0).decode(errors="replace")


class Values(Files):
    """Whole numbers, times `scale`."""

    def __init__(self, paths: Mapping[str, Path], scale: float) -> None:
        super().__init__(paths)
        self.scale = scale

    def __call__(self, t_s: float = 0.0) -> dict[str, float]:
        numbers = {name: text for name, text in self.texts().items() if INTEGER.fullmatch(text)}
        return {name: int(text) * self.scale for name, text in numbers.items()}


def cpu_clocks(root: Path, pid: int) -> Read | None:
    """The fastest processor of each cluster: "clock.cpu4" is the cluster that begins with processor 4.

    Processors of one policy are a cluster. Where each has a policy of its own, as on x86, those of one highest clock are:
    the ones that wait run slower, which tells nothing.
    """
    first_of: dict[str, str] = {}
    cluster_of: dict[str, str] = {}
    policies = _policies(root)
    for name, policy in policies.items():
        related = _text(policy / "related_cpus")
        cluster = related if " " in related else _text(policy / "cpuinfo_max_freq")
        cluster_of[name] = f"clock.{first_of.setdefault(cluster, name)}"
    values = Values({name: policy / "scaling_cur_freq" for name, policy in policies.items()}, 1e-3)

    def read(t_s: float) -> dict[str, float]:
        fastest: dict[str, float] = {}
        for name, mhz in values().items():
            fastest[cluster_of[name]] = max(mhz, fastest.get(cluster_of[name], 0.0))
        return fastest

    return read if policies else None


def devfreq_clocks(root: Path, pid: int) -> Read | None:
    """Of a Jetson's GPU and, where it is told, of its memory (bwmgr)."""
    found = {f"clock.{name}": device / "cur_freq" for name, device in _devfreqs(root).items()}
    return Values(found, 1e-6) if found else None


def devfreq_load(root: Path, pid: int) -> Read | None:
    """How busy a Jetson's GPU is; the file counts in thousandths."""
    loads = {f"busy.{name}": device / "device/load" for name, device in _devfreqs(root).items() if GPU.search(name)}
    found = {name: path for name, path in loads.items() if path.is_file()}
    return Values(found, 0.1) if found else None


def settings(root: Path) -> Callable[[], dict[str, str]]:
    """A reader of what must not change while a run lasts: governors, limits of clocks, boost, number of the power mode.

    "cpu0.lowest" and "cpu0.highest" are the limits of the reading "clock.cpu0".
    """
    rows = {"lowest": "min_freq", "highest": "max_freq", "governor": "governor"}
    paths = {f"{n}.{key}": p / f"scaling_{file}" for n, p in _policies(root).items() for key, file in rows.items()}
    paths |= {f"{n}.{key}": p / file for n, p in _devfreqs(root).items() for key, file in rows.items()}
    paths |= {
        "power mode (nvpmodel)": root / "var/lib/nvpmodel/status",
        "no_turbo": root / "sys/devices/system/cpu/intel_pstate/no_turbo",
        "boost": root / "sys/devices/system/cpu/cpufreq/boost",
        "processors that are on": root / "sys/devices/system/cpu/online",
    }
    return Files({name: path for name, path in paths.items() if os.access(path, os.R_OK)}).texts


def power_rails(root: Path, pid: int) -> Read | None:
    """INA3221: volts times amperes per labelled channel. Any other chip that tells power itself (INA238, INA2xx, meters)."""
    mv, ma = {}, {}
    uw: list[tuple[Path, str]] = []
    for chip in _hwmons(root):
        if _text(chip / "name") == "ina3221":
            for n in "123":
                label, volts, amperes = _text(chip / f"in{n}_label"), chip / f"in{n}_input", chip / f"curr{n}_input"
                if label not in ("", "NC") and volts.is_file() and amperes.is_file():
                    mv[f"power.{label}"], ma[f"power.{label}"] = volts, amperes
            continue
        for path in sorted([*chip.glob("power[1-9]_input"), *chip.glob("power[1-9]_average")]):
            n = path.name[5]
            label = _text(chip / f"power{n}_label") or _text(chip / f"in{n}_label") or _text(chip / "name")
            uw.append((path, label))
    volts_mv, amperes_ma, watts = Values(mv, 1.0), Values(ma, 1.0), Values(_named("power", uw), 1e-6)

    def read(t_s: float) -> dict[str, float]:
        current_ma = amperes_ma()
        products = {name: v * current_ma[name] * 1e-6 for name, v in volts_mv().items() if name in current_ma}
        return products | watts()

    return read if mv or uw else None


def rapl(root: Path, pid: int) -> Read | None:
    """Mean power since the reading before, of each package and its memory. The counters wrap at their stated range.

    Cores and graphics are parts of their package and not read, nor is the second interface to the same counters (mmio).
    PermissionError where only root may read them, as since Linux 5.10.
    """
    zones: dict[str, Path] = {}
    for zone in sorted((root / "sys/class/powercap").glob("intel-rapl:*")):
        name = _text(zone / "name")
        if name.startswith("package"):
            zones[f"power.{name}"] = zone
        elif name == "dram":
            zones[f"power.{_text(zone.parent / zone.name.rpartition(':')[0] / 'name')}.dram"] = zone
    if not zones:
        return None
    ranges_uj = {name: float(_text(zone / "max_energy_range_uj") or "inf") for name, zone in zones.items()}
    counters = Values({name: zone / "energy_uj" for name, zone in zones.items()}, 1.0)
    last: dict[str, tuple[float, float]] = {}

    def read(t_s: float) -> dict[str, float]:
        watts = {}
        for name, uj in counters().items():
            before_s, before_uj = last.get(name, (t_s, uj))
            if t_s > before_s:
                watts[name] = _since(before_uj, uj, ranges_uj[name]) * 1e-6 / (t_s - before_s)
            last[name] = (t_s, uj)
        return watts

    return read


def temperatures(root: Path, pid: int) -> Read | None:
    """Thermal zones by their type; several of one type are numbered."""
    zones = [(zone / "temp", _text(zone / "type")) for zone in _numbered(root / "sys/class/thermal", "thermal_zone")]
    chips = [(chip / "temp1_input", _text(chip / "name")) for chip in _hwmons(root)]
    found = [(p, t) for p, t in zones if t] + [(p, name) for p, name in chips if name in HWMON_TEMPERATURES]
    values = Values(_named("temperature", [(p, name) for p, name in found if p.is_file()]), 1e-3)

    def read(t_s: float) -> dict[str, float]:
        return {name: value for name, value in values().items() if value > OFFLINE_C}

    return read if values.files else None


def cooling(root: Path, pid: int) -> Read | None:
    """Throttle alerts of a Jetson, 0 while all is well; and how far other cooling devices hold clocks down. No fans."""
    devices = [(d, _text(d / "type")) for d in _numbered(root / "sys/class/thermal", "cooling_device")]
    alerts = _named("alert", [(d / "cur_state", name) for d, name in devices if name.endswith("throttle-alert")])
    states = _named("state", [(d / "cur_state", name) for d, name in devices if THROTTLERS.search(name)])
    return Values(alerts | states, 1.0) if alerts or states else None


def over_current(root: Path, pid: int) -> Read | None:
    """soctherm_oc of a Jetson Orin or later: oc1 is too low a voltage, oc2 mean and oc3 instantaneous over-current."""
    found = {f"count.{p.name.removesuffix('_event_cnt')}": p for c in _hwmons(root) for p in c.glob("oc?_event_cnt")}
    return Values(found, 1.0) if found else None


def thermal_throttle(root: Path, pid: int) -> Read | None:
    """How often x86 processors throttled for heat, all together."""
    paths = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/*_throttle_count"))
    values = Values({str(path): path for path in paths}, 1.0)
    return (lambda t_s: {"count.thermal-throttle": sum(values().values())}) if paths else None


def cgroup_limit(root: Path, pid: int) -> Read | None:
    """How often the control group stopped its processes because its share of the processors was used up."""
    groups = [line.split(":", 2) for line in _text(root / f"proc/{pid}/cgroup").splitlines() if line.count(":") >= 2]
    mounts = {"": "", "cpu": "cpu", "cpu,cpuacct": "cpu,cpuacct", "cpuacct,cpu": "cpu,cpuacct"}
    own = [f"{mounts[kind]}{path}" for _, kind, path in groups if kind in mounts]
    places = [root / "sys/fs/cgroup" / place.strip("/") / "cpu.stat" for place in (*own, "", "cpu")]
    found = next((place for place in places if "nr_throttled " in _text(place)), None)  # a container's own is its root
    if found is None:
        return None
    file = Files({"": found})

    def read(t_s: float) -> dict[str, float]:
        times = re.search(r"^nr_throttled (\d+)$", file.text(""), re.MULTILINE)
        return {"count.control-group-limit": float(times[1])} if times else {}

    return read


def load_of_others(root: Path, pid: int) -> Read | None:
    """Processors that were busy with anything but the watched process and this one, since the reading before.

    Of the processors that the process may use. What a hypervisor took away counts, and so do living child processes;
    those that ended count as the process's own.
    """
    paths = {"all": root / "proc/stat", "own": root / f"proc/{pid}/stat"}
    if not all(path.is_file() for path in paths.values()):
        return None
    files = Files(paths)
    ours = {str(n) for n in os.sched_getaffinity(pid)} if root == Path("/") else None
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    last: list[float] = []
    debt_s = 0.0  # ticks are coarse: what a reading has too little, the next one has too much

    def read(t_s: float) -> dict[str, float]:
        nonlocal debt_s
        busy_s = busy_ticks(files.text("all"), ours) * tick_s
        own_s = process_ticks(files.text("own")) * tick_s + time.process_time()
        before, last[:] = last[:], (t_s, busy_s - own_s)
        if not before or t_s <= before[0]:
            return {}
        spent_s = debt_s + last[1] - before[1]
        debt_s = min(spent_s, 0.0)
        return {"load.others": max(spent_s, 0.0) / (t_s - before[0])}

    return read


def busy_ticks(stat: str, processors: set[str] | None) -> int:
    """Of /proc/stat: user, nice, system, irq, softirq and steal of these processors, of all where None."""
    rows = [line.split() for line in stat.splitlines() if re.match(r"cpu\d", line)]
    mine = [row for row in rows if processors is None or row[0].removeprefix("cpu") in processors]
    return sum(int(row[n]) for row in mine for n in (1, 2, 3, 6, 7, 8))


def process_ticks(stat: str) -> int:
    """Of /proc/PID/stat: user and system time of all threads and of children that ended. The name may have any letter."""
    fields = stat.rpartition(")")[2].split()
    return sum(int(n) for n in fields[11:15])


def resident_memory(root: Path, pid: int) -> Read | None:
    """Pages of /proc/PID/statm that are in memory."""
    path, page_bytes = root / f"proc/{pid}/statm", os.sysconf("SC_PAGE_SIZE")
    if not path.is_file():
        return None
    file = Files({"": path})
    return lambda t_s: {"memory.rss": int(file.text("").split()[1]) * page_bytes / 1e6}


def _since(before: float, now: float, wraps_at: float) -> float:
    return now - before if now >= before else now - before + wraps_at


def _policies(root: Path) -> dict[str, Path]:
    """ "cpu4" -> the folder of the frequency policy that begins with processor 4."""
    folders = _numbered(root / "sys/devices/system/cpu/cpufreq", "policy")
    return {
        folder.name.replace("policy", "cpu"): folder for folder in folders if (folder / "scaling_cur_freq").is_file()
    }


def _devfreqs(root: Path) -> dict[str, Path]:
    devices = sorted((root / "sys/class/devfreq").glob("*"))
    wanted = [d for d in devices if d.name == "bwmgr" or GPU.search(d.name)]
    return {d.name: d for d in wanted if (d / "cur_freq").is_file()}


def _hwmons(root: Path) -> list[Path]:
    return _numbered(root / "sys/class/hwmon", "hwmon")


def _numbered(folder: Path, prefix: str) -> list[Path]:
    return sorted(folder.glob(f"{prefix}[0-9]*"), key=lambda path: int(re.sub(r"\D", "", path.name)))


def _named(kind: str, found: list[tuple[Path, str]]) -> dict[str, Path]:
    count, names = Counter(name for _, name in found), {}
    for number, (path, name) in enumerate(found):
        names[f"{kind}.{name}" + (f".{number}" if count[name] > 1 else "")] = path
    return names


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip("\0 \n") if path.is_file() else ""
    except OSError:
        return ""
