"""Opening a plan, or saying in one sentence why it cannot be used here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from posekit.runtime.engines.api import FLAVOURS, FlavourName, Log, listening, tensorrt_module, version_of
from posekit.runtime.engines.causes import OTHERWISE, remedy_for
from posekit.runtime.errors import EngineError

HEADER_BYTES = 64  # TensorRT-RTX's Runtime.engine_header_size
LAYOUT_AT, SIZE_AT, VERSION_AT = 4, 16, 24
REBUILD = "Build it again here: the graph is in the bundle."


@dataclass(frozen=True)
class PlanHeader:
    """version: of the TensorRT that wrote it, empty where it cannot be read.  size: bytes of the whole plan."""

    flavour: FlavourName
    version: tuple[int, ...]
    size: int


def header_of(plan: bytes | memoryview) -> PlanHeader:
    """The header: a tag, then at byte 16 the size, at byte 24 four bytes of version, little-endian.

    The tag and the version of TensorRT's are as trtexec --getPlanVersionOnly reads them, for layout 0, the number at
    byte 4; TensorRT-RTX writes the same behind its own tag (seen with 1.7.1). Raises EngineError for what is not a plan.
    """
    start = bytes(plan[:HEADER_BYTES])
    flavour = next((name for name, row in FLAVOURS.items() if start.startswith(row.plan_tag)), None)
    if flavour is None or len(start) < HEADER_BYTES:
        raise EngineError(
            "plan",
            got=f"{len(plan)} bytes beginning {start[:8]!r}",
            expected="the header of a TensorRT or TensorRT-RTX plan",
            remedy=f"It is not a plan, or only the start of one. {REBUILD}",
        )
    size = int.from_bytes(start[SIZE_AT : SIZE_AT + 8], "little")
    known = start[LAYOUT_AT : LAYOUT_AT + 4] == bytes(4)
    return PlanHeader(flavour, tuple(start[VERSION_AT : VERSION_AT + 4]) if known else (), size)


def engine_from_plan(flavour: FlavourName, plan: bytes | memoryview) -> Any:
    """The engine, ready for create_execution_context. EngineError says why the plan is of no use here.

    Reasons: not a plan, truncated, of the other flavour, of another version, of another GPU, no driver or an old one.
    """
    module = tensorrt_module(flavour)
    _check_header(flavour, module, plan)
    with listening(module) as log:
        runtime = _runtime(module, log, FLAVOURS[flavour].title)
        if FLAVOURS[flavour].ahead_of_time:
            _check_validity(module, runtime, plan, log)
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise _refused(log.errors, "a plan of this TensorRT, GPU and platform", remedy_for(log.errors))
        return engine


def plan_refusal(flavour: FlavourName, plan: bytes | memoryview) -> EngineError | None:
    """Why `engine_from_plan` would refuse, or None. It opens the engine to find out."""
    try:
        engine_from_plan(flavour, plan)
    except EngineError as error:
        return error
    return None


def _check_header(flavour: FlavourName, module: Any, plan: bytes | memoryview) -> None:
    """What needs no GPU to be known."""
    header, row = header_of(plan), FLAVOURS[flavour]
    if header.flavour != flavour:
        raise _refused(f"a plan of {FLAVOURS[header.flavour].title}", f"one of {row.title}", REBUILD)
    if row.ahead_of_time and header.size != len(plan):  # where in TensorRT's own header the size is, is not documented
        raise _refused(
            f"{len(plan)} bytes",
            f"{header.size} bytes, as its header says",
            f"It is truncated or not one plan. {REBUILD}",
        )
    here = version_of(module)[:3]
    if header.version and header.version[:3] != here:  # posekit builds no version-compatible plans
        written, mine = (".".join(map(str, v)) for v in (header.version, here))
        raise _refused(f"a plan written by {row.title} {written}", f"version {mine}, which is installed", REBUILD)


def _runtime(module: Any, log: Log, title: str) -> Any:
    try:
        return module.Runtime(log.logger)
    except (TypeError, RuntimeError) as error:
        raise EngineError(
            f"{title} runtime", got=log.errors, expected="a runtime on this machine", remedy=remedy_for(log.errors)
        ) from error


def _check_validity(module: Any, runtime: Any, plan: bytes | memoryview, log: Log) -> None:
    """TensorRT-RTX judges a plan without opening it; its diagnostics are bits."""
    validity, bits = runtime.get_engine_validity(plan)
    if validity != module.EngineValidity.INVALID:
        return
    known = module.EngineInvalidityDiagnostics.__members__.items()
    names = [name for name, value in known if int(bits) & int(value)]
    said = " ".join((*names, log.errors))
    raise _refused(said, "a plan that is valid on this GPU and driver", remedy_for(said))


def _refused(got: str, expected: str, remedy: str) -> EngineError:
    return EngineError("plan", got=got, expected=expected, remedy=remedy or OTHERWISE)
