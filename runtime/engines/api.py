"""The one door to TensorRT and TensorRT-RTX: which modules there are, which of their names posekit uses, their messages.

One API serves TensorRT 10.3 to 11.x and TensorRT-RTX, because only names that all of them have are used. API is the list
of them; a contract test holds it against the name tables of those versions. Enum integers move between versions, so no
integer is written down anywhere: flags are `1 << int(flag)` of the imported module.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

from posekit.runtime.errors import EngineError

FlavourName = Literal["tensorrt", "rtx"]


@dataclass(frozen=True)
class Flavour:
    """modules: import names, the first one present is taken.  oldest: version that the contract test reaches back to.

    plan_tag: first bytes of its plans.  ahead_of_time: compiles for named compute capabilities, without a GPU; the other
    kind times kernels on the GPU that is there.
    """

    title: str
    modules: tuple[str, ...]
    oldest: tuple[int, ...]
    plan_tag: bytes
    ahead_of_time: bool
    install: str


FLAVOURS: dict[FlavourName, Flavour] = {
    "tensorrt": Flavour(
        "TensorRT",
        ("tensorrt",),
        (10, 3),
        b"ftrt",
        False,
        "On a Jetson: apt install python3-libnvinfer and a venv with --system-site-packages (JetPack 6.1 or later). "
        "Elsewhere: NVIDIA's tensorrt wheels or archive.",
    ),
    "rtx": Flavour(
        "TensorRT-RTX",
        ("tensorrt_rtx", "tensorrt_rtx_bindings"),
        (1, 7),
        b"vtrt",
        True,
        "pip install 'posekit[rtx]'",
    ),
}

# Class or enumeration -> the names used, in every version of both flavours. The builder, the plan loader and the session
# use no other ones.
API: dict[str, tuple[str, ...]] = {
    "Builder": (
        "create_network", "create_builder_config", "create_optimization_profile", "build_serialized_network",
    ),
    "NetworkDefinitionCreationFlag": ("STRONGLY_TYPED",),
    "OnnxParser": ("parse", "num_errors", "get_error"),
    "ParserError": ("code", "desc", "node", "node_name", "node_operator"),
    "IBuilderConfig": (
        "set_memory_pool_limit", "builder_optimization_level", "profiling_verbosity", "progress_monitor",
        "add_optimization_profile", "create_timing_cache", "set_timing_cache",
    ),
    "IOptimizationProfile": ("set_shape",),
    "ITimingCache": ("serialize",),
    "MemoryPoolType": ("WORKSPACE",),
    "ProfilingVerbosity": ("DETAILED",),
    "ILogger": ("Severity", "log"),
    "IHostMemory": ("nbytes",),
    "Runtime": ("deserialize_cuda_engine",),
    "EngineInspector": ("get_engine_information",),
    "LayerInformationFormat": ("JSON",),
    "ICudaEngine": (
        "create_engine_inspector", "create_execution_context", "num_io_tensors", "get_tensor_name", "get_tensor_mode",
        "get_tensor_dtype", "get_tensor_shape", "get_tensor_location", "get_tensor_profile_shape",
        "device_memory_size_v2",
    ),
    "IExecutionContext": (
        "set_input_shape", "get_tensor_shape", "set_tensor_address", "infer_shapes", "execute_async_v3",
        "set_optimization_profile_async", "active_optimization_profile", "set_device_memory",
    ),
    "ExecutionContextAllocationStrategy": ("USER_MANAGED",),
    "TensorIOMode": ("INPUT", "OUTPUT"),
    "TensorLocation": ("DEVICE", "HOST"),
    "DataType": ("FLOAT", "HALF", "INT8", "UINT8", "INT32", "INT64", "BOOL"),
}  # fmt: skip

# Only TensorRT-RTX has these; `Flavour.ahead_of_time` guards their use.
RTX_API: dict[str, tuple[str, ...]] = {
    "IBuilderConfig": ("num_compute_capabilities", "set_compute_capability"),
    "ComputeCapability": ("SM75", "SM80", "SM86", "SM89", "SM120", "SM121"),
    "Runtime": ("get_engine_validity",),
    "EngineValidity": ("VALID", "SUBOPTIMAL", "INVALID"),
    "EngineInvalidityDiagnostics": (
        "VERSION_MISMATCH", "UNSUPPORTED_CC", "OLD_CUDA_DRIVER", "OLD_CUDA_RUNTIME", "INSUFFICIENT_GPU_MEMORY",
        "MALFORMED_ENGINE", "CUDA_ERROR",
    ),
}  # fmt: skip

# Used as well, but in none of the tables at hand (checked against the imported module): base class of the progress.
UNLISTED = {"IProgressMonitor": ("phase_start", "step_complete", "phase_finish")}

LAYERS = "Layers:"  # how the message starts in which TensorRT-RTX lists what it compiled
KEPT = ("WARNING", "ERROR", "INTERNAL_ERROR")


def missing(flavour: FlavourName) -> str | None:
    """Why the flavour cannot be imported, or None. Looks, does not import."""
    row = FLAVOURS[flavour]
    if any(find_spec(name) for name in row.modules):
        return None
    return f"none of the modules {', '.join(row.modules)} is installed ({row.install})"


def tensorrt_module(flavour: FlavourName) -> Any:
    """The imported module. Raises EngineError where it is missing, broken, or older than posekit is written for."""
    row = FLAVOURS[flavour]
    module = _imported(row)
    if version_of(module)[: len(row.oldest)] < row.oldest:
        raise EngineError(
            row.title,
            got=f"version {module.__version__}",
            expected=f"{'.'.join(map(str, row.oldest))} or later",
            remedy="Strongly typed graphs need it: update JetPack or the package, or take backend onnxruntime.",
        )
    return module


def _imported(row: Flavour) -> Any:
    problem: Exception | None = None
    for name in row.modules:
        try:
            return import_module(name)
        except ModuleNotFoundError as error:
            problem = problem or error
        except (ImportError, OSError, RuntimeError) as error:  # there, but its libraries are not
            problem = error
            break
    raise EngineError(
        row.title, got=problem, expected=f"the module {' or '.join(row.modules)}", remedy=row.install
    ) from problem


def version_of(module: Any) -> tuple[int, ...]:
    """(10, 3, 0) of "10.3.0"."""
    return tuple(int(n) for n in re.findall(r"\d+", module.__version__))


@dataclass(frozen=True)
class Message:
    """severity: TensorRT's own word."""

    severity: str
    text: str


@dataclass(frozen=True)
class Log:
    """What TensorRT said while it was listened to: warnings, errors, and the list of compiled layers."""

    logger: Any
    messages: list[Message]

    def texts(self, *severities: str) -> tuple[str, ...]:
        return tuple(m.text for m in self.messages if m.severity in severities)

    @property
    def errors(self) -> str:
        """All of them, verbatim."""
        return " ".join(self.texts("ERROR", "INTERNAL_ERROR")) or "no message"


_registering = threading.Lock()
_loggers: dict[str, Any] = {}


@contextmanager
def listening(module: Any) -> Iterator[Log]:
    """Collects what the module says during this block, in any thread; nothing is printed.

    TensorRT keeps the first logger it meets for the whole process, so there is one per module and every listener hears
    all of it.
    """
    with _registering:
        logger = _loggers.get(module.__name__)
        if logger is None:
            logger = _loggers[module.__name__] = _logger_class(module)()
        messages: list[Message] = []
        logger.listeners = (*logger.listeners, messages)
    try:
        yield Log(logger, messages)
    finally:
        with _registering:
            logger.listeners = tuple(one for one in logger.listeners if one is not messages)


def _logger_class(module: Any) -> Any:
    class Logger(module.ILogger):  # type: ignore[misc]
        """Keeps what matters. An exception in here would end the process, so there can be none."""

        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.listeners: tuple[list[Message], ...] = ()

        def log(self, severity: Any, text: str) -> None:
            if severity.name in KEPT or text.startswith(LAYERS):
                for messages in self.listeners:
                    messages.append(Message(severity.name, text))

    return Logger
