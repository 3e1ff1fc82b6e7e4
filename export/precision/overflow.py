"""Do the values of a trunk fit float16 on real crops? Measured where they would be float16, with float32's range; the
layers that do not are kept in float32.

The network runs by the plan of posekit.export.precision.half, in bfloat16: the same tensors are narrow, so an overflow is
a number instead of infinity, also between layers and inside attention, and what stays float32 is not blamed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from posekit.export.precision.half import HALF_MAX, HalfNetwork, half_source, largest_weights
from posekit.export.precision.trunk import EXCEPT, read_trunk, tensors_in, without
from posekit.export.systems import GraphSource
from posekit.runtime.errors import PrecisionError
from posekit.runtime.tensor import Feed, check_feed

STAND_IN = torch.bfloat16


# The crops that are measured are not all that a device will see: a layer that fills more than half of float16's range on
# them stays in float32 as well.
LARGEST_SAFE = HALF_MAX / 2


@dataclass(frozen=True)
class OverflowReport:
    """largest: |x| entering, inside or leaving each layer of the trunk, or of its weights, over all crops, in the order of
    the first call.   kept: the same of the layers that stay in float32 for it; of a module that holds others, what its own
    forward does between them.
    """

    crops: int
    largest: dict[str, float]
    kept: dict[str, float] = field(default_factory=dict)

    @property
    def nearest(self) -> str:
        """The layer with the largest values."""
        return max(self.largest, key=self.largest.__getitem__)

    @property
    def headroom(self) -> float:
        """The largest value of all as a share of what float16 holds: 1 is the limit."""
        return self.largest[self.nearest] / HALF_MAX


def within_half(source: GraphSource, feeds: Callable[[], Iterable[Feed]]) -> tuple[GraphSource, OverflowReport]:
    """The graph with that part of its trunk whose values are safe in float16, and what was measured of it.

    feeds: called once per probe. What a probe finds beyond LARGEST_SAFE is kept in float32, until one finds nothing: what
    reads a large value overflows only once that value is float32. Raises PrecisionError where nothing is left, and as
    `overflow_probe` does.
    """
    kept: dict[str, float] = {}
    while True:
        report, called = overflow_probe(source, feeds())
        beyond = {layer: value for layer, value in report.largest.items() if value > LARGEST_SAFE}
        if not beyond:
            return source, replace(report, kept=kept)
        before, kept = source.trunk, kept | beyond
        for layer in beyond:
            source = without(source, layer, called)
        if source.trunk == before or not _weighs(source):
            shown = ", ".join(f"|x| up to {value:.3g} in {layer!r}" for layer, value in list(kept.items())[:3])
            more = f" (and {len(kept) - 3} more)" if len(kept) > 3 else ""
            raise _wrong(
                source,
                f"{shown}{more}, and nothing is left",
                f"a part with |x| up to {LARGEST_SAFE:.0f} at most",
                "Leave fp16 out of this recipe.",
            )


def _weighs(source: GraphSource) -> bool:
    """Whether any weight would be float16."""
    if all(rule.startswith(EXCEPT) for rule in source.trunk):
        return False
    return next(largest_weights(source.module, read_trunk(source)), None) is not None


def overflow_probe(source: GraphSource, feeds: Iterable[Feed]) -> tuple[OverflowReport, set[str]]:
    """Run the float32 source on `feeds` (streamed, one at a time): what its trunk holds, and which submodules were called.

    Raises PrecisionError for NaN or infinity, which names the first layer that gives it; no feeds; SpecError.
    """
    half = half_source(source, STAND_IN)
    assert isinstance(half.module, HalfNetwork)
    watch, called, crops = _Watch(), set[str](), 0
    with torch.inference_mode(), _named_calls(half.module.network, watch.layers, called), watch:
        for feed in feeds:
            check_feed(feed, source.inputs)
            tensors = [torch.from_numpy(feed[spec.name].copy()) for spec in source.inputs]
            half.module(*tensors)
            crops += len(tensors[0])
    if not crops:
        raise _wrong(source, "no crops", "real crops to measure on", "Give the recipe calibration frames.")
    largest = watch.largest
    for owner, _, weight in largest_weights(half.module.network, half.module.trunk):
        if weight > largest.get(owner, 0.0):
            largest[owner] = weight
    _check_finite(source, largest)
    return OverflowReport(crops, largest), called


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the values of every tensor of the stand-in's type, under the layer that makes it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layers: list[str] = []
        self.largest: dict[str, float] = {}

    def __torch_dispatch__(
        self, func: Any, types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tensors_in(out):
            self._record(tensor)
        if "scaled_dot_product" in str(func):  # one operator here, a product of its own in the graph
            query, key = args[0], args[1]
            scale = (kwargs or {}).get("scale") or query.shape[-1] ** -0.5
            self._record((query * scale) @ key.transpose(-2, -1))
        return out

    def _record(self, tensor: Tensor) -> None:
        if tensor.dtype == STAND_IN and tensor.numel() and self.layers:
            low, high = (float(x) for x in tensor.aminmax())
            layer, value = self.layers[-1], max(-low, high)
            before = self.largest.get(layer, 0.0)
            self.largest[layer] = value if math.isnan(value) or value > before else before


@contextmanager
def _named_calls(network: nn.Module, layers: list[str], called: set[str]) -> Iterator[None]:
    """Keeps the names of the submodules that are being called in `layers`, innermost last, and of all in `called`."""

    def enter(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: object) -> None:
            layers.append(name)
            called.add(name)

        return hook

    def leave(module: nn.Module, args: object, out: object) -> None:
        layers.pop()

    handles: list[Any] = []
    for name, module in network.named_modules():
        handles.append(module.register_forward_pre_hook(enter(name), prepend=True))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _check_finite(source: GraphSource, largest: Mapping[str, float]) -> None:
    beyond = [layer for layer, value in largest.items() if not math.isfinite(value)]
    if beyond:
        more = f" (and {len(beyond) - 1} more)" if len(beyond) > 1 else ""
        remedy = "Check the checkpoint and the crops: the network fails in float32 as well."
        raise _wrong(source, f"NaN or infinity in {beyond[0]!r}{more}", "finite values", remedy)


def _wrong(source: GraphSource, got: str, expected: str, remedy: str) -> PrecisionError:
    return PrecisionError(f"float16 {source.role} graph", got=got, expected=expected, remedy=remedy)
