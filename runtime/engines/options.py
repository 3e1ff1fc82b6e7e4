"""How an engine is built: everything that its key is made of, besides the graph and the machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from posekit.runtime.engines.api import FLAVOURS, FlavourName
from posekit.runtime.errors import EngineError
from posekit.runtime.tensor import TensorSpec

OPTIMIZATION_LEVELS = range(6)

# What TensorRT-RTX compiles as the graph says (1.7.1). Of 75 it has no fp32 matrix products, and its quantised
# convolutions multiply halves; so do those of 80 multiply floats where the rest of the graph is fp32, not fp16.
RTX_CAPABILITIES = (80, 86, 89, 120)


@dataclass(frozen=True)
class AxisRange:
    """Sizes of one dynamic axis: kernels are chosen for `opt` and work from `min` to `max`."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise _refused("axis range", self, "1 <= min <= opt <= max", "Correct the range.")


Profile = dict[str, AxisRange]  # by the name of the dynamic axis


@dataclass(frozen=True)
class BuildOptions:
    """profiles: one or more, each with a range for every dynamic axis of the graph; none for a static graph.

    workspace_bytes: scratch memory that a kernel may use; None: all of the device's.
    optimization_level: 0 builds fastest, 5 searches longest; None: TensorRT's own.
    compute_capabilities: TensorRT-RTX only, and at least one there: 75, 80, 86, 89, 120, 121.
    timing_cache_sha256: the only timing cache that may be used; another content is refused.
    """

    flavour: FlavourName
    profiles: tuple[Profile, ...] = ()
    workspace_bytes: int | None = None
    optimization_level: int | None = None
    compute_capabilities: tuple[int, ...] = ()
    timing_cache_sha256: str | None = None

    def __post_init__(self) -> None:
        row = FLAVOURS.get(self.flavour)
        if row is None:
            raise _refused("flavour", repr(self.flavour), f"one of {', '.join(FLAVOURS)}", "Name one of them.")
        named = self.compute_capabilities
        if row.ahead_of_time != bool(named) or len(set(named)) != len(named):
            wanted = "at least one, each once" if row.ahead_of_time else "none: it builds for the GPU that is there"
            raise _refused(f"compute capabilities of {row.title}", named or "none", wanted, "Correct the list.")
        if self.workspace_bytes is not None and self.workspace_bytes < 1:
            raise _refused("workspace", f"{self.workspace_bytes} bytes", "1 or more", "Leave it out for no limit.")
        if self.optimization_level is not None and self.optimization_level not in OPTIMIZATION_LEVELS:
            raise _refused("optimization level", self.optimization_level, "0 to 5", "Leave it out for the usual one.")


def profile_from_histogram(counts: Mapping[int, int]) -> AxisRange:
    """The batch range for a histogram: number of crops in a frame -> number of such frames.

    min is 1 and max the largest count seen. opt is the size below and above which equally many *crops* are met (the
    median over crops, not over frames): time goes with crops, so that is where the kernels' choice tells most.
    Frames without crops run nothing and count for nothing. Raises EngineError for a histogram without any crop.
    """
    met = sorted((size, frames) for size, frames in counts.items() if size > 0 and frames > 0)
    if not met or min(counts) < 0 or min(counts.values()) < 0:
        raise _refused("histogram of crops", dict(counts), "frames with crops, counted", "Count over real frames.")
    half, passed = sum(size * frames for size, frames in met) / 2, 0
    for size, frames in met:
        passed += size * frames
        if passed >= half:
            break
    return AxisRange(1, size, met[-1][0])


def profile_shapes(
    inputs: tuple[TensorSpec, ...], profile: Profile
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """Input name -> its (min, opt, max) shapes, for the inputs with a dynamic axis. Raises EngineError.

    Names must be exactly the graph's: a range for an axis that no input has is a misunderstanding.
    """
    dynamic = {axis for spec in inputs for axis in spec.shape if isinstance(axis, str)}
    if set(profile) != dynamic:
        remedy = "Give one range per dynamic axis of the graph, by its name."
        raise _refused("axes of a profile", sorted(profile) or "none", sorted(dynamic) or "none", remedy)

    def shape(spec: TensorSpec, which: str) -> tuple[int, ...]:
        return tuple(getattr(profile[axis], which) if isinstance(axis, str) else axis for axis in spec.shape)

    return {
        spec.name: (shape(spec, "min"), shape(spec, "opt"), shape(spec, "max"))
        for spec in inputs
        if any(isinstance(axis, str) for axis in spec.shape)
    }


def _refused(what: str, got: object, expected: object, remedy: str) -> EngineError:
    return EngineError(what, got=got, expected=expected, remedy=remedy)
