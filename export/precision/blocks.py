"""A network's blocks: which weight-bearing nodes of a graph belong together, by the modules that they are called after, or
by how they are connected where names say nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from onnx import ModelProto

LAYER = 1  # the last part of a module's name is the layer; what is before it is the block
MOST_NAMED = 16  # nodes of one module; names that put more together are no names of blocks
MOST_CONNECTED = 6  # nodes of a block that is found by connection: about a residual block or a stage of a head


def blocks_of(model: ModelProto, nodes: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Group these nodes of a graph into blocks, each called after its module, or after its first and last node.

    Modules that hold too much, and nodes without one, are divided by connection: whatever exporter wrote the names, no
    block is the whole network and few are single nodes.
    """
    before = _sources(model, nodes)
    found: dict[str, tuple[str, ...]] = {}
    for module, members in _by_module(nodes).items():
        if module and len(members) <= MOST_NAMED:
            found[module] = members
        else:
            found |= _connected(members, before)
    place = {name: i for i, name in enumerate(nodes)}
    return dict(sorted(found.items(), key=lambda block: place[block[1][0]]))


def _by_module(nodes: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Node names (`backbone.layer1.0.conv1/Conv`, posekit.export.onnx_graph) by the module around the layer
    (`backbone.layer1.0`), or by the layer at the top; those without any are under "".

    Names of other exporters have their modules between slashes (`/model.2/cv1/conv/Conv`, block `/model.2/cv1`).
    """
    found: dict[str, list[str]] = {}
    for name in nodes:
        module = name.rpartition("/")[0]
        between = "/" if "/" in module else "."
        found.setdefault(between.join(module.split(between)[:-LAYER]) or module, []).append(name)
    return {module: tuple(names) for module, names in found.items()}


def _connected(nodes: Sequence[str], before: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Chains of at most MOST_CONNECTED nodes: each joins the block of the nearest before it, where there is room.

    A node that no other reads from gives the network's answer and is a block of its own: it is often the one that INT8
    cannot do.
    """
    read, block_of = {name for sources in before.values() for name in sources}, dict[str, list[str]]()
    blocks: list[list[str]] = []
    for name in nodes:
        open_blocks = [block_of[source] for source in before[name] if source in block_of and name in read]
        block = next((b for b in reversed(open_blocks) if len(b) < MOST_CONNECTED and b[-1] in read), None)
        if block is None:
            blocks.append(block := [])
        block.append(name)
        block_of[name] = block
    return {block[0] if len(block) == 1 else f"{block[0]} to {block[-1]}": tuple(block) for block in blocks}


def _sources(model: ModelProto, nodes: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Which of these nodes each of them reads from, through any others, in graph order."""
    places = {name: i for i, name in enumerate(nodes)}
    behind: dict[str, frozenset[int]] = {}  # tensor -> the nodes that it comes from, the nearest on each way
    found: dict[str, tuple[str, ...]] = {}
    for node in model.graph.node:
        own = frozenset[int]().union(*(behind.get(name, frozenset()) for name in node.input))
        if node.name in places:
            found[node.name] = tuple(nodes[i] for i in sorted(own))
            own = frozenset([places[node.name]])
        behind.update(dict.fromkeys(node.output, own))
    return found
