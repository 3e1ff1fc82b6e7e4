"""Machines as files below a folder: what tests/golden/sensors has of them (its README.md says where the layouts are from)."""

from __future__ import annotations

import re
from pathlib import Path

SAMPLES = Path(__file__).parent / "golden" / "sensors"
PID = 4242  # of the watched process in the samples


def sampled_machine(name: str, root: Path) -> Path:
    """The files of tests/golden/sensors/NAME.txt, written below `root`."""
    texts: dict[str, list[str]] = {}
    for line in (SAMPLES / f"{name}.txt").read_text().splitlines():
        path, text = _split(line)
        texts.setdefault(path, []).append(text)
    for path, lines in texts.items():
        write(root, path, "\n".join(lines))
    return root


def write(root: Path, path: str, text: object) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(f"{text}\n")


def program(root: Path, name: str, *lines: str) -> None:
    """A shell script in the place of one of NVIDIA's tools."""
    path = root / "usr/bin" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)


def _split(line: str) -> tuple[str, str]:
    """At the first colon that is in no folder's name; those of RAPL have some ("intel-rapl:0:0/energy_uj:12")."""
    found = re.match(r"((?:[^:/]+/|intel-rapl[^/]*/)*[^:/]+):(.*)", line)
    if not found:
        raise ValueError(f"no line of `grep -r`: {line!r}")
    return found[1], found[2]
