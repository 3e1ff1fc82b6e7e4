"""Who may import whom, and what stays off the device and out of a quick start."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT: dict[str, set[str]] = {
    "runtime": set(),
    "calibration": {"runtime"},
    "benchmarks": {"runtime"},
    "export": {"runtime", "calibration", "benchmarks"},
    "sdk": {"runtime", "calibration", "export", "benchmarks"},
}
# What measures the whole house, and others beside it: free as tests are, not shipped.
ABOVE_THE_ROOF = {ROOT / "benchmarks" / name for name in ("studies", "peers", "suites")}
HEAVY = {
    "torch",
    "onnx",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "tensorrt_rtx_bindings",
    "cuda",
    "pycuda",
    "cv2",
    "scipy",
    "trimesh",
    "safetensors",
    "typer",
    "rich",
}
DOORS = {
    "torch": {"export"},
    "onnx": {"export", "calibration"},
    "onnxscript": {"export"},
    "onnxsim": {"export"},
    "trimesh": {"export"},
    "embreex": {"export"},
    "safetensors": {"export"},
    "onnxruntime": {"runtime/backends/ort.py", "calibration"},
    "openvino": {"runtime/backends/openvino.py"},
    "tensorrt": {"runtime/engines/api.py"},
    "tensorrt_rtx": {"runtime/engines/api.py"},
    "tensorrt_rtx_bindings": {"runtime/engines/api.py"},
    "cuda": {"runtime/cuda/cuda_python.py"},
    "pycuda": {"runtime/cuda/pycuda.py"},
    "typer": {"sdk"},
    "pynvml": {"benchmarks/bench/nvidia_sensors.py"},
}


def imports(path: Path, top_level_only: bool = False) -> Iterator[str]:
    tree = ast.parse(path.read_text())
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.relative_to(ROOT)}: write absolute imports"
            yield node.module or ""


def room_files(room: str) -> list[Path]:
    return sorted(path for path in (ROOT / room).rglob("*.py") if not ABOVE_THE_ROOF.intersection(path.parents))


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_room_imports_only_the_floors_below(room: str) -> None:
    for path in room_files(room):
        for name in imports(path):
            top, _, rest = name.partition(".")
            where = f"{path.relative_to(ROOT)} imports {name}"
            assert top not in MAY_IMPORT, f"{where}: say posekit.{name}"
            assert not name.startswith(tuple(f"posekit.benchmarks.{folder.name}" for folder in ABOVE_THE_ROOF)), where
            if top == "posekit" and room != "sdk":
                assert rest.split(".")[0] in MAY_IMPORT[room] | {room}, where


@pytest.mark.parametrize("library", DOORS)
def test_heavy_libraries_have_their_doors(library: str) -> None:
    for room in MAY_IMPORT:
        for path in room_files(room):
            if any(name.split(".")[0] == library for name in imports(path)):
                place = path.relative_to(ROOT).as_posix()
                assert any(place == door or place.startswith(door + "/") for door in DOORS[library]), place


def test_the_device_floor_needs_numpy_alone() -> None:
    """Everything else opens late, inside a function."""
    for path in room_files("runtime"):
        for name in imports(path, top_level_only=True):
            top = name.split(".")[0]
            assert top in {"numpy", "posekit"} or top in sys.stdlib_module_names, f"{path.name} imports {name}"


def loaded_by(code: str) -> set[str]:
    script = f"{code}\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


def test_importing_posekit_loads_no_heavy_library() -> None:
    assert not HEAVY & loaded_by("import posekit")


def test_importing_the_whole_runtime_loads_no_heavy_library() -> None:
    modules = (".".join(("posekit", *p.relative_to(ROOT).with_suffix("").parts)) for p in room_files("runtime"))
    names = ", ".join(m.removesuffix(".__init__") for m in modules)
    assert not HEAVY & loaded_by(f"import {names}")


def test_help_loads_no_heavy_library() -> None:
    code = "import sys; sys.argv = ['posekit', '--help']\nfrom posekit.cli import main\ntry: main()\nexcept SystemExit: pass"
    assert not (HEAVY - {"typer", "rich"}) & loaded_by(code)
