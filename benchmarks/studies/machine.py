"""The machine beside every figure: processor, system and library versions, and which commit was measured. Linux."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimddp", "i8mm")
PACKAGES = ("posekit", "numpy", "torch", "onnx", "onnxruntime", "openvino", "tensorrt-rtx-cu13-bindings")
CPUINFO = Path("/proc/cpuinfo")
STAT = Path("/proc/stat")
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
RESULTS = "benchmarks/results"  # written by the study itself, so no part of what is measured


@dataclass(frozen=True)
class Machine:
    """cores: physical ones that this process may use.  flags: instructions that inference uses, those of FLAGS.

    governor: of the clock, None where the system does not tell.  versions: of packages that are installed.
    """

    cpu: str
    cores: int
    flags: tuple[str, ...]
    memory_gb: float
    system: str
    versions: dict[str, str]
    governor: str | None = None

    @property
    def slug(self) -> str:
        """The processor's name, as part of a file name."""
        return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", self.cpu.lower())).strip("-")


def this_machine(packages: Sequence[str] = PACKAGES) -> Machine:
    """packages: whose versions matter."""
    blocks = _cpus()
    flags = set(blocks[0].get("flags", blocks[0].get("Features", "")).split())
    return Machine(
        cpu=blocks[0].get("model name", platform.machine()),
        cores=_cores(blocks),
        flags=tuple(flag for flag in FLAGS if flag in flags),
        memory_gb=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        governor=GOVERNOR.read_text().strip() if GOVERNOR.exists() else None,
        system=f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        versions={name: found for name in packages if (found := _version(name))},
    )


def load_average() -> float:
    """Of the last minute."""
    return round(os.getloadavg()[0], 2)


def busy_cpu_s() -> float:
    """Seconds that all processors were not idle since the machine began, what a hypervisor took away included."""
    user, nice, system, _, _, irq, softirq, steal = (int(n) for n in STAT.read_text().split("\n")[0].split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def commit_of(repository: Path) -> str:
    """The commit that is checked out; where tracked files differ from it, their difference's hash behind it."""

    def git(*arguments: str) -> bytes:
        return subprocess.run(["git", "-C", str(repository), *arguments], capture_output=True, check=True).stdout

    commit = git("rev-parse", "--short=12", "HEAD").decode().strip()
    changes = git("diff", "HEAD", "--", ".", f":!{RESULTS}")
    return f"{commit}+{hashlib.sha256(changes).hexdigest()[:8]}" if changes else commit


def _cpus() -> list[dict[str, str]]:
    """One table per logical processor."""
    blocks = CPUINFO.read_text().strip().split("\n\n")
    rows = [[line.partition(":") for line in block.splitlines()] for block in blocks]
    return [{key.strip(): value.strip() for key, _, value in row} for row in rows]


def _cores(blocks: list[dict[str, str]]) -> int:
    usable = {str(number) for number in os.sched_getaffinity(0)}
    mine = [block for block in blocks if block.get("processor") in usable]
    return len({(b.get("physical id"), b.get("core id", b["processor"])) for b in mine}) or len(usable)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
