"""Verify every variant of every pose path of a bundle, on every backend at hand, and say what it costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from posekit.benchmarks.pose_error import ScoredObject, scored_object
from posekit.export.verify.figures import Figures, figures_of, settled_samples
from posekit.export.verify.gates import GateResult, Gates, judged
from posekit.export.verify.observe import GreyNoise, Observation, observe, variant_opener
from posekit.export.verify.samples import Sample
from posekit.runtime.backends import BACKENDS, open_session
from posekit.runtime.bundle import Bundle
from posekit.runtime.errors import BackendError, CalibrationError
from posekit.runtime.manifest import PathEntry, Precision

REFERENCE_BACKEND = "onnxruntime"
REFERENCE_PRECISION: Precision = "fp32"
FLOOR_GREY_LEVELS = 1  # what two pictures of an unchanged scene differ by at least
FLOOR_DRAWS = 3
MIN_SAMPLES = 32
RANDOM_ORIGIN = "random weights"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Verdict:
    """One variant of one path on one backend. trained: judged by poses; else, with random weights, by numbers.

    binding: the backend takes this variant of its own accord; one that prefers fp32 runs others on request only, in an
    arithmetic that no device has, and its figures bind nobody.
    """

    path: str
    precision: Precision
    backend: str
    ran_on: tuple[str, ...]
    trained: bool
    binding: bool
    figures: Figures
    gates: tuple[GateResult, ...]

    @property
    def passed(self) -> bool:
        return all(gate.passed for gate in self.gates)


@dataclass(frozen=True)
class Verification:
    """floors: path -> the reference against itself under noise, per draw.  skipped: what was not run, and why."""

    n_samples: int
    floors: dict[str, tuple[Figures, ...]]
    verdicts: tuple[Verdict, ...]
    skipped: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return all(verdict.passed for verdict in self.verdicts if verdict.binding)


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
    floors: dict[str, tuple[Figures, ...]] = {}
    verdicts: list[Verdict] = []
    for path, entry in bundle.manifest.paths.items():
        mine = [sample for sample in samples if sample.detection.object_id in entry.object_ids]
        check_enough(mine, f"path {path}")
        one = _Path(bundle, path, entry, mine, scored, progress)
        base = baseline(bundle, path, mine, scored, progress)
        floors[path] = base.floors
        for backend, precision in one.variants(wanted):
            seen = one.seen(backend, precision)
            figures = figures_of(base.reference, seen, mine, scored, base.settled)
            results = judged(figures, base.floors, gates, one.trained)
            binding = _takes(backend, precision)
            verdicts.append(Verdict(path, precision, backend, seen.backends, one.trained, binding, figures, results))
    return Verification(len(samples), floors, tuple(verdicts), tuple(skipped))


@dataclass(frozen=True, eq=False)
class Baseline:
    """fp32 on the reference backend, and what noise does to it. settled: per sample, whether its pose stays put."""

    reference: Observation
    floors: tuple[Figures, ...]
    settled: tuple[bool, ...]


def baseline(
    bundle: Bundle, path: str, samples: Sequence[Sample], objects: Mapping[int, ScoredObject], progress: Progress
) -> Baseline:
    """Run the path in fp32, plain and under each draw of noise."""
    opener = variant_opener(bundle, path, REFERENCE_BACKEND, REFERENCE_PRECISION)

    def seen(what: str, noise: GreyNoise | None) -> Observation:
        stage = f"fp32 of {path}{what}"
        return observe(bundle, path, samples, opener, noise, lambda done, total: progress(stage, done, total))

    reference = seen("", None)
    shaken = [seen(f", noise {k + 1}", GreyNoise(FLOOR_GREY_LEVELS, k)) for k in range(FLOOR_DRAWS)]
    settled = settled_samples(reference, shaken, samples, objects)
    floors = tuple(figures_of(reference, one, samples, objects, settled) for one in shaken)
    return Baseline(reference, floors, settled)


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

    def seen(self, backend: str, precision: Precision) -> Observation:
        stage = f"verify {self.name} {precision} on {backend}"
        return observe(
            self.bundle,
            self.name,
            self.samples,
            variant_opener(self.bundle, self.name, backend, precision),
            advance=lambda done, total: self.progress(stage, done, total),
        )


def _takes(backend: str, precision: Precision) -> bool:
    """Whether a backend runs this precision rather than fp32, or it is fp32."""
    order = BACKENDS[backend].precisions
    return order.index(precision) <= order.index("fp32")


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
