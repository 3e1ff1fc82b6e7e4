"""Measures files of one graph in its place: figures against fp32 on ONNX Runtime, gates, latency, size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from posekit.export.verify.gates import AnyFigures, GateResult, Gates, judged, outcome_of
from posekit.export.verify.reference import REFERENCE_BACKEND, REFERENCE_PRECISION, BoxReference, PoseReference
from posekit.runtime.backends import BACKENDS, open_session
from posekit.runtime.session import Session

JUDGES = ("openvino", REFERENCE_BACKEND)  # the first that is here runs candidates: one file serves it and TensorRT


@dataclass(frozen=True)
class Measured:
    """One file in the graph's place. backend: that ran it.   latency_ms: fastest run of one crop, this machine."""

    backend: str
    figures: AnyFigures
    gates: tuple[GateResult, ...]
    latency_ms: float
    size_bytes: int

    @property
    def passed(self) -> bool:
        """Whether no gate is missed; an undecided one stays so whatever the file, and is for verification to tell."""
        return outcome_of(self.gates) != "missed"


@dataclass(frozen=True)
class _Seen:
    """What is kept of a run: gates may change, and are judged anew."""

    figures: AnyFigures
    latency_ms: float
    size_bytes: int


@dataclass(frozen=True, eq=False)
class Judge:
    """reference: what uses the graph, in fp32, and under noise.   backend: that runs what is judged."""

    reference: PoseReference | BoxReference
    gates: Gates
    backend: str

    @staticmethod
    def of(reference: PoseReference | BoxReference, gates: Gates) -> Judge:
        """On the first backend of JUDGES that is here and computes int8 as the file says."""
        able = (name for name in JUDGES if BACKENDS[name].missing() is None and BACKENDS[name].runs("int8"))
        return Judge(reference, gates, next(able))

    @property
    def graph(self) -> str:
        return self.reference.graph

    def measure(self, content: Callable[[], bytes], made_of: str, backend: str | None = None) -> Measured:
        """Run a file in the graph's place; every other graph runs fp32.

        made_of: fingerprint of all that the file's bytes follow from; where figures of it are kept, it is not made.
        """
        backend, reference = backend or self.backend, self.reference
        inputs = {"reference": reference.key, "graph": self.graph, "file": made_of, "backend": backend}
        seen = reference.steps.result(_Seen, f"measure {self.graph}", inputs, lambda: self._seen(content(), backend))
        results = judged(seen.figures, reference.floors, self.gates, reference.trained)
        return Measured(backend, seen.figures, results, seen.latency_ms, seen.size_bytes)

    def _seen(self, content: bytes, backend: str) -> _Seen:
        reference = self.reference
        entry = reference.bundle.manifest.graphs[self.graph]

        def open_graph(name: str) -> Session:
            if name == self.graph:
                return BACKENDS[backend].open(memoryview(content), entry, None)
            return open_session(reference.bundle, name, backend=backend, precision=REFERENCE_PRECISION)

        found = reference.compared(open_graph)
        return _Seen(found.figures, found.latency_ms[self.graph], len(content))
