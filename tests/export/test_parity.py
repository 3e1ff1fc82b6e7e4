"""Parity: equal graphs pass with figures, different ones are refused, ties in a ranking are no difference."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from posekit.export.parity import TOLERANCES, ParityFigure, check_parity, compared, network_outputs
from posekit.export.systems import GraphSource
from posekit.runtime.errors import ParityError
from posekit.runtime.tensor import Feed, TensorSpec

FP32 = TOLERANCES["fp32"]
SPECS = (TensorSpec("descriptors", "float32", ("batch", 4, 8)),)


class Net(nn.Module):
    """Two outputs of very different scale."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.small, self.large = nn.Linear(8, 3), nn.Linear(8, 5)

    def forward(self, descriptors: Tensor) -> tuple[Tensor, Tensor]:
        return 1e-3 * self.small(descriptors), 1e3 * self.large(descriptors)


class Runs:
    """A session that runs a network in torch."""

    inputs = SPECS
    backend = "torch"

    def __init__(self, source: GraphSource) -> None:
        self.source = source
        self.outputs: tuple[TensorSpec, ...] = ()

    def run(self, feed: Feed) -> dict[str, Any]:
        return network_outputs(self.source, self.source.module, dict(feed))

    def close(self) -> None:
        pass


def source(module: nn.Module) -> GraphSource:
    return GraphSource("pose", module.eval(), SPECS, ("small", "large"))


def test_the_network_agrees_with_itself() -> None:
    report = check_parity(source(Net()), Runs(source(Net())))
    assert [figure.output for figure in report.figures] == ["small", "large"]
    assert report.worst == 0.0
    assert all(0 < figure.noise < 1e-6 and figure.tolerance == FP32.floor for figure in report.figures)


def test_real_crops_take_the_place_of_plausible_numbers() -> None:
    seen: list[np.ndarray] = []

    class Listens(Runs):
        def run(self, feed: Feed) -> dict[str, Any]:
            seen.append(np.asarray(feed["descriptors"]))
            return super().run(feed)

    crops = np.random.default_rng(0).normal(size=(6, 4, 8)).astype(np.float32)
    check_parity(source(Net()), Listens(source(Net())), crops={"descriptors": crops})
    np.testing.assert_array_equal(seen[0], crops[:1])
    np.testing.assert_array_equal(seen[1], crops[1:4])


@pytest.mark.parametrize("which", ["small", "large"])
def test_a_difference_in_one_output_is_found_at_its_own_scale(which: str) -> None:
    other = Net()
    with torch.no_grad():
        getattr(other, which).weight[0, 0] += 1e-2
    with pytest.raises(ParityError, match=f"output '{which}'"):
        check_parity(source(Net()), Runs(source(other)))


class Amplifier(nn.Module):
    """The difference of nearly equal numbers: one rounding of a weight is seen in the third digit."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.full((8,), 1e4)), nn.Parameter(torch.full((8,), 1e4 - 10))

    def forward(self, descriptors: Tensor) -> tuple[Tensor, Tensor]:
        return (descriptors * self.a).sum(2) - (descriptors * self.b).sum(2), descriptors


def test_the_tolerance_follows_the_measured_noise_up_to_a_ceiling() -> None:
    figure = check_parity(source(Amplifier()), Runs(source(Amplifier()))).figures[0]
    assert FP32.floor < figure.tolerance <= FP32.ceiling
    assert figure.noise > 1e-5


def test_a_network_that_gives_nan_is_refused() -> None:
    broken = Net()
    with torch.no_grad():
        broken.small.bias[0] = torch.nan
    with pytest.raises(ParityError, match="NaN"):
        check_parity(source(broken), Runs(source(broken)))


def test_a_graph_that_gives_nan_or_another_shape_is_refused() -> None:
    ones = {"a": np.ones((2, 3), np.float32)}
    with pytest.raises(ParityError, match=r"\(3, 2\)"):
        compared(ones, {"a": np.ones((3, 2), np.float32)}, ones)
    broken = copy.deepcopy(Net())
    with torch.no_grad():
        broken.large.bias[0] = torch.inf
    with pytest.raises(ParityError, match="'large'"):
        check_parity(source(Net()), Runs(source(broken)))


def test_zero_outputs_must_be_zero() -> None:
    zero, other = {"a": np.zeros(3, np.float32)}, {"a": np.array([0, 0, 1e-9], np.float32)}
    assert compared(zero, zero, zero)[0].max_rel == 0.0
    assert compared(zero, other, zero)[0].max_rel == np.inf


def ranking(index: list[int], score: list[float]) -> dict[str, Any]:
    return {"index": np.array([index]), "score": np.array([score], np.float32)}


@pytest.mark.parametrize(
    ("index", "wrong"),
    [
        ([7, 3, 5, 1], 0),
        ([7, 5, 3, 1], 0),  # equal scores change places
        ([7, 3, 5, 9], 0),  # the last one may tie with one that is not listed
        ([3, 7, 5, 1], 1),  # different scores do not
        ([6, 3, 5, 1], 1),
    ],
)
def test_ties_in_a_ranking_are_no_difference(index: list[int], wrong: int) -> None:
    wanted = ranking([7, 3, 5, 1], [0.9, 0.5, 0.5, 0.2])
    figure = compared(wanted, ranking(index, [0.9, 0.5, 0.5, 0.2]), wanted)[0]
    assert figure == ParityFigure("index", wrong, wrong, 0.0, 0.0)


def test_other_integers_are_compared_exactly() -> None:
    wanted = {"labels": np.array([1, 2, 3])}
    assert compared(wanted, {"labels": np.array([1, 2, 4])}, wanted)[0].max_rel == 1
