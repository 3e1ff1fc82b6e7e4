"""What this machine is: processor, memory, system, NVIDIA driver, Jetson. What cannot be read is None, never guessed.

Everything is read below a root folder, so that a recorded tree of /proc, /sys and /etc gives the machine that it is of.
"""

from __future__ import annotations

import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from posekit.runtime import cuda
from posekit.runtime.cuda.driver import Device
from posekit.runtime.errors import BackendError

ROOT = Path("/")
MAX_FILE_BYTES = 1 << 20  # far more than any of these files has
NVPMODEL_TIMEOUT_S = 5.0

# Instruction sets that decide how fast a network runs, by the kernel's names for them.
INSTRUCTIONS = (
    "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16",
    "amx_int8", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip

# Sets that sum four 8-bit products in 32 bits. x86 processors without one sum pairs in 16 bits, which saturate.
EXACT_INT8_SUMS = {"avx512_vnni", "avx_vnni", "amx_int8"}

# Arm's processors have no name in /proc/cpuinfo, only the number of their design (Linux, arch/arm64 cputype.h).
ARM, ARM_PARTS = "0x41", {
    "0xd03": "Cortex-A53", "0xd07": "Cortex-A57", "0xd08": "Cortex-A72", "0xd0b": "Cortex-A76", "0xd0c": "Neoverse-N1",
    "0xd40": "Neoverse-V1", "0xd42": "Cortex-A78AE", "0xd49": "Neoverse-N2", "0xd4f": "Neoverse-V2",
    "0xd83": "Neoverse-V3AE", "0xd84": "Neoverse-V3",
}  # fmt: skip

# Release of Linux for Tegra -> JetPack; the longest row that fits counts. A release that is not here has no JetPack name.
JETPACKS: dict[tuple[int, ...], str] = {
    (35,): "5",
    (36, 3): "6.0",
    (36, 4, 0): "6.1",
    (36, 4, 3): "6.2",
    (36, 4, 4): "6.2.1",
    (36, 4): "6.1 or 6.2",
    (36, 5): "6.2",
    (38, 2): "7.0",
    (38, 4): "7.1",
    (39, 2): "7.2",
}


@dataclass(frozen=True)
class Cpu:
    """count: of logical processors.  cores: of physical ones.  instructions: those of INSTRUCTIONS that it has.

    governor: several, where they differ.  frequency_mhz: of the slowest and the fastest processor, at this moment.
    """

    model: str | None
    count: int | None
    instructions: tuple[str, ...] = ()
    governor: str | None = None
    frequency_mhz: tuple[float, float] | None = None
    cores: int | None = None


@dataclass(frozen=True)
class Jetson:
    """model: of the board.  l4t: release of Linux for Tegra, "36.4.3".  power_mode: nvpmodel's name of it.

    clocks_locked: whether the lowest rate of processors and GPU is their highest, as jetson_clocks sets it.
    """

    model: str | None
    l4t: str | None
    jetpack: str | None
    power_mode: str | None
    clocks_locked: bool | None = None


@dataclass(frozen=True)
class Machine:
    """memory_bytes: all of it.  nvidia_driver: version of the kernel's module.  jetson: None on any other machine.

    gpus: NVIDIA's cards by name, in order of their bus; none on a Jetson, whose GPU is a part of its board.
    """

    architecture: str
    python: str
    os: str | None
    kernel: str | None
    cpu: Cpu
    memory_bytes: int | None
    nvidia_driver: str | None
    jetson: Jetson | None
    gpus: tuple[str, ...] = ()


def machine_from_root(root: Path = ROOT) -> Machine:
    """The machine whose files are below `root`. Never raises: what is absent, unreadable or garbage is None."""
    return Machine(
        platform.machine(),
        platform.python_version(),
        _found(r'^PRETTY_NAME="?([^"\n]+)', _text(root / "etc/os-release")),
        _line(_text(root / "proc/sys/kernel/osrelease")),
        cpu(root),
        memory_bytes(root),
        nvidia_driver(root),
        jetson(root),
        nvidia_gpus(root),
    )


def gpu() -> Device | None:
    """The first GPU, as CUDA's driver sees it, or None. It keeps the GPU's primary context for this process."""
    try:
        return cuda.open_driver().device
    except BackendError:
        return None


def cpu(root: Path = ROOT) -> Cpu:
    """What /proc/cpuinfo and the frequency driver say."""
    text = _text(root / "proc/cpuinfo")
    flags = re.search(r"^(?:flags|Features)\s*: (.*)$", text or "", re.MULTILINE)
    has = set(flags[1].split()) if flags else set()
    governors = {_line(value) for value in _of_every_cpu(root, "cpufreq/scaling_governor")} - {None}
    mhz = [
        int(value) / 1000
        for value in _of_every_cpu(root, "cpufreq/scaling_cur_freq")
        if re.fullmatch(r"\d{1,9}\n?", value)
    ]
    return Cpu(
        _cpu_model(text),
        len(re.findall(r"^processor\s*:", text or "", re.MULTILINE)) or None,
        tuple(name for name in INSTRUCTIONS if name in has),
        ", ".join(sorted(map(str, governors))) or None,
        (min(mhz), max(mhz)) if mhz else None,
        len(set(_of_every_cpu(root, "topology/core_cpus_list"))) or None,
    )


def saturates_int8(root: Path = ROOT) -> bool:
    """Tell whether 8-bit products overflow on this processor: x86 without VNNI, where libraries add pairs in 16 bits.

    (Intel, oneDNN documentation, "Nuances of int8 computations".) False where /proc/cpuinfo does not say.
    """
    flags = _found(r"^flags\s*:(.*)$", _text(root / "proc/cpuinfo"))
    return flags is not None and not EXACT_INT8_SUMS & set(flags.split())


def memory_bytes(root: Path = ROOT) -> int | None:
    """All memory that the kernel has."""
    kib = _found(r"^MemTotal:\s*(\d{1,15}) kB", _text(root / "proc/meminfo"))
    return int(kib) * 1024 if kib else None


def nvidia_driver(root: Path = ROOT) -> str | None:
    """Version of NVIDIA's kernel module, "550.54.15". None in a Windows subsystem too, where CUDA may work all the same."""
    return _found(r"^NVRM version:.*?\s(\d{3,4}(?:\.\d+){1,3})\s", _text(root / "proc/driver/nvidia/version"))


def nvidia_gpus(root: Path = ROOT) -> tuple[str, ...]:
    """Names that the kernel's module has for them: "NVIDIA GeForce RTX 3090"."""
    paths = _glob(root / "proc/driver/nvidia/gpus", "*/information")
    return tuple(name for path in paths if (name := _found(r"^Model:[ \t]*(\S[^\n]*)$", _text(path))))


def clocks_locked(root: Path = ROOT) -> bool | None:
    """Whether every processor and GPU of a Jetson has one rate alone to run at; None where their limits cannot be read."""
    gpus = [d for d in _glob(root / "sys/class/devfreq", "*") if re.search(r"gpu|ga10b|gv11b", d.name)]
    lowest, highest = (
        [*_of_every_cpu(root, f"cpufreq/scaling_{name}"), *((_text(gpu / name) or "") for gpu in gpus)]
        for name in ("min_freq", "max_freq")
    )
    known = gpus and len(lowest) > len(gpus) and all([*lowest, *highest])
    return lowest == highest if known else None


def jetson(root: Path = ROOT) -> Jetson | None:
    """The Jetson, told by its release file or by the name of its board."""
    release = l4t(root)
    model = _line(_text(root / "proc/device-tree/model"))
    if release is None and "jetson" not in (model or "").lower():
        return None
    return Jetson(model, release, jetpack_from_l4t(release) if release else None, power_mode(root), clocks_locked(root))


def l4t(root: Path = ROOT) -> str | None:
    """ "36.4.3" of "# R36 (release), REVISION: 4.3, ..."."""
    numbers = re.search(
        r"^# R(\d{1,4}) \(release\), REVISION: (\d+(?:\.\d+){0,3})\b",
        _text(root / "etc/nv_tegra_release") or "",
        re.ASCII,
    )
    return f"{numbers[1]}.{numbers[2]}" if numbers else None


def jetpack_from_l4t(release: str) -> str | None:
    """The JetPack that brings this release, as far as its number tells; None for one that posekit does not know."""
    numbers = tuple(int(n) for n in re.findall(r"\d{1,4}", release))
    known = (JETPACKS.get(numbers[:length]) for length in range(len(numbers), 0, -1))
    return next(filter(None, known), None)


def power_mode(root: Path = ROOT) -> str | None:
    """Name of the current mode, "MAXN", as nvpmodel tells it; None where there is no nvpmodel or it does not say."""
    try:
        asked = subprocess.run(
            [str(root / "usr/sbin/nvpmodel"), "-q"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=NVPMODEL_TIMEOUT_S,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return power_mode_from_nvpmodel(asked.stdout.decode(errors="replace")) if asked.returncode == 0 else None


def power_mode_from_nvpmodel(text: str) -> str | None:
    """ "MAXN" of "NV Power Mode: MAXN"; warnings may come before it, the number of the mode comes after it.

    The number is not used: what it means differs between boards.
    """
    return _found(r"^NV Power Mode:[ \t]*(\S[^\n]*)$", text)


def _cpu_model(text: str | None) -> str | None:
    """The name; on Arm the designs, a big.LITTLE has several."""
    parts = re.findall(r"^CPU part\s*: (0x[0-9a-f]{3})$", text or "", re.MULTILINE)
    named = [ARM_PARTS[part] for part in dict.fromkeys(parts) if part in ARM_PARTS]
    if named and _found(r"^CPU implementer\s*: (\S+)$", text) == ARM:
        return f"Arm {' and '.join(named)}"
    return _found(r"^model name\s*: (\S.*)$", text)


def _of_every_cpu(root: Path, name: str) -> list[str]:
    return [text for text in map(_text, _glob(root / "sys/devices/system/cpu", f"cpu[0-9]*/{name}")) if text]


def _glob(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted(folder.glob(pattern))
    except OSError:
        return []


def _text(path: Path) -> str | None:
    """A pipe or a device in its place is not opened: it could block."""
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES).decode(errors="replace")
    except OSError:
        return None


def _found(pattern: str, text: str | None) -> str | None:
    match = re.search(pattern, text or "", re.MULTILINE | re.ASCII)
    return _line(match[1]) if match else None


def _line(text: str | None) -> str | None:
    """One line that can be shown: the first, without control characters; None when nothing is left."""
    first = (text or "").strip("\0 \t\r\n").split("\n", 1)[0]
    return "".join(c for c in first if c.isprintable()).strip()[:200] or None
