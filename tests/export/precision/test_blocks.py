"""Blocks are a partition of the nodes, and follow the modules that the nodes are called after."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from posekit.export.precision.blocks import blocks_of

PART = st.text("abc01", min_size=1, max_size=3)
NAME = st.lists(PART, min_size=0, max_size=4).map(lambda parts: ".".join(parts) + "/Conv" if parts else "Conv")


@given(st.lists(NAME, unique=True))
def test_blocks_are_a_partition_in_order(names: list[str]) -> None:
    blocks = blocks_of(names)
    assert sorted(name for members in blocks.values() for name in members) == sorted(names)
    assert all(members == tuple(name for name in names if name in members) for members in blocks.values())


def test_layers_of_a_module_are_one_block() -> None:
    names = [
        "net.conv1/Conv",
        "net.layer1.0.conv1/Conv",
        "net.layer1.0.conv2/Conv",
        "net.layer1.0.downsample.0/Conv",
        "Conv",
    ]
    assert blocks_of(names) == {
        "net": ("net.conv1/Conv",),
        "net.layer1.0": ("net.layer1.0.conv1/Conv", "net.layer1.0.conv2/Conv"),
        "net.layer1.0.downsample": ("net.layer1.0.downsample.0/Conv",),
        "Conv": ("Conv",),
    }
