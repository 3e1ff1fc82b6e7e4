"""Objects with buffers of their own let one call in at a time: a wrong pose is never the price of a forgotten lock."""

from __future__ import annotations

from threading import Lock
from types import TracebackType

from posekit.runtime.errors import InputError


class OneAtATime:
    """Entered by one call at a time. A second one, of whichever thread, is an InputError at once: nobody waits."""

    def __init__(self, what: str) -> None:
        """what: belongs to one thread, for people."""
        self._what, self._lock = what, Lock()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise InputError(
                self._what,
                got="a call while another one is running",
                expected="one call at a time",
                remedy="Give every thread an estimator of its own: PoseEstimator.clone() shares banks and compiled graphs.",
            )

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._lock.release()
