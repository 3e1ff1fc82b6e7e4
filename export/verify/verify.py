"""Verify every variant of every pose path of a bundle, on every backend at hand, and say what it costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from posekit.benchmarks.pose_error import ScoredObject, scored_object
from posekit.export.verify.figures import Figures, figures_of
from posekit.export.verify.gates import GateResult, Gates, judged
from posekit.export.verify.observe import Observation, observe, variant_opener
from posekit.export.verify.samples import Sample
from posekit.runtime.backends import BACKENDS, open_session
from posekit.runtime.bundle import Bundle
from posekit.runtime.errors import BackendError, CalibrationError
from posekit.runtime.manifest import PathEntry, Precision

REFERENCE_BACKEND = "onnxruntime"
REFERENCE_PRECISION: Precision = "fp32"
FLOOR_GREY_LEVELS = 1  # what two pictures of an unchanged scene differ by at least
MIN_SAMPLES = 32
RANDOM_ORIGIN = "random weights"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Verdict:
    """One variant of one path on one backend. trained: judged by poses; else, with random weights, by numbers."""

    path: str
    precision: Precision
    backend: str
    ran_on: tuple[str, ...]
    trained: bool
    figures: Figures
    gates: tuple[GateResult, ...]

    @property
    def passed(self) -> bool:
        return all(gate.passed for gate in self.gates)


@dataclass(frozen=True)
class Verification:
    """floors: path -> the reference against itself under one grey level of noise.  skipped: what was not run, and why."""

    n_samples: int
    floors: dict[str, Figures]
    verdicts: tuple[Verdict, ...]
    skipped: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return all(verdict.passed for verdict in self.verdicts)


def verify_bundle(
    bundle: Bundle,
    samples: Sequence[Sample],
    gates: Gates,
    progress: Progress = lambda stage, done, total: None,
    backends: Sequence[str] | None = None,
) -> Verification:
    """Compare every variant with fp32 on ONNX Runtime, path by path. backends: those that can run here if None.

    Raises CalibrationError for a path with fewer than MIN_SAMPLES samples, and what running a path raises.
    """
    wanted, skipped = _runnable(bundle, backends)
    scored = {entry.id: scored_object(bundle, entry) for entry in bundle.manifest.objects}
    floors: dict[str, Figures] = {}
    verdicts: list[Verdict] = []
    for path, entry in bundle.manifest.paths.items():
        mine = [sample for sample in samples if sample.detection.object_id in entry.object_ids]
        check_enough(mine, f"path {path}")
        one = _Path(bundle, path, entry, mine, scored, progress)
        reference = one.seen(REFERENCE_BACKEND, REFERENCE_PRECISION)
        shaken = one.seen(REFERENCE_BACKEND, REFERENCE_PRECISION, FLOOR_GREY_LEVELS)
        floors[path] = figures_of(reference, shaken, mine, scored)
        for backend, precision in one.variants(wanted):
            seen = one.seen(backend, precision)
            figures = figures_of(reference, seen, mine, scored)
            results = judged(figures, floors[path], gates, one.trained)
            verdicts.append(Verdict(path, precision, backend, seen.backends, one.trained, figures, results))
    return Verification(len(samples), floors, tuple(verdicts), tuple(skipped))


def check_enough(samples: Sequence[Sample], what: str) -> None:
    """CalibrationError for fewer samples than a 95th percentile needs."""
    if len(samples) < MIN_SAMPLES:
        raise CalibrationError(
            f"verification of {what}",
            got=f"{len(samples)} crops",
            expected=f"at least {MIN_SAMPLES}",
            remedy="Give more frames, or boxes of the objects that this path knows.",
        )


def is_trained(bundle: Bundle, entry: PathEntry) -> bool:
    """Whether the path's poses mean something: not with random weights, which the bundle's provenance states."""
    network = entry.graph.split(".")[0]
    return not bundle.manifest.provenance.get(f"checkpoint of {network}", "").startswith(RANDOM_ORIGIN)


@dataclass(frozen=True, eq=False)
class _Path:
    bundle: Bundle
    name: str
    entry: PathEntry
    samples: Sequence[Sample]
    scored: Mapping[int, ScoredObject]
    progress: Progress

    @property
    def trained(self) -> bool:
        return is_trained(self.bundle, self.entry)

    def variants(self, backends: Sequence[str]) -> list[tuple[str, Precision]]:
        """Every other way to run this path: backend by backend, in the order in which the manifest lists precisions."""
        listed = self.bundle.manifest.graphs[self.entry.graph].variants
        return [
            (backend, precision)
            for backend in backends
            for precision in listed
            if precision in BACKENDS[backend].precisions
            and (backend, precision) != (REFERENCE_BACKEND, REFERENCE_PRECISION)
        ]

    def seen(self, backend: str, precision: Precision, grey_levels: int = 0) -> Observation:
        noise = " under noise" * bool(grey_levels)
        stage = f"verify {self.name} {precision} on {backend}{noise}"
        return observe(
            self.bundle,
            self.name,
            self.samples,
            variant_opener(self.bundle, self.name, backend, precision),
            grey_levels,
            advance=lambda done, total: self.progress(stage, done, total),
        )


def _runnable(bundle: Bundle, backends: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Backends that open the default path's graph on this machine, and a sentence for each that does not."""
    if backends is not None:
        return list(backends), []
    graph = bundle.manifest.paths[bundle.manifest.default_path].graph
    runnable, skipped = [], []
    for name in BACKENDS:
        try:
            open_session(bundle, graph, backend=name).close()
        except BackendError as error:
            skipped.append(f"{name}: {error}")
        else:
            runnable.append(name)
    return runnable, skipped
