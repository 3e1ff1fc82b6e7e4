"""One inference backend per file; each verifies what it really got. Adding a backend is adding a file and a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from posekit.runtime import cuda
from posekit.runtime.backends import openvino, ort
from posekit.runtime.backends.compiled import user_cache
from posekit.runtime.bundle import Bundle
from posekit.runtime.engines import api
from posekit.runtime.engines.api import FlavourName
from posekit.runtime.errors import BackendError
from posekit.runtime.manifest import GraphEntry, Precision
from posekit.runtime.session import Session

AUTO = "auto"


@dataclass(frozen=True)
class Backend:
    """missing: why it cannot run on this machine, or None.  precisions: in the order it prefers a graph's variants.

    open: the graph's bytes, its entry in the manifest and a number of threads (None: its own choice) -> a session.
    engine: whose engines it opens, and builds where the cache has none; None: it needs none.
    unfit: why a precision gives wrong numbers on this machine, or None.
    """

    missing: Callable[[], str | None]
    precisions: tuple[Precision, ...]
    open: Callable[[memoryview, GraphEntry, int | None], Session]
    engine: FlavourName | None = None
    unfit: Callable[[Precision], str | None] = lambda precision: None

    def runs(self, precision: Precision) -> bool:
        """Whether it takes this precision, and gives the graph's own numbers on this machine."""
        return precision in self.precisions and self.unfit(precision) is None


@dataclass(frozen=True)
class BackendChoice:
    """What was opened.  reasons: one sentence per backend that was looked at, the chosen one last."""

    backend: str
    precision: Precision
    member: str
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.backend} {self.precision}: " + " ".join(self.reasons)


def _openvino(model: memoryview, graph: GraphEntry, threads: int | None) -> Session:
    cache = user_cache("openvino")
    return openvino.OpenVinoSession(model, inputs=graph.inputs, outputs=graph.outputs, threads=threads, cache=cache)


def _ort(providers: tuple[str, ...], model: memoryview, graph: GraphEntry, threads: int | None) -> Session:
    return ort.OrtSession(model, providers=providers, threads=threads)


def _tensorrt_missing(flavour: FlavourName) -> str | None:
    """Why the flavour cannot run here, or None; only opening a session proves that it can."""
    return api.missing(flavour) or cuda.missing()


def _tensorrt(flavour: FlavourName, model: memoryview, graph: GraphEntry, threads: int | None) -> Session:
    driver = cuda.open_driver()  # first: what builds, keeps and runs engines is imported only where there is a GPU
    from posekit.runtime.backends import tensorrt

    return tensorrt.open_session(model, graph, flavour, driver=driver)


SMALLEST_FIRST: tuple[Precision, ...] = ("int8", "fp16", "fp32")
PLAIN_FIRST: tuple[Precision, ...] = ("fp32", "fp16", "int8")

BACKENDS: dict[str, Backend] = {
    "tensorrt": Backend(
        partial(_tensorrt_missing, "tensorrt"), SMALLEST_FIRST, partial(_tensorrt, "tensorrt"), "tensorrt"
    ),
    "tensorrt-rtx": Backend(partial(_tensorrt_missing, "rtx"), SMALLEST_FIRST, partial(_tensorrt, "rtx"), "rtx"),
    "onnxruntime-cuda": Backend(ort.missing_cuda, ("fp16", "fp32"), partial(_ort, ort.CUDA)),
    "openvino": Backend(openvino.missing, SMALLEST_FIRST, _openvino, unfit=openvino.unfit),
    "onnxruntime": Backend(ort.missing, PLAIN_FIRST, partial(_ort, ort.CPU)),
}

# What "auto" tries, in this order. OpenVINO comes before ONNX Runtime for int8 alone: measured on the same CPU, its int8
# is the fastest there is, but its fp32 takes 1.3 to 3 times as long as ONNX Runtime's (DECISIONS.md).
AUTO_ORDER: tuple[tuple[str, tuple[Precision, ...]], ...] = (
    ("tensorrt", SMALLEST_FIRST),
    ("tensorrt-rtx", SMALLEST_FIRST),
    ("onnxruntime-cuda", ("fp16", "fp32")),
    ("openvino", ("int8",)),
    ("onnxruntime", PLAIN_FIRST),
    ("openvino", ("fp16", "fp32")),
)


def open_session(
    bundle: Bundle,
    graph_name: str,
    *,
    backend: str = AUTO,
    precision: Precision | None = None,
    threads: int | None = None,
) -> Session:
    """Open one graph of a bundle. Raises BackendError; see `session_and_choice` for what was chosen and why."""
    return session_and_choice(bundle, graph_name, backend=backend, precision=precision, threads=threads)[0]


def session_and_choice(
    bundle: Bundle,
    graph_name: str,
    *,
    backend: str = AUTO,
    precision: Precision | None = None,
    threads: int | None = None,
) -> tuple[Session, BackendChoice]:
    """Like `open_session`. "auto" takes the first backend that opens the graph; a named one is opened or refused.

    precision: this variant or none; by default the one that the backend prefers among those in the bundle that are not
    held back.
    """
    if backend != AUTO and backend not in BACKENDS:
        raise _refused(f"backend {backend!r}", "unknown", f"{AUTO} or one of {', '.join(BACKENDS)}")
    graph = bundle.manifest.graphs.get(graph_name)
    if graph is None:
        raise _refused(f"graph {graph_name!r}", "no such graph", f"one of {', '.join(sorted(bundle.manifest.graphs))}")
    turns = AUTO_ORDER if backend == AUTO else ((backend, BACKENDS[backend].precisions),)
    reasons: list[str] = []
    for name, precisions in turns:
        row, why_not = BACKENDS[name], BACKENDS[name].missing()
        present = variants_offered(graph, precisions, precision)
        variant = next(filter(row.runs, present), None)
        if why_not is None and variant is None:
            unfit = (row.unfit(p) for p in present)
            why_not = next(unfit, None) or _no_variant(precisions, precision, graph)
        if why_not is not None or variant is None:
            reasons.append(f"{name}: {why_not}.")
            continue
        member = graph.variants[variant]
        try:
            session = row.open(bundle.read(member), graph, threads)
        except BackendError as error:
            if backend != AUTO:
                raise
            reasons.append(f"{name}: {error}")
        else:
            passed_over = "" if precision else passed_over_for(graph, precisions, variant)
            reasons.append(f"{name}: opened {member} on {session.backend}.{passed_over}")
            return session, BackendChoice(name, variant, member, tuple(reasons))
    raise _refused(f"graph {graph_name!r}", " ".join(reasons), "a backend that runs it")


def variants_offered(
    graph: GraphEntry, precisions: Sequence[Precision], asked: Precision | None = None
) -> tuple[Precision, ...]:
    """In this order the variant that is asked for, or all that are not held back."""
    return tuple(p for p in precisions if p in graph.variants and (p == asked if asked else p not in graph.held_back))


def passed_over_for(graph: GraphEntry, precisions: Sequence[Precision], taken: Precision | None) -> str:
    """Why the variants that this order names before `taken` were not taken: a sentence each, " int8 is held back: ..."."""
    earlier = precisions[: precisions.index(taken)] if taken else precisions
    told = [f" {p} is held back: {graph.held_back[p].rstrip('.')}." for p in earlier if p in graph.held_back]
    return "".join(told)


def _no_variant(tried: Sequence[Precision], asked: Precision | None, graph: GraphEntry) -> str:
    held_back = "" if asked else passed_over_for(graph, tried, None)
    if held_back:
        return held_back.strip().rstrip(".")
    wanted = " or ".join(tried) if asked is None else asked
    return f"its turn is for {wanted}, the graph has variants {', '.join(graph.variants)}"


def _refused(what: str, got: object, expected: object) -> BackendError:
    return BackendError(what, got=got, expected=expected, remedy="Install a backend or choose another variant.")
