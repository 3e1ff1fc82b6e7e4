"""Fingerprints: sha256 over all that a step of an export depends on, its code included."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import sysconfig
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import numpy as np

from posekit.runtime import machine

ROOMS = tuple(import_module(f"posekit.{room}") for room in ("runtime", "calibration", "benchmarks", "export"))


def fingerprint(*values: object) -> str:
    """Of plain values, arrays, bytes, paths (their text), and dataclasses, tuples and mappings of these.

    Equal values have equal fingerprints, in every process. TypeError for anything else: no guess is made.
    """
    digest = hashlib.sha256()
    for value in values:
        _feed(digest, value)
    return digest.hexdigest()


@cache
def code() -> str:
    """Of posekit's own sources, and of the versions of Python and of every installed package."""
    names = sorted({f"{found.name}=={found.version}" for found in distributions()})
    return fingerprint(sys.version, names, {room.__name__: _sources(_folder(room)) for room in ROOMS})


def user_code() -> str:
    """Of every loaded module that is neither Python's, nor installed, nor posekit's: the user's networks and theirs.

    Of modules that a network only imports while it runs, nothing is known.
    """
    paths = sysconfig.get_paths()
    known = [Path(paths[name]).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    known += [_folder(room) for room in ROOMS]
    found = {}
    for name, module in sorted(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name == "__main__" or not file or not file.endswith(".py"):
            continue
        path = Path(file).resolve()
        if not any(path.is_relative_to(folder) for folder in known) and path.is_file():
            found[name] = path.read_bytes()
    return fingerprint(found)


@cache
def this_cpu() -> str:
    """What latencies depend on, as one may read it."""
    cpu = machine.cpu()
    return f"{cpu.model}, {cpu.count} processors"


def _folder(room: Any) -> Path:
    return Path(room.__path__[0]).resolve()


def _sources(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.py"))}


def _feed(digest: Any, value: object) -> None:
    """Every value with its type and length before it, so that no two different ones run into the same bytes."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        digest.update(b"record\n")
        _feed(digest, (type(value).__qualname__, fields))
    elif isinstance(value, np.ndarray):
        digest.update(f"array {value.dtype.str} {value.shape}\n".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, (bytes, memoryview)):
        digest.update(f"bytes {len(value)}\n".encode())
        digest.update(value)
    elif isinstance(value, Mapping):
        digest.update(b"table\n")
        _feed(digest, [list(row) for row in sorted(value.items(), key=lambda row: str(row[0]))])
    elif isinstance(value, (list, tuple)):
        digest.update(f"list {len(value)}\n".encode())
        for each in value:
            _feed(digest, each)
    elif isinstance(value, Path):
        _feed(digest, str(value))
    elif value is None or isinstance(value, (str, bool, int, float)):
        text = json.dumps(value).encode()
        digest.update(f"{type(value).__name__} {len(text)}\n".encode())
        digest.update(text)
    else:
        raise TypeError(f"no fingerprint of a {type(value).__name__}")
