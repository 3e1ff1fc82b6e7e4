"""CUDA memory, streams, events and graphs behind one small interface, with a provider per library."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from posekit.runtime.cuda import cuda_python, pycuda
from posekit.runtime.cuda.driver import Device as Device
from posekit.runtime.cuda.driver import Driver as Driver
from posekit.runtime.errors import BackendError

ENVIRONMENT = "POSEKIT_CUDA"


@dataclass(frozen=True)
class Provider:
    """missing: why it cannot be imported, or None.  open: the driver, or BackendError."""

    missing: Callable[[], str | None]
    open: Callable[[], Driver]


# In the order that they are tried.
PROVIDERS: dict[str, Provider] = {
    "cuda-bindings": Provider(cuda_python.missing, cuda_python.CudaPythonDriver),
    "pycuda": Provider(pycuda.missing, pycuda.PycudaDriver),
}
_opened: dict[str, Driver] = {}  # one primary context per process, so one driver per provider


def missing() -> str | None:
    """Why no provider can be imported, or None. Whether there is a driver and a GPU, only `open_driver` knows."""
    reasons = [row.missing() for row in PROVIDERS.values()]
    return None if None in reasons else "; ".join(filter(None, reasons))


def open_driver(provider: str | None = None) -> Driver:
    """The first GPU, through a named provider, the one in POSEKIT_CUDA, or else the first that opens.

    Raises BackendError, which says of every provider that was tried why not.
    """
    asked = provider or os.environ.get(ENVIRONMENT)
    if asked and asked not in PROVIDERS:
        raise BackendError(
            "CUDA provider",
            got=repr(asked),
            expected=f"one of {', '.join(PROVIDERS)}",
            remedy=f"Correct the argument or the variable {ENVIRONMENT}.",
        )
    problems: list[str] = []
    for name in [asked] if asked else PROVIDERS:
        why_not = PROVIDERS[name].missing()
        if why_not is None:
            try:
                if name not in _opened:
                    _opened[name] = PROVIDERS[name].open()
                return _opened[name]
            except BackendError as error:
                why_not = error.got
        problems.append(f"{name}: {why_not}")
    raise BackendError(
        "CUDA", got="; ".join(problems), expected="an NVIDIA driver and GPU", remedy=cuda_python.REMEDY_DRIVER
    )
