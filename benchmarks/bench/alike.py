"""Whether two sides may be compared: what must be equal, what may differ but is said, and which runs count at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

from posekit.benchmarks.bench.baseline import Evidence
from posekit.benchmarks.bench.result import BenchResult
from posekit.runtime.errors import InputError

Allowed = Literal["machine", "bundle", "settings", "invalid"]
ALLOWED: tuple[Allowed, ...] = get_args(Allowed)
ABSENT = "none"
MODE = "mode"


def _machine(result: BenchResult) -> dict[str, object]:
    """What decides how fast it is. Memory to the GiB: the kernel's own share of it varies."""
    machine, cpu, jetson = result.machine, result.machine.cpu, result.machine.jetson
    memory = machine.memory_bytes
    return {
        "architecture": machine.architecture,
        "processor": cpu.model,
        "logical processors": cpu.count,
        "instructions": " ".join(cpu.instructions),
        "governor": cpu.governor,
        "memory, GiB": round(memory / 2**30) if memory else None,
        "NVIDIA driver": machine.nvidia_driver,
        "Jetson": jetson and jetson.model,
        "L4T": jetson and jetson.l4t,
        "power mode": jetson and jetson.power_mode,
    }


def _settings(result: BenchResult) -> dict[str, object]:
    """What was run on what, and how long; the bundle apart."""
    modes = {f"{MODE} {run.mode}": _sorted(run.settings) for run in result.runs}
    return {
        "path": result.path,
        "precision": result.precision,
        "backends": ", ".join(result.backends),
        "frames": result.frames_source,
        "frame size, px": "x".join(map(str, result.frame_wh_px)),
        "boxes": result.boxes,
        **modes,
    }


def _software(result: BenchResult) -> dict[str, object]:
    machine = result.machine
    return {
        "system": machine.os,
        "kernel": machine.kernel,
        "Python": machine.python,
        "posekit": result.posekit,
        **result.packages,
    }


MUST_BE_EQUAL: dict[Allowed, Callable[[BenchResult], dict[str, object]]] = {
    "machine": _machine,
    "bundle": lambda result: {"bundle, sha256": result.bundle_sha256},
    "settings": _settings,
}


def checked_alike(base: Sequence[Evidence], new: Sequence[Evidence], allow: Sequence[Allowed] = ()) -> tuple[str, ...]:
    """Differences that do not forbid the comparison, a sentence each: of software, and those that were allowed.

    Raises InputError where runs are invalid, or differ in machine, bundle or settings, and that is not allowed; within a
    side it never is. The difference is in the message.
    """
    notes = _checked_valid([*base, *new], allow, " --allow invalid compares them all the same.")
    for side in (base, new):
        _check_side(side)
    notes += _check_equal(base[0], new[0], allow, "BASE and NEW")
    software = _differences(_software(base[0].result), _software(new[0].result))
    return (*notes, *(f"differs in {text}" for text in software))


def check_baseline(runs: Sequence[Evidence]) -> None:
    """InputError where runs are invalid, or differ in machine, bundle or settings: nothing allows that in a baseline."""
    _checked_valid(runs, (), "")
    _check_side(runs)


def _check_side(runs: Sequence[Evidence]) -> None:
    for run in runs[1:]:
        _check_equal(runs[0], run, (), "runs of one side")


def _checked_valid(runs: Sequence[Evidence], allow: Sequence[Allowed], otherwise: str) -> list[str]:
    """otherwise: what the command offers besides measuring again."""
    invalid = {run.name: "; ".join(run.result.reasons) for run in runs if not run.result.valid}
    texts = [f"{name} is INVALID: {reasons}" for name, reasons in invalid.items()]
    if texts and "invalid" not in allow:
        raise InputError(
            "comparison",
            got="; ".join(texts),
            expected="runs whose figures may be compared",
            remedy=f"Run the benchmark again on a machine that keeps still.{otherwise}",
        )
    return texts


def _check_equal(one: Evidence, other: Evidence, allow: Sequence[Allowed], who: str) -> list[str]:
    notes = []
    for what, of in MUST_BE_EQUAL.items():
        found = _differences(of(one.result), of(other.result))
        if found and what not in allow:
            asked = f" --allow {what} compares them all the same." if who.startswith("BASE") else ""
            raise InputError(
                f"comparison of {one.name} with {other.name}",
                got=f"another {what}: {'; '.join(found)}",
                expected=f"{who} of the same {what}",
                remedy=f"Measure both alike.{asked}",
            )
        notes += [f"{what} differs: {text}" for text in found]
    return notes


def _differences(one: Mapping[str, object], other: Mapping[str, object]) -> list[str]:
    """ "governor: schedutil, then performance" for each that is not equal."""
    keys = [*one, *(key for key in other if key not in one)]
    keys = [key for key in keys if not key.startswith(f"{MODE} ") or (key in one and key in other)]  # gates name theirs
    pairs = [(key, one.get(key), other.get(key)) for key in keys]
    return [f"{key}: {_or_absent(a)}, then {_or_absent(b)}" for key, a, b in pairs if a != b]


def _or_absent(value: object) -> object:
    return ABSENT if value in (None, "") else value


def _sorted(settings: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in sorted(settings.items())) or "default"
