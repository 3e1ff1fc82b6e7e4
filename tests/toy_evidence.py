"""Evidence as `posekit bench` leaves it, from samples that a test makes up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from posekit.benchmarks.accuracy import Accuracy, ObjectAccuracy
from posekit.benchmarks.bench.baseline import Evidence
from posekit.benchmarks.bench.result import (
    FORMAT,
    TOTAL,
    BenchResult,
    ColdStart,
    Deadlines,
    Readings,
    Run,
    Samples,
    Stage,
    WarmUp,
    Watched,
    write_evidence,
)
from posekit.benchmarks.bench.statistics import NS_PER_MS, summary_from
from posekit.benchmarks.bench.truth_errors import TruthErrors
from posekit.runtime.machine import Cpu, Machine

MODE = "back-to-back"
MACHINE = Machine(
    "x86_64", "3.11.7", "Toy OS 1", "6.1", Cpu("Toy CPU", 4, ("avx2",), "performance"), 8 << 30, None, None
)
Milliseconds = NDArray[np.float64]


def latencies_ms(
    seed: int = 0, count: int = 200, middle_ms: float = 10.0, between: float = 0.01, within: float = 0.05
) -> Milliseconds:
    """One run: log-normal passes that are correlated, around a middle that differs from run to run."""
    random = np.random.default_rng(seed)
    noise = np.convolve(random.normal(size=count + 4), np.ones(5) / 5**0.5, "valid")
    found: Milliseconds = middle_ms * np.exp(between * random.normal() + within * noise)
    return found


def accuracy(rotation_deg: Sequence[float | None]) -> Accuracy:
    errors = [error for error in rotation_deg if error is not None]
    n = len(rotation_deg)
    half = float(np.median(errors)) if errors else None
    row = ObjectAccuracy(1, "toy", n, len(errors), len(errors) / n, 0.5, 0.5, half, half, half, len(errors) / n)
    return Accuracy((row,), row, None)


def truth_errors(rotation_deg: Sequence[float | None]) -> TruthErrors:
    """Millimetres as many as degrees; what was found is right."""
    errors = tuple(rotation_deg)
    return TruthErrors((1,) * len(errors), errors, errors, tuple(error is not None for error in errors))


def evidence(
    total_ms: Milliseconds | None = None,
    name: str = "run",
    rotation_deg: Sequence[float | None] | None = None,
    paced: bool = False,
    **changed: Any,
) -> Evidence:
    """changed: fields of BenchResult."""
    total_ms = latencies_ms() if total_ms is None else total_ms
    total_ns = np.rint(total_ms * NS_PER_MS).astype(np.int64)
    network_ns = (total_ns * 6) // 10
    stages = {"detect": total_ns * 3 // 10, "network": network_ns, "solve": total_ns // 10, TOTAL: total_ns}
    samples: Samples = {MODE: {stage: tuple(int(v) for v in values) for stage, values in stages.items()}}
    samples[MODE]["pose gpu"] = tuple(int(v) for v in network_ns * 9 // 10)
    if paced:
        samples["paced"] = samples[MODE]
    runs = tuple(_run(mode, values) for mode, values in samples.items())
    fields: dict[str, Any] = {
        "format": FORMAT,
        "posekit": "0.1.0",
        "command": "posekit bench toy.posekit frames",
        "date": "2026-01-02T03:04:05+00:00",
        "bundle": "toy.posekit",
        "bundle_sha256": "ab" * 32,
        "path": "direct",
        "precision": "fp16",
        "backends": ("pose: ONNX Runtime 1.0, CPU",),
        "frames_source": "frames",
        "frame_wh_px": (640, 480),
        "boxes": "detector",
        "machine": MACHINE,
        "packages": {"numpy": "2.0"},
        "valid": True,
        "reasons": (),
        "cold_start": ColdStart(100.0, 20.0, 150.0, 30.0, 300.0, "none: this backend has no engines"),
        "warm_up": WarmUp(30, 0.4, True, 0.01),
        "runs": runs,
        "watched": (Watched("cpu0 MHz", "MHz", 2000.0, 1990.0, 1999.0, 2001.0, 2000.0),),
        "accuracy": accuracy(rotation_deg) if rotation_deg else None,
        "truth_errors": truth_errors(rotation_deg) if rotation_deg else None,
    }
    return Evidence(name, BenchResult(**fields | changed), samples)


def several(count: int, slower: float = 1.0, seed: int = 0, between: float = 0.01, name: str = "run") -> list[Evidence]:
    """Runs alike but for noise, all `slower` times as long."""
    return [evidence(latencies_ms(seed + k, between=between) * slower, f"{name}-{k}") for k in range(count)]


def written(folder: Path, run: Evidence, readings: Mapping[str, Any] | None = None) -> Path:
    """As an evidence folder of the run's name."""
    where = folder / run.name
    where.mkdir(parents=True, exist_ok=True)
    assert run.samples is not None
    found: Readings = dict(readings or {"cpu0 MHz": ((0.0, 2000.0), (0.5, 1990.0), (1.0, 2001.0))})
    write_evidence(where, run.result, run.samples, found)
    return where


def _run(mode: str, samples: Mapping[str, Sequence[int]]) -> Run:
    stages = tuple(
        Stage(stage, "device" if stage.endswith(" gpu") else "host", summary_from(values))
        for stage, values in samples.items()
    )
    total = samples[TOTAL]
    seconds = sum(total) / 1e9
    rate_hz = 100.0
    late = [value / NS_PER_MS - 1000 / rate_hz for value in total if value / NS_PER_MS > 1000 / rate_hz]
    deadlines = Deadlines(rate_hz, len(late), len(total), max(late, default=0.0)) if mode == "paced" else None
    settings = {"rate_hz": rate_hz} if deadlines else {}
    return Run(mode, settings, len(total), seconds, 3.0, len(total) / seconds, stages, deadlines)
