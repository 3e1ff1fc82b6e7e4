"""What the sessions of all backends share: what they take and give, what runs them, who may, and that a closed one is refused."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from posekit.runtime.errors import BackendError
from posekit.runtime.one_at_a_time import OneAtATime
from posekit.runtime.tensor import Feed, TensorSpec, check_feed

if TYPE_CHECKING:
    from typing_extensions import Self


class OpenedSession:
    """The frame of a posekit.runtime.session.SharedSession. A backend fills in `_run`, `_release` and `_own`."""

    def __init__(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], backend: str) -> None:
        self._inputs, self._outputs, self._backend = tuple(inputs), tuple(outputs), backend
        self._open, self._alone = True, OneAtATime("session")

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

    def run(self, feed: Feed) -> dict[str, npt.NDArray[np.generic]]:
        """Run once; the next run may write into the same outputs.

        Raises SpecError for another feed than it takes, BackendError for a closed session and for what the backend
        refuses, InputError while another thread runs it.
        """
        with self._alone:
            self._check_open()
            check_feed(feed, self._inputs)
            return self._run(feed)

    def twin(self) -> Self:
        """Another session over the same compiled graph, with buffers of its own, for another thread.

        Neither closes with the other; what they share goes with the last one. BackendError for a closed session.
        """
        other = copy(self)
        other._check_open()
        other._alone = OneAtATime("session")
        other._own()
        return other

    def close(self) -> None:
        """Give back what this session alone has, and its share of the rest. Twice is harmless."""
        with self._alone:
            if self._open:
                self._open = False
                self._release()

    def _check_open(self) -> None:
        if not self._open:
            raise BackendError(
                "session", got="a closed one", expected="an open one", remedy="Open the session again to run it."
            )

    def _run(self, feed: Feed) -> dict[str, npt.NDArray[np.generic]]:
        """Of a feed that is known to fit."""
        raise NotImplementedError

    def _release(self) -> None:
        """Give back what `_own` made, and forget what is shared."""
        raise NotImplementedError

    def _own(self) -> None:
        """Make what one session alone may have, in place of what it was copied from."""
