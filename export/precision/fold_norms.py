"""BatchNorm folded into the layer before it, in float32, so that the product is rounded to lower precision once.

Which layer is before it is observed while the network runs: networks of any form, no tracing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.overrides import TorchFunctionMode

from posekit.export.precision.trunk import tensors_in

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
FOLDABLE = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)


class _Uses(TorchFunctionMode):
    """How often each of the tensors with these ids is an argument of a function that gives tensors."""

    def __init__(self, watched: AbstractSet[int]) -> None:
        super().__init__()
        self.watched = watched
        self.count: Counter[int] = Counter()

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if tensors_in(out):
            self.add(tensors_in((args, kwargs)))
        return out

    def add(self, tensors: Sequence[Tensor]) -> None:
        self.count.update({id(tensor) for tensor in tensors} & self.watched)


def fold_norms(network: nn.Module, chosen: Callable[[str], bool], feeds: Sequence[Tensor]) -> tuple[str, ...]:
    """Fold, in place, every BatchNorm of `chosen` submodules whose input is a chosen layer's output and goes nowhere else.

    network: in eval mode.  feeds: what its forward takes.  Returns the names of the norms that are gone.
    """
    folded = []
    for norm_name, layer_name in _pairs(network, chosen, feeds).items():
        layer, norm = network.get_submodule(layer_name), network.get_submodule(norm_name)
        network.set_submodule(layer_name, _joined(layer, norm))
        network.set_submodule(norm_name, nn.Identity())
        folded.append(norm_name)
    return tuple(folded)


def _joined(layer: nn.Module, norm: nn.Module) -> nn.Module:
    assert isinstance(norm, _BatchNorm)
    with torch.no_grad():
        if isinstance(layer, nn.Linear):
            return fuse_linear_bn_eval(layer, norm).eval()
        fused: nn.Module = fuse_conv_bn_eval(layer, norm, transpose=isinstance(layer, TRANSPOSED))  # type: ignore[type-var]
        return fused.eval()


def _pairs(network: nn.Module, chosen: Callable[[str], bool], feeds: Sequence[Tensor]) -> dict[str, str]:
    """Norm -> layer, by name."""
    calls: Counter[str] = Counter()
    maker: dict[int, str] = {}
    taken: dict[str, Tensor] = {}
    alive: list[Tensor] = []  # an id is only good while its tensor lives

    def made(name: str) -> Any:
        def hook(module: nn.Module, args: object, out: Tensor) -> None:
            calls[name] += 1
            alive.append(out)
            if not (isinstance(module, nn.Linear) and out.ndim != 2):
                maker[id(out)] = name

        return hook

    def took(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            calls[name] += 1
            if args:
                taken[name] = args[0]

        return hook

    handles = []
    for name, module in network.named_modules():
        if chosen(name) and type(module) in FOLDABLE and not module._forward_pre_hooks and not module._forward_hooks:
            handles.append(module.register_forward_hook(made(name)))
        elif chosen(name) and isinstance(module, _BatchNorm) and module.running_mean is not None:
            handles.append(module.register_forward_pre_hook(took(name)))
    uses = _Uses(maker.keys())
    try:
        with torch.inference_mode(), uses:
            outputs = tensors_in(network(*feeds))
    finally:
        for handle in handles:
            handle.remove()
    uses.add(outputs)
    found = {name: maker[id(x)] for name, x in taken.items() if id(x) in maker and uses.count[id(x)] == 1}
    return {norm: layer for norm, layer in found.items() if calls[norm] == calls[layer] == 1}
