"""What the sessions of all backends share: what they take and give, what runs them, and that a closed one is refused."""

from __future__ import annotations

from collections.abc import Sequence

from posekit.runtime.errors import BackendError
from posekit.runtime.tensor import Feed, TensorSpec, check_feed


class OpenedSession:
    """The properties of posekit.runtime.session.Session. `close` of a subclass sets `_open` to False."""

    def __init__(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], backend: str) -> None:
        self._inputs, self._outputs, self._backend = tuple(inputs), tuple(outputs), backend
        self._open = True

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    @property
    def backend(self) -> str:
        """What really runs: library, version, provider, device. For people."""
        return self._backend

    def _check(self, feed: Feed) -> None:
        """BackendError for a closed session, SpecError for a feed that is not what it takes."""
        if not self._open:
            raise BackendError(
                "session", got="a closed one", expected="an open one", remedy="Open the session again to run it."
            )
        check_feed(feed, self._inputs)
