"""ONNX Runtime: runs on any machine, and is what every other backend is compared with."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from posekit.runtime.backends.opened import OpenedSession
from posekit.runtime.errors import BackendError
from posekit.runtime.tensor import Feed, TensorSpec

REMEDY_INSTALL = "pip install 'posekit[onnx]'"
LOG_FATAL_ONLY = 4  # every error is raised as well: nothing is printed behind the caller's back
# On x86 without VNNI, pairs of 8-bit products are summed in 16 bits and saturate unless this is asked for: a toy's int8
# graph was off by 20 times what its quantisation costs. It changes nothing on other processors.
EXACT_INT8 = ("session.x64quantprecision", "1")
MEMFD_FROM_BYTES = 1 << 20  # below that a second copy of the graph does not matter
MEMORY_FILE = "posekit-graph"
MFD_CLOEXEC = 1
# It quantises float biases that the graph leaves in float; with FP16 scales the results are silently wrong (seen in
# 1.24 to 1.31: cosine 0.86). Without it every Q/DQ graph gives its own numbers.
DISABLED_OPTIMIZERS = ["WeightBiasQuantization"]
CPU = ("CPUExecutionProvider",)
CUDA = ("CUDAExecutionProvider", "CPUExecutionProvider")  # the second for operators that the first lacks

DTYPES = {
    "tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64", "tensor(bool)": "bool",
    "tensor(uint8)": "uint8", "tensor(int8)": "int8", "tensor(uint16)": "uint16", "tensor(int16)": "int16",
    "tensor(uint32)": "uint32", "tensor(int32)": "int32", "tensor(uint64)": "uint64", "tensor(int64)": "int64",
}  # fmt: skip


class OrtSession(OpenedSession):
    """One graph on ONNX Runtime. Implements posekit.runtime.session.SharedSession.

    Twins run one InferenceSession, which takes runs of several threads, and its threads.
    """

    def __init__(
        self,
        model: bytes | memoryview | Path,
        *,
        providers: Sequence[str] = CPU,
        threads: int | None = None,
    ) -> None:
        """model: an ONNX graph or its path.  providers: in order of preference; the first one must really be active.

        threads: within one operator; None leaves it to ONNX Runtime. Raises BackendError.
        """
        onnxruntime = imported_onnxruntime()
        _check_available(onnxruntime, providers)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = LOG_FATAL_ONLY
        options.intra_op_num_threads = threads or 0
        options.add_session_config_entry(*EXACT_INT8)
        try:
            with _loadable(model) as source:
                session = onnxruntime.InferenceSession(
                    source,
                    options,
                    providers=list(providers),
                    enable_fallback=0,
                    disabled_optimizers=DISABLED_OPTIMIZERS,
                )
        except _errors(onnxruntime) as error:
            raise BackendError(
                "ONNX Runtime",
                got=_first_line(error),
                expected="a graph it can load",
                remedy="Check the file, or export it again for this version of ONNX Runtime.",
            ) from error
        active = session.get_providers()
        if active[:1] != list(providers[:1]):
            raise BackendError(
                "ONNX Runtime provider",
                got=", ".join(active),
                expected=providers[0],
                remedy="Its libraries are missing or do not fit: see ONNX Runtime's page on that provider.",
            )
        self._errors = _errors(onnxruntime)
        self._session: Any = session
        super().__init__(
            [_spec(i) for i in session.get_inputs()],
            [_spec(o) for o in session.get_outputs()],
            f"ONNX Runtime {onnxruntime.__version__}, {active[0]}",
        )

    def _run(self, feed: Feed) -> dict[str, npt.NDArray[np.generic]]:
        """The outputs are the caller's."""
        try:
            results = self._session.run(None, dict(feed))
        except self._errors as error:
            raise BackendError(
                self._backend,
                got=_first_line(error),
                expected="a finished run",
                remedy="Feed a smaller batch if memory ran out; otherwise report the graph.",
            ) from error
        return {spec.name: array for spec, array in zip(self._outputs, results, strict=True)}

    def _release(self) -> None:
        self._session = None


def imported_onnxruntime() -> Any:
    """The module, or BackendError with the line that installs it."""
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(
            "ONNX Runtime", got=error, expected="the package onnxruntime", remedy=f"Install it: {REMEDY_INSTALL}"
        ) from error
    return onnxruntime


def missing() -> str | None:
    """Why ONNX Runtime cannot run here, or None. Looks, does not import."""
    return None if find_spec("onnxruntime") else f"the package onnxruntime is not installed ({REMEDY_INSTALL})"


def missing_cuda() -> str | None:
    """Why ONNX Runtime cannot run on CUDA here, or None; only opening a session proves that it can."""
    problem = missing()
    if problem is None and CUDA[0] not in imported_onnxruntime().get_available_providers():
        problem = f"this build of ONNX Runtime has no {CUDA[0]} (pip install onnxruntime-gpu, without onnxruntime)"
    return problem


def _check_available(onnxruntime: Any, providers: Sequence[str]) -> None:
    known = onnxruntime.get_available_providers()
    missing = [p for p in providers if p not in known]
    if missing or not providers:
        raise BackendError(
            "ONNX Runtime provider",
            got=", ".join(missing) or "none",
            expected=f"among {', '.join(known)}",
            remedy="Name an available provider, or install the onnxruntime package that has it.",
        )


@contextmanager
def _loadable(model: bytes | memoryview | Path) -> Iterator[str | bytes]:
    """What InferenceSession takes. It keeps bytes for its whole life, so a big graph goes by a memory file if it can."""
    if isinstance(model, Path):
        yield str(model)
        return
    descriptor = _memory_file() if len(model) >= MEMFD_FROM_BYTES else None
    if descriptor is None:
        yield bytes(model)
        return
    try:
        yield f"/proc/self/fd/{descriptor}" if _could_write(descriptor, model) else bytes(model)
    finally:
        os.close(descriptor)


def _could_write(descriptor: int, model: bytes | memoryview) -> bool:
    """Write a file in memory; False where a limit on the size of files forbids it."""
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(model)
    except OSError:
        return False
    return True


def _memory_file() -> int | None:
    """Descriptor of a new file in memory, None where the system gives none.

    A Python that was built on an old system lacks the call (manylinux images, conda), while the C library that it runs
    on may have it.
    """
    if sys.platform != "linux":
        return None
    try:
        if hasattr(os, "memfd_create"):
            return os.memfd_create(MEMORY_FILE)
    except OSError:  # forbidden, as in some containers
        return None
    create = getattr(ctypes.CDLL(None), "memfd_create", None)
    descriptor = -1 if create is None else int(create(MEMORY_FILE.encode(), MFD_CLOEXEC))
    return None if descriptor < 0 else descriptor


def _spec(argument: Any) -> TensorSpec:
    if argument.type not in DTYPES:
        raise BackendError(
            f"graph tensor {argument.name!r}",
            got=argument.type,
            expected=f"one of {', '.join(DTYPES)}",
            remedy="Export a graph whose inputs and outputs are plain tensors.",
        )
    shape = tuple(f"{argument.name}_{axis}" if size is None else size for axis, size in enumerate(argument.shape))
    return TensorSpec(argument.name, DTYPES[argument.type], shape)


def _errors(onnxruntime: Any) -> tuple[type[Exception], ...]:
    """ONNX Runtime's exceptions have no root of their own: every class that its extension module defines."""
    state = onnxruntime.capi.onnxruntime_pybind11_state
    found = [v for v in vars(state).values() if isinstance(v, type) and issubclass(v, Exception)]
    return (*found, RuntimeError, ValueError)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300]}" if str(error) else type(error).__name__
