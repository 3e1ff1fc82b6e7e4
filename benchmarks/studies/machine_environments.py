"""Environments in which the same bundle must give the same poses: other versions, another Python, another processor."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from posekit.runtime.errors import BackendError

ROOT = Path(__file__).resolve().parents[2]
AARCH64_ENV = Path(__file__).with_name("aarch64_env.sh")
OLDER_ONNX_RUNTIME = "1.23.2"  # what constraints.txt has for Python 3.10, the one of JetPack 6
QEMU = "qemu-aarch64-static"


@dataclass(frozen=True)
class Started:
    """How Python is started there: the beginning of the command line, and variables beside this process's own."""

    command: tuple[str, ...]
    variables: dict[str, str] = field(default_factory=dict)

    def run(self, arguments: Sequence[str], timeout_s: float | None = None) -> subprocess.CompletedProcess[str]:
        """To its end, with what it said."""
        command, variables = [*self.command, *arguments], {**os.environ, **self.variables}
        return subprocess.run(command, check=False, capture_output=True, text=True, env=variables, timeout=timeout_s)


@dataclass(frozen=True)
class Environment:
    """made: folder and further packages -> how it is started. Raises BackendError saying why there is none here."""

    name: str
    backends: tuple[str, ...]
    made: Callable[[Path, Sequence[str]], Started]

    @property
    def named_backends(self) -> tuple[tuple[str, str], ...]:
        """(name with the backend, backend); `name` itself says which ONNX Runtime it is."""
        other = self.name.rsplit(",", 1)[0]
        return tuple((self.name if b == "onnxruntime" else f"{other}, OpenVINO", b) for b in self.backends)


def this_python(folder: Path, packages: Sequence[str] = ()) -> Started:
    return Started((sys.executable,))


def older_onnx_runtime(folder: Path, packages: Sequence[str] = ()) -> Started:
    """This Python, with another ONNX Runtime found first."""
    asked = ["--no-deps", f"onnxruntime=={OLDER_ONNX_RUNTIME}"]
    return _with_packages(sys.executable, folder, asked)


def other_python(version: str, folder: Path, packages: Sequence[str] = ()) -> Started:
    """A Python of this machine, with the packages of constraints.txt."""
    python = python_of(version)
    asked = ["-c", str(ROOT / "constraints.txt"), "numpy", "opencv-python-headless", "onnxruntime", *packages]
    return _with_packages(python, folder, asked)


def emulated(version: str, folder: Path, packages: Sequence[str] = ()) -> Started:
    """An aarch64 Python under qemu-user. What is in the folder already is used."""
    problem = emulation_missing(version)
    if problem:
        raise _missing(f"aarch64, Python {version}", problem, "On Debian: apt-get install qemu-user-static.")
    if not (folder / "python").is_file():
        _checked(["bash", str(AARCH64_ENV), str(folder), python_of(version), *packages], f"aarch64, Python {version}")
    return Started((str(folder / "python"),))


def emulation_missing(version: str) -> str | None:
    """Why an aarch64 Python of that version cannot be set up here, or None."""
    for tool in (QEMU, "apt-get", "dpkg"):
        if shutil.which(tool) is None:
            return f"no {tool} on this machine"
    try:
        python_of(version)
    except BackendError as error:
        return str(error)
    return None


ENVIRONMENTS = (
    Environment("x86-64, Python 3.11, ONNX Runtime 1.31", ("onnxruntime", "openvino"), this_python),
    Environment("x86-64, Python 3.11, ONNX Runtime 1.23", ("onnxruntime",), older_onnx_runtime),
    Environment("x86-64, Python 3.10, ONNX Runtime 1.23", ("onnxruntime", "openvino"), partial(other_python, "3.10")),
    Environment("aarch64, Python 3.11, ONNX Runtime 1.31", ("onnxruntime",), partial(emulated, "3.11")),
    Environment("aarch64, Python 3.10, ONNX Runtime 1.23", ("onnxruntime",), partial(emulated, "3.10")),
)


def python_of(version: str) -> str:
    """A Python of that minor version on this machine. BackendError where there is none."""
    for candidate in _pythons(version):
        asked = [candidate, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        try:
            answer = subprocess.run(asked, check=False, capture_output=True, text=True)
        except OSError:
            continue
        if answer.stdout.strip() == version:
            return candidate
    raise _missing(f"Python {version}", "none on PATH or of pyenv", "Install it, with pip.")


def _pythons(version: str) -> Iterator[str]:
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        yield sys.executable
    found = shutil.which(f"python{version}")
    if found:
        yield found
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from sorted(map(str, pyenv.glob(f"versions/{version}.*/bin/python{version}")))


def _with_packages(python: str, folder: Path, asked: Sequence[str]) -> Started:
    """Packages in a folder of their own, which is searched before the Python's own."""
    site = folder / "site"
    if not site.is_dir():
        command = [python, "-m", "pip", "--disable-pip-version-check", "install", "-q", "--only-binary=:all:"]
        _checked([*command, "--target", str(folder / "partial"), *asked], python)
        (folder / "partial").rename(site)
    return Started((python,), {"PYTHONPATH": f"{ROOT / '.typing'}:{site}"})


def _checked(command: Sequence[str], what: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        raise _missing(what, said[-1], f"Run it by hand: {' '.join(command[:3])} ...")


def _missing(what: str, got: str, remedy: str) -> BackendError:
    return BackendError(f"environment {what}", got=got, expected="what it is made from", remedy=remedy)
