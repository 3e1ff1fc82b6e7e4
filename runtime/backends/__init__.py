"""One inference backend per file; each verifies what it really got. Adding a backend is adding a file and a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

from posekit.runtime.bundle import Bundle
from posekit.runtime.errors import BackendError
from posekit.runtime.manifest import GraphEntry, Precision
from posekit.runtime.session import Session

AUTO = "auto"


@dataclass(frozen=True)
class Backend:
    """missing: why it cannot run on this machine, or None.  precisions: in the order it prefers a graph's variants.

    open: the graph's bytes and a number of threads (None: its own choice) -> a session.
    """

    missing: Callable[[], str | None]
    precisions: tuple[Precision, ...]
    open: Callable[[memoryview, int | None], Session]


@dataclass(frozen=True)
class BackendChoice:
    """What was opened.  reasons: one sentence per backend that was looked at, the chosen one last."""

    backend: str
    precision: Precision
    member: str
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.backend} {self.precision}: " + " ".join(self.reasons)


def _ort_missing() -> str | None:
    return (
        None if find_spec("onnxruntime") else "the package onnxruntime is not installed (pip install 'posekit[onnx]')"
    )


def _ort_open(model: memoryview, threads: int | None) -> Session:
    from posekit.runtime.backends.ort import OrtSession

    return OrtSession(model, threads=threads)


# In the order that "auto" tries them.
BACKENDS: dict[str, Backend] = {
    "onnxruntime": Backend(_ort_missing, ("fp32", "int8", "fp16"), _ort_open),
}


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
    """Like `open_session`. "auto" takes the first backend that opens the graph; a named one is opened or refused."""
    if backend != AUTO and backend not in BACKENDS:
        raise _refused(f"backend {backend!r}", "unknown", f"{AUTO} or one of {', '.join(BACKENDS)}")
    graph = bundle.manifest.graphs.get(graph_name)
    if graph is None:
        raise _refused(f"graph {graph_name!r}", "no such graph", f"one of {', '.join(sorted(bundle.manifest.graphs))}")
    reasons: list[str] = []
    for name in BACKENDS if backend == AUTO else (backend,):
        try:
            session, variant = _opened(bundle, graph, name, precision, threads)
        except BackendError as error:
            if backend != AUTO:
                raise
            reasons.append(f"{name}: {error}")
        else:
            member = graph.variants[variant]
            reasons.append(f"{name}: opened {member} on {session.backend}.")
            return session, BackendChoice(name, variant, member, tuple(reasons))
    raise _refused(f"graph {graph_name!r}", " ".join(reasons), "a backend that runs it")


def _opened(
    bundle: Bundle, graph: GraphEntry, name: str, precision: Precision | None, threads: int | None
) -> tuple[Session, Precision]:
    row = BACKENDS[name]
    problem = row.missing()
    if problem is not None:
        raise _refused(f"backend {name}", problem, "an installed backend")
    wanted = row.precisions if precision is None else (precision,)
    variant = next((p for p in wanted if p in row.precisions and p in graph.variants), None)
    if variant is None:
        raise _refused(f"backend {name}", f"variants {', '.join(graph.variants)}", f"{' or '.join(wanted)}")
    return row.open(bundle.read(graph.variants[variant]), threads), variant


def _refused(what: str, got: object, expected: object) -> BackendError:
    return BackendError(what, got=got, expected=expected, remedy="Install a backend or choose another variant.")
