"""Specs as the manifest declares them: backends forget the names of dynamic axes, and some the order of tensors."""

from __future__ import annotations

from collections.abc import Sequence

from posekit.runtime.errors import BackendError
from posekit.runtime.tensor import TensorSpec, shapes_fit


def as_declared(found: Sequence[TensorSpec], declared: Sequence[TensorSpec], where: str) -> tuple[TensorSpec, ...]:
    """`declared`, when `found` fits it; `found` itself when nothing is declared. BackendError where they differ."""
    if not declared:
        return tuple(found)
    named = {spec.name: spec for spec in found}
    differing = [
        spec
        for spec in declared
        if spec.name not in named
        or named[spec.name].dtype != spec.dtype
        or not shapes_fit(named[spec.name].shape, spec.shape)
    ]
    if differing or len(named) != len(declared):
        raise BackendError(
            f"graph on {where}",
            got=", ".join(map(str, found)),
            expected=", ".join(map(str, declared)),
            remedy="Export the bundle again: its manifest describes another graph.",
        )
    return tuple(declared)
