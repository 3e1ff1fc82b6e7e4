"""A session runs one graph on one backend."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from posekit.runtime.tensor import Feed, TensorSpec


class Session(Protocol):
    """The whole contract between the pipeline and a backend."""

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

    def close(self) -> None:
        self.session.close()
