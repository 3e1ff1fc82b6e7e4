"""The user's own network behind the graph contracts: what fits is wrapped, what does not is refused at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from posekit.export.example_feed import example_feed
from posekit.export.networks.entrance import Entrance
from posekit.export.networks.own import detector_graph, embedder_graphs, own_paths, regressor_graphs
from posekit.export.parity import network_outputs
from posekit.runtime.errors import ExportError, RecipeError
from posekit.runtime.manifest import SolverEntry


class Calls(nn.Module):
    """A network from a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor, **named: Tensor) -> Any:
        return self.function(*args, **named)


@pytest.mark.parametrize(
    ("forward", "places"),
    [
        (lambda x: nn.functional.avg_pool2d(x, 4), 16),
        (lambda x: x.mean(dim=(2, 3)), 1),
        (lambda x: nn.functional.avg_pool2d(x, 8).flatten(2).transpose(1, 2), 4),
    ],
    ids=["map", "vector", "places"],
)
def test_any_form_of_descriptors_becomes_unit_places(forward: Callable[[Tensor], Tensor], places: int) -> None:
    graphs = embedder_graphs(Calls(forward), Entrance(), (16, 16), None)
    feed = example_feed(graphs["embedder"].inputs, {"batch": 2})
    descriptors = network_outputs(graphs["embedder"], graphs["embedder"].module, feed)["descriptors"]
    assert descriptors.shape == (2, places, 3)
    torch.testing.assert_close(torch.from_numpy(descriptors).norm(dim=2), torch.ones(2, places))
    assert graphs["matcher"].inputs[0].shape == ("batch", places, 3)
    assert own_paths("embedder", None)["bank"].matcher == "matcher"


def test_the_network_sees_normalised_channels() -> None:
    seen: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        seen.append(x)
        return x

    embedder_graphs(Calls(keep), Entrance((0, 0, 0), (1, 1, 1), bgr=True), (16, 16), None)
    assert seen[0].shape == (2, 3, 16, 16)
    assert 0 <= float(seen[0].min()) < float(seen[0].max()) <= 1


def pose_of(crops: Tensor, K: Tensor, label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    R = torch.eye(3).expand(len(crops), 3, 3) * K[:, 2:, 2:]
    return R, K[:, :, 2] + label[:, None], crops.mean(dim=(1, 2, 3))


def test_a_regressor_gets_its_feeds_by_name() -> None:
    source = regressor_graphs("pose", Calls(pose_of), Entrance(), (16, 16), ("label", "K", "crops"))["pose"]
    assert [spec.name for spec in source.inputs] == ["label", "K", "crops"]
    assert source.outputs == ("R", "t", "score")
    assert own_paths("pose", None)["regressor"].graph == "pose"


def test_a_dense_network_is_followed_by_the_recipes_solver() -> None:
    def maps(crops: Tensor) -> tuple[Tensor, Tensor]:
        return crops[:, 0].sigmoid(), crops.permute(0, 2, 3, 1)

    assert regressor_graphs("correspondence", Calls(maps), Entrance(), (16, 16), ("crops",))[
        "correspondence"
    ].outputs == (
        "mask",
        "coords_m",
    )
    solver = SolverEntry("p3p-ransac", 10, 3.0)
    assert own_paths("correspondence", solver)["solver"].solver == solver


def test_a_detector_has_a_fixed_image() -> None:
    def boxes(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scores, labels = x.mean(dim=(2, 3)).topk(2)
        return torch.zeros(1, 2, 4), scores, labels

    source = detector_graph(Calls(boxes), Entrance(), (32, 24))
    assert source.inputs[0].shape == (1, 24, 32, 3)
    assert source.outputs == ("boxes", "scores", "labels")


def R(K: Tensor) -> Tensor:
    return K


def T(K: Tensor) -> Tensor:
    return K[:, 0]


def SCORE(K: Tensor) -> Tensor:
    return K[:, 0, 0]


@pytest.mark.parametrize(
    ("forward", "told"),
    [
        (lambda crops, K: crops, "output 1: float32 (2, 3, 16, 16), expected of role pose R: float32 (batch, 3, 3)"),
        (lambda crops, K: (R(K), T(K)), "output 1: float32 (2, 3, 3); output 2: float32 (2, 3)"),
        (
            lambda crops, K: (K[:, :, :2], T(K), SCORE(K)),
            "R: float32 (2, 3, 2) (this does not fit); t: float32 (2, 3); s",
        ),
        (lambda crops, K: (R(K), T(K), K[:1, 0, 0]), "score: float32 (1,) (this does not fit)"),
        (lambda crops, K: (R(K), T(K), SCORE(K)[:, None]), "score: float32 (2, 1) (this does not fit)"),
        (lambda crops, K: (R(K).half(), T(K), SCORE(K)), "R: float16 (2, 3, 3) (this does not fit)"),
        (lambda crops, K: (R(K), T(K), 1.0), "score: float (this does not fit)"),
        (lambda crops, K: ((R(K), T(K)), SCORE(K)), "output 1: tuple (this does not fit); output 2: float32 (2,)"),
        (lambda crops, K: {"rot": R(K), "trans": T(K)}, "rot: float32 (2, 3, 3); trans: float32 (2, 3), expected"),
        (lambda crops, K: None, "output 1: NoneType (this does not fit)"),
        (lambda crops, K: 3, "output 1: int (this does not fit)"),
        (lambda crops: crops, "unexpected keyword argument 'K'"),
        (lambda crops, K: crops @ K, "RuntimeError"),
    ],
)
def test_a_network_that_breaks_its_role_is_refused_with_what_it_gives(forward: Callable[..., Any], told: str) -> None:
    with pytest.raises(ExportError) as caught:
        regressor_graphs("pose", Calls(forward), Entrance(), (16, 16), ("crops", "K"))
    assert told in str(caught.value)
    assert "posekit.export.networks.geometry" in str(caught.value)


@pytest.mark.parametrize(
    ("forward", "told"),
    [
        (lambda x: None, "descriptors: NoneType (this does not fit)"),
        (lambda x: (x, x), "output 1: float32 (2, 3, 16, 16); output 2: float32 (2, 3, 16, 16)"),
        (lambda x: x.mean(), "for 2 crops descriptors: float32 ()"),
    ],
)
def test_an_embedder_that_gives_something_else_is_told_all_forms(forward: Callable[..., Any], told: str) -> None:
    with pytest.raises(ExportError) as caught:
        embedder_graphs(Calls(forward), Entrance(), (16, 16), None)
    assert told in str(caught.value)
    assert "(batch, C, h, w), (batch, L, C) or (batch, C)" in str(caught.value)


def test_a_detector_needs_whole_labels() -> None:
    with pytest.raises(ExportError, match=r"labels: float32 \(1, 5\) \(this does not fit\).* labels: int64 \(1, K\)"):
        detector_graph(Calls(lambda x: (torch.zeros(1, 5, 4), *[torch.zeros(1, 5)] * 2)), Entrance(), (32, 24))


def test_outputs_by_name_may_come_in_any_order() -> None:
    named = Calls(lambda crops, K: {"score": SCORE(K), "t": T(K), "R": R(K)})
    source = regressor_graphs("pose", named, Entrance(), (16, 16), ("crops", "K"))["pose"]
    feed = example_feed(source.inputs, {"batch": 2})
    found = network_outputs(source, source.module, feed)
    np.testing.assert_array_equal(found["R"], feed["K"])
    np.testing.assert_array_equal(found["score"], feed["K"][:, 0, 0])


@pytest.mark.parametrize("feeds", [(), ("K",), ("crops", "depth"), ("crops", "crops")])
def test_feeds_that_nobody_gives_are_refused(feeds: tuple[str, ...]) -> None:
    with pytest.raises(RecipeError, match="feeds"):
        regressor_graphs("pose", Calls(pose_of), Entrance(), (16, 16), feeds)
