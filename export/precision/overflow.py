"""Do the values of a trunk fit float16 on real crops? Measured where they would be float16, with float32's range.

The network runs by the plan of posekit.export.precision.half, in bfloat16: the same tensors are narrow, so an overflow is
a number instead of infinity, also between layers and inside attention, and what stays float32 is not blamed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from posekit.export.precision.half import HALF_MAX, HalfNetwork, half_source
from posekit.export.precision.trunk import EXCEPT, tensors_in
from posekit.export.systems import GraphSource
from posekit.runtime.errors import PrecisionError
from posekit.runtime.tensor import Feed, check_feed

STAND_IN = torch.bfloat16


@dataclass(frozen=True)
class OverflowReport:
    """largest: |x| entering, inside or leaving each layer of the trunk, over all crops, in the order of the first call."""

    crops: int
    largest: dict[str, float]

    @property
    def nearest(self) -> str:
        """The layer with the largest values."""
        return max(self.largest, key=self.largest.__getitem__)

    @property
    def headroom(self) -> float:
        """The largest value of all as a share of what float16 holds: 1 is the limit."""
        return self.largest[self.nearest] / HALF_MAX


def overflow_probe(source: GraphSource, feeds: Iterable[Feed]) -> OverflowReport:
    """Run the float32 source on `feeds` (streamed, one at a time) and measure its trunk.

    Raises PrecisionError that names the first layer beyond 65504, or with NaN or infinity of its own; no feeds; SpecError.
    """
    half = half_source(source, STAND_IN)
    assert isinstance(half.module, HalfNetwork)
    watch, crops = _Watch(), 0
    with torch.inference_mode(), _named_calls(half.module.network, watch.layers), watch:
        for feed in feeds:
            check_feed(feed, source.inputs)
            tensors = [torch.from_numpy(feed[spec.name].copy()) for spec in source.inputs]
            half.module(*tensors)
            crops += len(tensors[0])
    if not crops:
        raise _wrong(source, "no crops", "real crops to measure on", "Give the recipe calibration frames.")
    _check(source, watch.largest, crops)
    return OverflowReport(crops, watch.largest)


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
def _named_calls(network: nn.Module, layers: list[str]) -> Iterator[None]:
    """Keeps the names of the submodules that are being called in `layers`, innermost last."""

    def enter(name: str) -> Callable[..., None]:
        return lambda module, args: layers.append(name)

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


def _check(source: GraphSource, largest: Mapping[str, float], crops: int) -> None:
    beyond = [layer for layer, value in largest.items() if not value <= HALF_MAX]
    if not beyond:
        return
    layer, value = beyond[0], largest[beyond[0]]
    more = f" (and {len(beyond) - 1} more)" if len(beyond) > 1 else ""
    if not math.isfinite(value):
        remedy = "Check the checkpoint and the crops: the network fails in float32 as well."
        raise _wrong(source, f"NaN or infinity in {layer!r}{more}", "finite values", remedy)
    remedy = f'Keep that layer in float32: add "{EXCEPT}{layer}" to the trunk.'
    raise _wrong(
        source, f"|x| up to {value:.5g} in {layer!r}{more} on {crops} crops", f"at most {HALF_MAX:.0f}", remedy
    )


def _wrong(source: GraphSource, got: str, expected: str, remedy: str) -> PrecisionError:
    return PrecisionError(f"float16 {source.role} graph", got=got, expected=expected, remedy=remedy)
