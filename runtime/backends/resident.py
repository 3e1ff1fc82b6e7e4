"""What a backend made of inputs that never change (a template bank), so that it makes it once and not at every run."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]
T = TypeVar("T")


class Residents(Generic[T]):
    """Backend values by array. An entry lives as long as its array; dead ones are released when a new one comes.

    Sessions of several threads may share them.   release: what giving a value back takes, such as freeing device memory.
    """

    def __init__(self, release: Callable[[T], None] = lambda value: None) -> None:
        self._release, self._one = release, Lock()
        self._entries: dict[int, tuple[weakref.ref[Array], T]] = {}

    def of(self, array: Array, make: Callable[[Array], T]) -> T:
        """The value of this very array, made on first sight. Only for arrays that are `unchanging`."""
        with self._one:
            known = self._entries.get(id(array))
            if known is not None and known[0]() is array:  # an id may be used again after its array died
                return known[1]
            self._sweep()
            value = make(array)
            self._entries[id(array)] = weakref.ref(array), value
            return value

    def clear(self) -> None:
        """Release everything. Twice is harmless."""
        while self._entries:
            self._release(self._entries.popitem()[1][1])

    def _sweep(self) -> None:
        for key in [key for key, (array, _) in self._entries.items() if array() is None]:
            self._release(self._entries.pop(key)[1])


def unchanging(array: Array) -> bool:
    """Whether nobody can write to the array's memory through it or through what it is a view of."""
    base: object = array
    while isinstance(base, np.ndarray):
        if base.flags.writeable:
            return False
        base = base.base
    return base is None or isinstance(base, bytes) or (isinstance(base, memoryview) and base.readonly)
