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

from posekit.benchmarks.bench.linux_sensors import busy_ticks
from posekit.runtime.machine import cpu, memory_bytes

PACKAGES = ("posekit", "numpy", "torch", "onnx", "onnxruntime", "openvino", "tensorrt-rtx-cu13-bindings")
STAT = Path("/proc/stat")
RESULTS = "benchmarks/results"  # written by the study itself, so no part of what is measured


@dataclass(frozen=True)
class Machine:
    """cores: physical ones that this process may use.  flags: instruction sets that inference uses.

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
    found = cpu()
    return Machine(
        cpu=found.model or platform.machine(),
        cores=min(found.cores or len(os.sched_getaffinity(0)), len(os.sched_getaffinity(0))),
        flags=found.instructions,
        memory_gb=round((memory_bytes() or 0) / 2**30, 1),
        governor=found.governor,
        system=f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        versions={name: seen for name in packages if (seen := _version(name))},
    )


def load_average() -> float:
    """Of the last minute."""
    return round(os.getloadavg()[0], 2)


def busy_cpu_s() -> float:
    """Seconds that all processors were not idle since the machine began, what a hypervisor took away included."""
    return busy_ticks(STAT.read_text(), None) / os.sysconf("SC_CLK_TCK")


def commit_of(repository: Path) -> str:
    """The commit that is checked out; where tracked files differ from it, their difference's hash behind it."""

    def git(*arguments: str) -> bytes:
        return subprocess.run(["git", "-C", str(repository), *arguments], capture_output=True, check=True).stdout

    commit = git("rev-parse", "--short=12", "HEAD").decode().strip()
    changes = git("diff", "HEAD", "--", ".", f":!{RESULTS}")
    return f"{commit}+{hashlib.sha256(changes).hexdigest()[:8]}" if changes else commit


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
