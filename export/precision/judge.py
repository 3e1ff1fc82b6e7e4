"""What a lower precision of one graph is held against: the path that uses it, on real crops, in fp32 on ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from posekit.benchmarks.pose_error import ScoredObject, scored_object
from posekit.export.verify.figures import Figures, figures_of
from posekit.export.verify.gates import GateResult, Gates, judged
from posekit.export.verify.observe import observe
from posekit.export.verify.samples import Sample
from posekit.export.verify.verify import (
    REFERENCE_BACKEND,
    REFERENCE_PRECISION,
    Baseline,
    baseline,
    check_enough,
    is_trained,
)
from posekit.runtime.backends import BACKENDS, open_session
from posekit.runtime.bundle import Bundle
from posekit.runtime.session import Session

Progress = Callable[[str, int, int], None]
JUDGES = ("openvino", REFERENCE_BACKEND)  # the first that is here runs candidates: one file serves it and TensorRT


@dataclass(frozen=True)
class Measured:
    """One file in the graph's place. backend: that ran it.   latency_ms: fastest run of one crop, this machine."""

    backend: str
    figures: Figures
    gates: tuple[GateResult, ...]
    latency_ms: float
    size_bytes: int

    @property
    def passed(self) -> bool:
        return all(gate.passed for gate in self.gates)


@dataclass(frozen=True, eq=False)
class Judge:
    """bundle: with the fp32 graphs.   base: the path in fp32, and under noise.   trained: judged by poses, else by numbers.
    backend: that runs what is judged.
    """

    bundle: Bundle
    path: str
    graph: str
    samples: Sequence[Sample]
    objects: Mapping[int, ScoredObject]
    gates: Gates
    base: Baseline
    trained: bool
    backend: str

    @staticmethod
    def of(bundle: Bundle, path: str, samples: Sequence[Sample], gates: Gates, progress: Progress) -> Judge:
        """For the main graph of a path; runs it in fp32. CalibrationError for too few samples of its objects."""
        entry = bundle.manifest.paths[path]
        mine = [sample for sample in samples if sample.detection.object_id in entry.object_ids]
        check_enough(mine, f"path {path}")
        objects = {o.id: scored_object(bundle, o) for o in bundle.manifest.objects if o.id in entry.object_ids}
        return Judge(
            bundle=bundle,
            path=path,
            graph=entry.graph,
            samples=mine,
            objects=objects,
            gates=gates,
            base=baseline(bundle, path, mine, objects, progress),
            trained=is_trained(bundle, entry),
            backend=next(name for name in JUDGES if BACKENDS[name].missing() is None),
        )

    def measure(self, content: bytes, backend: str | None = None) -> Measured:
        """Run a file in the graph's place; every other graph of the path runs fp32."""
        backend = backend or self.backend
        entry = self.bundle.manifest.graphs[self.graph]

        def open_graph(name: str) -> Session:
            if name == self.graph:
                return BACKENDS[backend].open(memoryview(content), entry, None)
            return open_session(self.bundle, name, backend=backend, precision=REFERENCE_PRECISION)

        seen = observe(self.bundle, self.path, self.samples, open_graph)
        figures = figures_of(self.base.reference, seen, self.samples, self.objects, self.base.settled)
        results = judged(figures, self.base.floors, self.gates, self.trained)
        return Measured(backend, figures, results, seen.latency_ms[self.graph], len(content))
