"""Verify every variant of every pose path of a bundle, on every backend at hand, and say what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from posekit.export.lint.lint_file import model_from_bytes
from posekit.export.steps import Keeping
from posekit.export.verify.causes import causes_of, lint_sentences
from posekit.export.verify.gates import (
    AnyFigures,
    GateResult,
    Gates,
    Outcome,
    file_result,
    judged,
    of_differences,
    outcome_of,
)
from posekit.export.verify.half_arithmetic import HalfArithmetic, half_arithmetic, has_halves
from posekit.export.verify.reference import (
    DETECTOR,
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
HALF_SAMPLES, ASKED_SAMPLES = 4, 8  # that float16 is tried on, and that causes are looked for on
UNBOUND = "no backend at hand takes it of its own accord, and ONNX Runtime was not asked: leave --backend out"


@dataclass(frozen=True)
class Verdict:
    """One variant of one path on one backend. trained: judged by poses; else, with random weights, by numbers.

    binding: the backend takes this variant of its own accord; one that prefers fp32 runs others on request only, and its
    figures bind nobody where another is at hand.  causes: of a missed gate, sentences.
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
    def outcome(self) -> Outcome:
        return outcome_of(self.gates)

    @property
    def passed(self) -> bool:
        return self.outcome == "held"


@dataclass(frozen=True)
class Unjudged:
    """A path or the detector, or one of its variants, of which nothing can be said, and why.

    precision: None for all.   binding: as of a `Verdict`.
    """

    path: str
    precision: Precision | None
    why: str
    binding: bool = True


@dataclass(frozen=True)
class Verification:
    """floors: path -> the reference against itself under noise, per draw.  skipped: backends that do not run here, and why.

    unjudged: what has no verdict; where one would bind, the whole is undecided.
    """

    n_samples: int
    floors: dict[str, tuple[AnyFigures, ...]]
    verdicts: tuple[Verdict, ...]
    skipped: tuple[str, ...]
    unjudged: tuple[Unjudged, ...] = ()

    @property
    def outcome(self) -> Outcome:
        """Of everything that binds: missed or undecided as soon as one verdict is."""
        found = {verdict.outcome for verdict in self.verdicts if verdict.binding}
        if "missed" in found:
            return "missed"
        return (
            "undecided" if "undecided" in found or any(each.binding for each in self.unjudged) or not found else "held"
        )

    def undecided(self) -> dict[tuple[str, Precision], str]:
        """Path (or the detector) and precision of every variant beside fp32 whose verdict is open -> why, a sentence."""
        found = {
            (
                verdict.path,
                verdict.precision,
            ): f"undecided: {'; '.join(f'{g.gate}: {g.why}' for g in verdict.gates if g.why)}"
            for verdict in self.verdicts
            if verdict.binding and verdict.outcome == "undecided"
        }
        found |= {
            (each.path, each.precision): f"undecided: {each.why}"
            for each in self.unjudged
            if each.precision and each.binding
        }
        return {key: why for key, why in found.items() if key[1] != REFERENCE_PRECISION}

    @property
    def passed(self) -> bool:
        return self.outcome == "held"


@dataclass(frozen=True)
class _Checked:
    """What a file says of itself, whoever runs it. lint: sentences on errors.  half: where anything in it is float16."""

    nodes: int
    lint: tuple[str, ...]
    half: HalfArithmetic | None

    def results(self, gates: Gates) -> tuple[GateResult, ...]:
        found = [file_result("lint_errors", len(self.lint), gates.lint_errors, self.nodes, "nodes")]
        if self.half:
            found.append(file_result("half_output", self.half.worst, gates.half_output, self.half.crops, "pictures"))
        return tuple(result for result in found if result)


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

    steps: remembers figures; without it everything runs. A path of which the samples show nothing is undecided. Raises what
    running a path raises.
    """
    wanted, skipped = _runnable(bundle, backends)
    floors: dict[str, tuple[AnyFigures, ...]] = {}
    unjudged: list[Unjudged] = []
    verdicts: list[Verdict] = []
    for name in [*bundle.manifest.paths, *([DETECTOR] if bundle.manifest.detector else [])]:
        try:
            reference = _reference(bundle, name, samples, progress, steps)
        except CalibrationError as error:
            unjudged.append(Unjudged(name, None, str(error)))
            continue
        floors[name] = reference.floors
        found, without = _judged(reference, wanted, gates)
        verdicts, unjudged = verdicts + found, unjudged + without
    return Verification(len(samples), floors, tuple(verdicts), tuple(skipped), tuple(unjudged))


def _reference(
    bundle: Bundle, name: str, samples: Sequence[Sample], progress: Progress, steps: Keeping | None
) -> AnyReference:
    """CalibrationError where no sample is of it."""
    if name == DETECTOR:
        return BoxReference.of(bundle, samples, progress, steps)
    return PoseReference.of(bundle, name, samples, progress, steps)


def _judged(reference: AnyReference, backends: Sequence[str], gates: Gates) -> tuple[list[Verdict], list[Unjudged]]:
    """The reference's own verdict first: what that is held against is its recording and, where there is one, the truth."""
    files: dict[Precision, _Checked] = {}
    verdicts = [_verdict(reference, REFERENCE_BACKEND, REFERENCE_PRECISION, True, gates, files)]
    unjudged = [Unjudged(reference.name, precision, UNBOUND) for precision in _unbound(reference, backends)]
    variants = _variants(reference, backends)
    for backend, precision in variants:
        binding = _binds(backend, precision, variants)
        try:
            verdicts.append(_verdict(reference, backend, precision, binding, gates, files))
        except BackendError as error:  # a file that nobody opens costs itself
            unjudged.append(Unjudged(reference.name, precision, f"{backend} does not run it: {error}", binding))
    return verdicts, unjudged


def _verdict(
    reference: AnyReference,
    backend: str,
    precision: Precision,
    binding: bool,
    gates: Gates,
    files: dict[Precision, _Checked],
) -> Verdict:
    """files: what is known of each file already, which is the same on every backend."""
    itself = (backend, precision) == (REFERENCE_BACKEND, REFERENCE_PRECISION)
    found = _compared(reference, backend, precision, itself)
    if precision not in files:
        files[precision] = _checked(reference, precision)
    results = judged(found.figures, reference.floors, gates, reference.trained, itself) + files[precision].results(
        gates
    )
    missed = [result.gate for result in results if result.verdict == "missed"]
    causes = _causes(reference, precision, files[precision], missed)
    return Verdict(
        reference.name, precision, backend, found.ran_on, reference.trained, binding, found.figures, results, causes
    )


def _causes(reference: AnyReference, precision: Precision, checked: _Checked, missed: Sequence[str]) -> tuple[str, ...]:
    """What is known of the gates that are missed, on a few samples: what is broken is broken on most."""
    told = checked.lint if "lint_errors" in missed else ()
    if "half_output" in missed and checked.half and checked.half.first:
        told += (f"in true float16 {checked.half.first}",)
    if precision == REFERENCE_PRECISION or not any(map(of_differences, missed)):
        return told
    return (*told, *causes_of(reference.bundle, reference.graph, precision, reference.feeds(ASKED_SAMPLES)))


def _checked(reference: AnyReference, precision: Precision) -> _Checked:
    """What no backend shows: what lint says of the file, and what float16 does to it where it has any."""
    manifest = reference.bundle.manifest
    member = manifest.graphs[reference.graph].variants[precision]

    def checked() -> _Checked:
        reference.progress(stage, 0, 1)
        model = model_from_bytes(bytes(reference.bundle.read(member)), member)
        half = half_arithmetic(model, reference.feeds(HALF_SAMPLES)) if has_halves(model) else None
        reference.progress(stage, 1, 1)
        return _Checked(len(model.graph.node), lint_sentences(model), half)

    stage = f"lint and float16 of {reference.name} {precision}"
    inputs = {"reference": reference.key, "file": manifest.files[member].sha256}
    return reference.steps.result(_Checked, stage, inputs, checked)


def _variants(reference: AnyReference, backends: Sequence[str]) -> list[tuple[str, Precision]]:
    """Every other way to run this graph: backend by backend, in the order in which the manifest lists precisions."""
    listed = reference.bundle.manifest.graphs[reference.graph].variants
    return [
        (backend, precision)
        for backend in backends
        for precision in listed
        if BACKENDS[backend].runs(precision) and (backend, precision) != (REFERENCE_BACKEND, REFERENCE_PRECISION)
    ]


def _compared(reference: AnyReference, backend: str, precision: Precision, itself: bool) -> _Compared:
    manifest = reference.bundle.manifest
    stage = f"verify {reference.name} {precision} on {backend}"
    member = manifest.graphs[reference.graph].variants[precision]

    def run() -> _Compared:
        def advance(done: int, total: int) -> None:
            reference.progress(stage, done, total)

        if itself:
            found = reference.itself(batches=True)
        else:
            found = reference.compared(reference.opener(backend, precision), advance, batches=True)
        return _Compared(found.figures, found.ran_on)

    inputs = {"reference": reference.key, "file": manifest.files[member].sha256}
    return reference.steps.result(_Compared, stage, inputs, run)


def _binds(backend: str, precision: Precision, variants: Sequence[tuple[str, Precision]]) -> bool:
    """Whether this backend decides on a precision: it takes that of its own accord. Where none here does, ONNX Runtime."""
    taken = {name for name, each in variants if each == precision and _takes(name, precision)}
    return backend in (taken or {REFERENCE_BACKEND})


def _unbound(reference: AnyReference, backends: Sequence[str]) -> list[Precision]:
    """Variants on which no backend decides."""
    variants = _variants(reference, backends)
    bound = {precision for backend, precision in variants if _binds(backend, precision, variants)}
    listed = reference.bundle.manifest.graphs[reference.graph].variants
    return [precision for precision in listed if precision not in bound and precision != REFERENCE_PRECISION]


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
