"""Options that contradict each other are refused; profiles fit the graph; a histogram gives a profile."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posekit.runtime.engines.options import AxisRange, BuildOptions, profile_from_histogram, profile_shapes
from posekit.runtime.errors import EngineError
from posekit.runtime.records import plain_from, record_from
from posekit.runtime.tensor import TensorSpec

INPUTS = (
    TensorSpec("descriptors", "float32", ("batch", 4, 8)),
    TensorSpec("templates", "float32", (4, 8, "views")),
    TensorSpec("bias", "float32", (8,)),
)
PROFILE = {"batch": AxisRange(1, 2, 3), "views": AxisRange(5, 50, 500)}


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"flavour": "tensorflow"}, "flavour"),
        ({"flavour": "rtx"}, "compute capabilities of TensorRT-RTX: got none"),
        ({"flavour": "rtx", "compute_capabilities": (86, 86)}, "each once"),
        ({"flavour": "tensorrt", "compute_capabilities": (86,)}, "builds for the GPU that is there"),
        ({"flavour": "tensorrt", "workspace_bytes": 0}, "workspace"),
        ({"flavour": "tensorrt", "optimization_level": 6}, "optimization level"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options: dict[str, Any], wrong: str) -> None:
    with pytest.raises(EngineError, match=wrong):
        BuildOptions(**options)


@pytest.mark.parametrize("sizes", [(0, 1, 1), (2, 1, 3), (1, 4, 3)])
def test_a_range_is_ordered(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(EngineError, match="axis range"):
        AxisRange(*sizes)


def test_options_survive_being_written() -> None:
    options = BuildOptions("rtx", (PROFILE,), compute_capabilities=(75, 120))
    assert record_from(BuildOptions, plain_from(options)) == options


def test_a_profile_gives_three_shapes_to_every_dynamic_input() -> None:
    assert profile_shapes(INPUTS, PROFILE) == {
        "descriptors": ((1, 4, 8), (2, 4, 8), (3, 4, 8)),
        "templates": ((4, 8, 5), (4, 8, 50), (4, 8, 500)),
    }
    assert profile_shapes(INPUTS[2:], {}) == {}


@pytest.mark.parametrize("change", [{"batch": None}, {"time": AxisRange(1, 1, 1)}])
def test_a_profile_names_exactly_the_axes_of_the_graph(change: dict[str, Any]) -> None:
    profile = {axis: sizes for axis, sizes in (PROFILE | change).items() if sizes}
    with pytest.raises(EngineError, match=r"expected \['batch', 'views'\]"):
        profile_shapes(INPUTS, profile)


@given(st.dictionaries(st.integers(0, 40), st.integers(0, 50), min_size=1))
def test_opt_is_the_median_over_crops(counts: dict[int, int]) -> None:
    crops = [size for size, frames in sorted(counts.items()) for _ in range(size * frames)]
    if not crops:
        with pytest.raises(EngineError, match="histogram"):
            profile_from_histogram(counts)
        return
    found = profile_from_histogram(counts)
    assert (found.min, found.max) == (1, max(crops))
    assert found.opt == crops[(len(crops) - 1) // 2]


@pytest.mark.parametrize("counts", [{}, {0: 5}, {-1: 2, 3: 1}, {3: -1, 2: 2}])
def test_a_histogram_without_crops_is_refused(counts: dict[int, int]) -> None:
    with pytest.raises(EngineError, match="histogram"):
        profile_from_histogram(counts)
