"""Which submodules of a network are its trunk: stated by name, or found by what they are fed and what they give.

A trunk is a list of dotted names. "backbone" is that submodule with all below it; "-backbone.layer4.1" keeps a submodule
of a part out again, and "backbone.layer4.1.conv1" takes a submodule of that in again: the longest name decides. A list
that is never called itself (`nn.ModuleList`) stands for its members.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from posekit.export.example_feed import EXAMPLE_SIZES, example_feed
from posekit.export.systems import GraphSource
from posekit.runtime.errors import PrecisionError

EXCEPT = "-"
PIXELS = frozenset({"crops", "image"})  # every other input is geometry


@dataclass(frozen=True)
class Trunk:
    """parts: submodules in lower precision.  kept: submodules of these that stay float32, but for parts inside them.

    Dotted names, in order.
    """

    parts: tuple[str, ...]
    kept: tuple[str, ...]

    def has(self, name: str) -> bool:
        """Whether the submodule of that name runs in lower precision."""
        return _nearest(name, self.parts) > _nearest(name, self.kept)


def read_trunk(source: GraphSource) -> Trunk:
    """What `source.trunk` names. PrecisionError for an empty one, a name that the network has not, or nothing to gain."""
    known = dict(source.module.named_modules(remove_duplicate=False))
    named = tuple(name for name in source.trunk if not name.startswith(EXCEPT))
    kept = tuple(name.removeprefix(EXCEPT) for name in source.trunk if name.startswith(EXCEPT))
    if not named:
        raise _wrong(source, "none", "at least one submodule", "State it in the recipe, or leave this graph in fp32.")
    unknown = [name for name in (*named, *kept) if name not in known or not name]
    if unknown:
        names = ", ".join(name for name, _ in source.module.named_children())
        raise _wrong(source, repr(unknown[0]), f"submodules of the network ({names}, ...)", "Correct the name.")
    loose = [name for name in kept if not _below(name, named)]
    if loose:
        raise _wrong(source, f"{EXCEPT}{loose[0]}", "exceptions below a part of the trunk", "Leave the exception out.")
    parts = dict.fromkeys(part for name in named for part in called_parts(name, known[name]))
    trunk = Trunk(tuple(part for part in parts if _nearest(part, named) > _nearest(part, kept)), kept)
    if not any(_has_weights(known[name]) for name in trunk.parts):
        raise _wrong(source, f"{', '.join(named)}, without weights", "parts with weights", "Name the backbone.")
    return trunk


def found_trunk(source: GraphSource, root: str) -> tuple[str, ...]:
    """The largest submodules from `root` down that hold weights, take no geometry and give no output of the graph.

    What takes a camera or a box does geometry with it, and what gives the graph's output has decoded it: of these only
    parts are trunk. Judged in one run on an example feed, by which tensors share memory. Empty where nothing is left.
    """
    seen = _observed(source)
    found: list[str] = []

    def descend(name: str, module: nn.Module) -> None:
        if not _has_weights(module):
            return
        if name in seen.called and name not in seen.geometric:
            found.append(name)
            return
        for child, below in module.named_children():
            descend(f"{name}.{child}", below)

    descend(root, source.module.get_submodule(root))
    return tuple(found)


@dataclass(frozen=True)
class _Observed:
    called: frozenset[str]
    geometric: frozenset[str]


def _observed(source: GraphSource) -> _Observed:
    calls: list[tuple[str, list[Tensor], list[Tensor]]] = []

    def watch(name: str) -> Any:
        def hook(_: nn.Module, args: object, named: object, out: object) -> None:
            calls.append((name, tensors_in((args, named)), tensors_in(out)))

        return hook

    handles = [
        module.register_forward_hook(watch(name), with_kwargs=True) for name, module in source.module.named_modules()
    ]
    feed = example_feed(source.inputs, EXAMPLE_SIZES)
    inputs = {spec.name: torch.from_numpy(feed[spec.name]) for spec in source.inputs}
    try:
        with torch.inference_mode():
            outputs = tensors_in(source.module.eval()(*inputs.values()))
    finally:
        for handle in handles:
            handle.remove()
    geometry = _memory(tensor for name, tensor in inputs.items() if name not in PIXELS)
    given = _memory(outputs)
    geometric = {name for name, taken, gave in calls if _memory(taken) & geometry or _memory(gave) & given}
    return _Observed(frozenset(name for name, _, _ in calls), frozenset(geometric))


def tensors_in(value: object) -> list[Tensor]:
    """All tensors in nested containers."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def _memory(tensors: Iterable[Tensor]) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.numel()}


def without(source: GraphSource, name: str, called: Collection[str]) -> GraphSource:
    """The same graph with a submodule kept out of its trunk: a layer, or what a forward does between its members.

    called: submodules that are called as such; of others, forward uses the weights itself. One that is out already goes
    out with its members.
    """
    out = f"{EXCEPT}{name}"
    if out in source.trunk:
        rules, members = [rule for rule in source.trunk if not _below(rule.removeprefix(EXCEPT), [name])] + [out], []
    else:
        rules = [rule for rule in source.trunk if rule != name]
        if any(_below(name, [rule]) for rule in rules):
            rules.append(out)
        known = {rule.removeprefix(EXCEPT) for rule in rules}
        children = source.module.get_submodule(name).named_children()
        parts = [part for child, below in children for part in called_parts(f"{name}.{child}", below)]
        members = [part for part in parts if part in called and part not in known]
    named = [rule for rule in (*rules, *members) if not rule.startswith(EXCEPT)]
    weighted = [rule for rule in named if _has_weights(source.module.get_submodule(rule))]
    kept = [rule for rule in rules if rule.startswith(EXCEPT) and _below(rule.removeprefix(EXCEPT), weighted)]
    return replace(source, trunk=(*weighted, *kept))


def called_parts(name: str, module: nn.Module) -> list[str]:
    """The name, or those of its members where the module is a mere list."""
    if type(module).forward is not nn.Module.forward:
        return [name]
    return [part for child, below in module.named_children() for part in called_parts(f"{name}.{child}", below)]


def _has_weights(module: nn.Module) -> bool:
    return any(parameter.is_floating_point() for parameter in module.parameters())


def _below(name: str, parts: Sequence[str]) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def _nearest(name: str, parts: Sequence[str]) -> int:
    """Length of the longest of `parts` that the name is or is below, 0 without any."""
    return max((len(part) for part in parts if _below(name, [part])), default=0)


def _wrong(source: GraphSource, got: object, expected: str, remedy: str) -> PrecisionError:
    return PrecisionError(f"trunk of the {source.role} graph", got=got, expected=expected, remedy=remedy)
