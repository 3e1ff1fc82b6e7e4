"""Verify every variant of every pose path of a bundle, on every backend at hand, and say what it costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from posekit.export.steps import Keeping
from posekit.export.verify.causes import causes_of
from posekit.export.verify.gates import AnyFigures, GateResult, Gates, judged
from posekit.export.verify.reference import (
    REFERENCE_BACKEND,
    REFERENCE_PRECISION,
    BoxReference,
    PoseReference,
    Progress,
)
from posekit.export.verify.samples import Sample
from posekit.runtime.backends import BACKENDS, open_session
from posekit.runtime.bundle import Bundle
from posekit.runtime.errors import BackendError, CalibrationError
from posekit.runtime.manifest import Precision

AnyReference = PoseReference | BoxReference
ASKED_SAMPLES = 4


@dataclass(frozen=True)
class Verdict:
    """One variant of one path on one backend. trained: judged by poses; else, with random weights, by numbers.

    binding: the backend takes this variant of its own accord; one that prefers fp32 runs others on request only, in an
    arithmetic that no device has, and its figures bind nobody.  causes: of a missed gate, sentences.
    """

    path: str
    precision: Precision
    backend: str
    ran_on: tuple[str, ...]
    trained: bool
    binding: bool
    figures: AnyFigures
    gates: tuple[GateResult, ...]
    causes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return all(gate.passed for gate in self.gates)


@dataclass(frozen=True)
class Verification:
    """floors: path -> the reference against itself under noise, per draw.  skipped: what was not run, and why."""

    n_samples: int
    floors: dict[str, tuple[AnyFigures, ...]]
    verdicts: tuple[Verdict, ...]
    skipped: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return all(verdict.passed for verdict in self.verdicts if verdict.binding)


@dataclass(frozen=True)
class _Compared:
    """What a variant says, and what ran it."""

    figures: AnyFigures
    ran_on: tuple[str, ...]


def verify_bundle(
    bundle: Bundle,
    samples: Sequence[Sample],
    gates: Gates,
    progress: Progress = lambda stage, done, total: None,
    backends: Sequence[str] | None = None,
    steps: Keeping | None = None,
) -> Verification:
    """Compare every variant with fp32 on ONNX Runtime, path by path, and of the detector. backends: those that can run here if None.

    steps: remembers figures; without it everything runs. Raises CalibrationError for a path with too few samples, and
    what running a path raises.
    """
    wanted, skipped = _runnable(bundle, backends)
    references: list[AnyReference] = [
        PoseReference.of(bundle, path, samples, progress, steps) for path in bundle.manifest.paths
    ]
    if bundle.manifest.detector:
        try:
            references.append(BoxReference.of(bundle, samples, progress, steps))
        except CalibrationError as error:  # crops there are enough, frames not; export asks for both beforehand
            skipped.append(str(error))
    floors: dict[str, tuple[AnyFigures, ...]] = {}
    verdicts: list[Verdict] = []
    for reference in references:
        floors[reference.name] = reference.floors
        verdicts += _verdicts(reference, wanted, gates)
    return Verification(len(samples), floors, tuple(verdicts), tuple(skipped))


def _verdicts(reference: AnyReference, backends: Sequence[str], gates: Gates) -> Iterator[Verdict]:
    for backend, precision in _variants(reference, backends):
        found = _compared(reference, backend, precision)
        results = judged(found.figures, reference.floors, gates, reference.trained)
        missed = not all(gate.passed for gate in results)
        yield Verdict(
            path=reference.name,
            precision=precision,
            backend=backend,
            ran_on=found.ran_on,
            trained=reference.trained,
            binding=_takes(backend, precision),
            figures=found.figures,
            gates=results,
            causes=_causes(reference, precision) if missed else (),
        )


def _causes(reference: AnyReference, precision: Precision) -> tuple[str, ...]:
    """Asked of a few samples: what is broken is broken on each."""
    if precision == REFERENCE_PRECISION:
        return ()
    return causes_of(reference.bundle, reference.graph, precision, reference.feeds(ASKED_SAMPLES))


def _variants(reference: AnyReference, backends: Sequence[str]) -> list[tuple[str, Precision]]:
    """Every other way to run this graph: backend by backend, in the order in which the manifest lists precisions."""
    listed = reference.bundle.manifest.graphs[reference.graph].variants
    return [
        (backend, precision)
        for backend in backends
        for precision in listed
        if BACKENDS[backend].runs(precision) and (backend, precision) != (REFERENCE_BACKEND, REFERENCE_PRECISION)
    ]


def _compared(reference: AnyReference, backend: str, precision: Precision) -> _Compared:
    manifest = reference.bundle.manifest
    stage = f"verify {reference.name} {precision} on {backend}"
    member = manifest.graphs[reference.graph].variants[precision]

    def run() -> _Compared:
        opener = reference.opener(backend, precision)
        found = reference.compared(opener, lambda done, total: reference.progress(stage, done, total))
        return _Compared(found.figures, found.ran_on)

    inputs = {"reference": reference.key, "file": manifest.files[member].sha256}
    return reference.steps.result(_Compared, stage, inputs, run)


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
