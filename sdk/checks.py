"""The rows of the doctor's table: what was found of one library, of the GPU, of the engine cache, and what mends it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from posekit.runtime.cuda import PROVIDERS
from posekit.runtime.cuda.cuda_python import REMEDY_DRIVER
from posekit.runtime.cuda.driver import Device
from posekit.runtime.engines.cache import CacheEntry, EngineCache
from posekit.runtime.errors import PosekitError
from posekit.runtime.machine import Machine
from posekit.trial import Outcome, Status

NEEDS_GPU = (*PROVIDERS, "tensorrt", "tensorrt-rtx", "onnxruntime-cuda")
NO_DRIVER = "no NVIDIA driver on this machine"
OLDEST_PYTHON = (3, 10)

# Whose version it is, by the names that a package index has for it.
DISTRIBUTIONS: dict[str, tuple[str, ...]] = {
    "numpy": ("numpy",),
    "opencv": ("opencv-python-headless", "opencv-python", "opencv-contrib-python-headless", "opencv-contrib-python"),
    "cuda-bindings": ("cuda-bindings",),
    "pycuda": ("pycuda",),
    "tensorrt": ("tensorrt",),
    "tensorrt-rtx": ("tensorrt-rtx", "tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu12-bindings"),
    "onnxruntime-cuda": ("onnxruntime-gpu",),
    "openvino": ("openvino",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
}


@dataclass(frozen=True)
class Check:
    """One row of the table. See the module's page."""

    code: str
    status: Status
    found: str
    version: str | None = None
    remedy: str | None = None


def python_check(machine: Machine) -> Check:
    new_enough = tuple(int(n) for n in machine.python.split(".")[:2]) >= OLDEST_PYTHON
    oldest = ".".join(map(str, OLDEST_PYTHON))
    remedy = None if new_enough else f"Make a virtual environment with Python {oldest} or later."
    return Check("python", "ok" if new_enough else "broken", f"Python {machine.python}", machine.python, remedy)


def numpy_check() -> Check:
    version = metadata.version("numpy")
    return Check("numpy", "ok", f"NumPy {version}", version)


def without_gpu(machine: Machine, gpu: Device | None) -> bool:
    """Nothing speaks of one: no GPU was opened, there is neither NVIDIA's kernel module nor a Jetson."""
    return gpu is None and machine.nvidia_driver is None and machine.jetson is None


def driver_check(machine: Machine, gpu: Device | None, outcomes: Sequence[Outcome]) -> Check:
    """outcomes: of the CUDA providers. broken: there is a driver, and no provider can open a GPU through it."""
    version = machine.nvidia_driver
    if gpu is not None:
        name = f"{gpu.name} (SM{gpu.sm}), {gpu.memory_bytes / 2**30:.1f} GiB, CUDA {gpu.driver_version}"
        return Check("cuda-driver", "ok", f"driver {version}, {name}" if version else name, version)
    if without_gpu(machine, gpu):
        return Check("cuda-driver", "absent", NO_DRIVER, remedy=REMEDY_DRIVER)
    driver = f"driver {version or 'of unknown version'}"
    failed = next((outcome for outcome in outcomes if outcome.status == "broken"), None)
    if failed is None:
        return Check("cuda-driver", "absent", f"{driver}; nothing to reach it by", version, outcomes[0].remedy)
    found = f"{driver}, and no GPU can be opened: {failed.found}"
    return Check("cuda-driver", "broken", found, version, _container_hint(failed))


def _container_hint(outcome: Outcome) -> str:
    inside = any(Path(mark).exists() for mark in ("/.dockerenv", "/run/.containerenv"))
    hint = " In a container: start it with --gpus all (Jetson: --runtime nvidia)." if inside else ""
    return f"{outcome.remedy}{hint}"


def library_check(code: str, outcome: Outcome, no_gpu: bool) -> Check:
    """What needs a GPU is not broken where there is none, and installing it would mend nothing."""
    version = _version(DISTRIBUTIONS[code])
    if no_gpu and code in NEEDS_GPU and outcome.status != "ok":
        here = f"{version} is installed" if version else "not installed"
        return Check(code, "absent", f"{here}; {NO_DRIVER}", version, REMEDY_DRIVER)
    return Check(code, outcome.status, outcome.found, version, outcome.remedy)


def _version(distributions: Iterable[str]) -> str | None:
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def engine_cache_check() -> tuple[tuple[CacheEntry, ...], Check]:
    """What is in it; broken when engines could not be kept."""
    try:
        cache = EngineCache()
        entries = cache.entries()
    except (PosekitError, OSError) as error:
        remedy = error.remedy if isinstance(error, PosekitError) else "Set POSEKIT_CACHE to a folder of your own."
        return (), Check("engine-cache", "broken", str(error), remedy=remedy)
    there = next(folder for folder in (cache.folder, *cache.folder.parents) if folder.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        remedy = "Set POSEKIT_CACHE to a folder that can be written, or every run builds its engines again."
        return entries, Check("engine-cache", "broken", f"{cache.folder} cannot be written", remedy=remedy)
    size_mb = sum(entry.size for entry in entries) / 1e6
    count = f"{len(entries)} engine{'' if len(entries) == 1 else 's'}"
    return entries, Check("engine-cache", "ok", f"{count}, {size_mb:.0f} MB, in {cache.folder}")


def export_tools_check() -> Check:
    """Everything that posekit[export] names, by package; nothing is imported, torch would take seconds."""
    remedy = "pip install 'posekit[export]'"
    try:
        wanted = metadata.requires("posekit") or []
    except metadata.PackageNotFoundError:
        return Check("export-tools", "broken", "posekit itself is not installed", remedy=remedy)
    lines = [line for line in wanted if re.search(r"extra == .export.", line) and "python_version" not in line]
    names = [match[0] for match in (re.match(r"[A-Za-z0-9._-]+", line) for line in lines) if match]
    versions = {name: _version((name,)) for name in names if name != "posekit"}
    lacking = [name for name, version in versions.items() if version is None]
    if lacking:
        return Check("export-tools", "absent", f"without {', '.join(lacking)}", remedy=remedy)
    shown = ", ".join(f"{name} {versions[name]}" for name in ("torch", "onnx") if name in versions)
    return Check("export-tools", "ok", f"{shown} and {len(versions) - 2} more", versions.get("torch"))
