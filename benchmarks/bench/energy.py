"""Energy per pose: mean power while a run lasts, with and without what the machine takes when it idles."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from posekit.benchmarks.bench.result import Readings

# What a machine takes, by the rails that it has: the first row whose first rail is there counts, its rails are added up.
# The input rail of a Jetson contains the others; modules of an AGX Orin or Thor have none and are fed by three. On a PC
# it is processors, their memory and graphics cards: not the board, drives and fans.
TOTALS: tuple[tuple[str, ...], ...] = (
    ("VDD_IN",),
    ("POM_5V_IN",),
    ("VIN",),
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
    ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),
    (r"package-\d+", r"package-\d+\.dram", r"gpu\d+"),
    (r"gpu\d+",),
)


@dataclass(frozen=True)
class Phase:
    """A part of the time that was watched, seconds since the start."""

    name: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Energy:
    """rails: that were added up.  idle: measured for idle_s before the run; None where it was not."""

    rails: tuple[str, ...]
    mean_w: float
    j_per_pose: float
    idle_w: float | None
    idle_s: float | None
    above_idle_j_per_pose: float | None


def energy(readings: Readings, run: Phase, poses: int, idle: Phase | None = None) -> Energy | None:
    """Of `poses` poses during `run`. None where no rail was read during it, or nothing was posed.

    above idle: (mean power of the run - mean power of `idle`) times its time. It may be negative: noise is not hidden.
    """
    rails = total_rails(tuple(readings))
    mean_w = power_w(readings, rails, run)
    if mean_w is None or poses < 1:
        return None
    pose_s = (run.end_s - run.start_s) / poses
    idle_w = power_w(readings, rails, idle) if idle else None
    return Energy(
        rails,
        mean_w,
        mean_w * pose_s,
        idle_w,
        idle.end_s - idle.start_s if idle and idle_w is not None else None,
        (mean_w - idle_w) * pose_s if idle_w is not None else None,
    )


def total_rails(names: Sequence[str]) -> tuple[str, ...]:
    """Of all readings' names those "power." ones that add up to the machine, as TOTALS has them. Empty: not known."""
    rails = [name.removeprefix("power.") for name in names if name.startswith("power.")]
    for row in TOTALS:
        if any(re.fullmatch(row[0], rail) for rail in rails):
            return tuple(rail for rail in rails if any(re.fullmatch(pattern, rail) for pattern in row))
    return ()


def power_w(readings: Readings, rails: Sequence[str], phase: Phase) -> float | None:
    """Mean of the sum of the rails. Each reading holds for the time since the one before, as an energy counter's does.

    None where a rail was not read during the phase.
    """
    means = [_mean(readings[f"power.{rail}"], phase) for rail in rails]
    known = [mean for mean in means if mean is not None]
    return sum(known) if known and len(known) == len(means) else None


def _mean(series: Sequence[tuple[float, float]], phase: Phase) -> float | None:
    joules, before_s = 0.0, phase.start_s
    for t_s, watts in series:
        if phase.start_s < t_s <= phase.end_s:
            joules, before_s = joules + watts * (t_s - before_s), t_s
    return joules / (before_s - phase.start_s) if before_s > phase.start_s else None
