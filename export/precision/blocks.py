"""A network's blocks: which weight-bearing nodes of a graph belong together, by the modules that they are called after."""

from __future__ import annotations

from collections.abc import Iterable

LAYER = 1  # the last part of a module's name is the layer; what is before it is the block


def blocks_of(nodes: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Group node names (`backbone.layer1.0.conv1/Conv`, posekit.export.onnx_graph) by block (`backbone.layer1.0`).

    A node without a module, or of a module at the top, is a block of its own. Order of first appearance. Names of other
    exporters have their modules between slashes (`/model.2/cv1/conv/Conv`, block `/model.2/cv1`).
    """
    found: dict[str, list[str]] = {}
    for name in nodes:
        module = name.rpartition("/")[0]
        between = "/" if "/" in module else "."
        block = between.join(module.split(between)[:-LAYER])
        found.setdefault(block or module or name, []).append(name)
    return {block: tuple(names) for block, names in found.items()}
