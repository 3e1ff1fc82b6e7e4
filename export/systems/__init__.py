"""Published pose systems, one file each: which networks, which crop, which decoder or solver.

Adding a system is adding a file and a row of SYSTEMS. A file offers `SYSTEM = System(...)`; it is imported when asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from posekit.runtime.crop import CropPreset
from posekit.runtime.errors import RecipeError
from posekit.runtime.manifest import PathKind, Precision, Role, SolverEntry
from posekit.runtime.tensor import TensorSpec

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, eq=False)
class GraphSource:
    """A module that follows a graph contract (README, "Graphs"), ready for export.

    module: forward takes the inputs in order and returns a tensor, or a tuple in the order of `outputs`.
    inputs: the batch axis is the string "batch".
    trunk: submodules that may run in lower precision, as posekit.export.precision.trunk reads them; everything else
    (geometry, decoding, matching) stays float32.  precision: what `module` computes in; its own is "fp32".
    """

    role: Role
    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    trunk: tuple[str, ...] = ()
    precision: Precision = "fp32"


@dataclass(frozen=True)
class PathPlan:
    """How the graphs of one network make a pose path; names are keys of the graphs that `System.graphs` returns."""

    kind: PathKind
    graph: str
    matcher: str | None = None
    solver: SolverEntry | None = None


@dataclass(frozen=True, eq=False)
class System:
    """network: keyword options -> the nn.Module that a checkpoint's state dict fits (strict).
    graphs: that network and the crop -> the graphs to export, by name.
    """

    name: str
    title: str
    source: str
    crop: CropPreset
    network: Callable[..., nn.Module]
    graphs: Callable[[Any, CropPreset], dict[str, GraphSource]]
    paths: Mapping[str, PathPlan] = field(default_factory=dict)


# name -> module; `posekit systems` lists them in this order.
SYSTEMS: dict[str, str] = {
    "tram3d": "posekit.export.systems.tram3d",
    "template-pose": "posekit.export.systems.template_pose",
    "gdr-net": "posekit.export.systems.gdr_net",
    "surfemb-regressor": "posekit.export.systems.surfemb_regressor",
    "anchor-free": "posekit.export.systems.anchor_free",
}


def system_named(name: str) -> System:
    """The system of that name. RecipeError lists the known ones."""
    if name not in SYSTEMS:
        raise RecipeError(
            "system",
            got=repr(name),
            expected=f"one of {', '.join(SYSTEMS)}",
            remedy='Or give network = "module:factory".',
        )
    system = import_module(SYSTEMS[name]).SYSTEM
    assert isinstance(system, System)
    return system
