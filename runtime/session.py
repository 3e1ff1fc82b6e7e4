"""A session runs one graph on one backend."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from posekit.runtime.errors import BackendError
from posekit.runtime.tensor import Feed, TensorSpec


class Session(Protocol):
    """The whole contract between the pipeline and a backend. A session is for one thread at a time."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def backend(self) -> str:
        """What really runs: library, version, provider, device. For people."""

    def run(self, feed: Feed) -> dict[str, npt.NDArray[np.generic]]:
        """Run once. Outputs may be overwritten by the next run: copy what must last. Raises SpecError, BackendError."""

    def close(self) -> None:
        """Give back what the session holds. Twice is harmless."""


@runtime_checkable
class SharedSession(Session, Protocol):
    """A session whose compiled graph others can run at the same time."""

    def twin(self) -> Session:
        """Another session over the same compiled graph, for another thread; neither closes with the other."""


def twin_of(session: Session) -> Session:
    """The twin of a session that can have one. BackendError where it can not."""
    if not isinstance(session, SharedSession):
        raise BackendError(
            session.backend,
            got="a session of which there is one only",
            expected="a SharedSession, with `twin`",
            remedy="Open another estimator instead of a clone.",
        )
    return session.twin()


class ForwardingSession:
    """Stands for a session and passes everything on: for what watches, records or replaces runs (PoseEstimator's `around`)."""

    def __init__(self, session: Session) -> None:
        self.session = session

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.session.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.session.outputs

    @property
    def backend(self) -> str:
        return self.session.backend

    def run(self, feed: Feed) -> dict[str, npt.NDArray[np.generic]]:
        return self.session.run(feed)

    def twin(self) -> Session:
        """Of what it stands for: what watches one thread does not watch another."""
        return twin_of(self.session)

    def close(self) -> None:
        self.session.close()
