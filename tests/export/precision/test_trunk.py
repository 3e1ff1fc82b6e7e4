"""Which submodules are trunk: stated names are read strictly, found ones take no geometry and give no output."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from posekit.export.networks.entrance import Entrance
from posekit.export.networks.own import detector_graph, embedder_graphs, regressor_graphs
from posekit.export.precision.trunk import Trunk, read_trunk
from posekit.export.systems import SYSTEMS, system_named
from posekit.runtime.errors import PrecisionError

torch.set_num_threads(1)


class Regressor(nn.Module):
    """A trunk, a head that is told the camera, an output layer."""

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])

        def forward(self, x: Tensor, K: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x).relu()
            return x / K[:, 0, :1]

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU()), Regressor.Head()
        self.t, self.flat = nn.Linear(8, 3), nn.Identity()

    def forward(self, crops: Tensor, K: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.head(self.flat(self.backbone(crops)).mean(dim=(2, 3)), K)
        return torch.eye(3).expand(len(x), 3, 3) * K[:, 2:, 2:], self.t(x), x[:, 0].sigmoid()


class Detector(nn.Module):
    """All in one submodule that also decodes, as many detectors are."""

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs, self.head = nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.ReLU()), nn.Conv2d(8, 5, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            maps = self.head(self.convs(x)).flatten(2)
            scores, index = maps[:, 4].sigmoid().topk(2)
            boxes = maps[:, :4].transpose(1, 2).gather(1, index[..., None].expand(-1, -1, 4))
            return boxes, scores, torch.zeros_like(index)

    def __init__(self) -> None:
        super().__init__()
        self.model = Detector.Inner()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        boxes, scores, labels = self.model(x)
        return boxes, scores, labels


def test_found_parts_take_no_geometry_and_give_no_output() -> None:
    pose = regressor_graphs("pose", Regressor(), Entrance(), (16, 16), ("crops", "K"))["pose"]
    assert pose.trunk == ("network.backbone", "network.head.layers.0", "network.head.layers.1")
    detector = detector_graph(Detector(), Entrance(), (32, 32))
    assert detector.trunk == ("network.model.convs", "network.model.head")


def test_an_embedder_is_trunk_as_a_whole_and_its_matcher_has_none() -> None:
    graphs = embedder_graphs(nn.Conv2d(3, 4, 4, 4), Entrance(), (16, 16), None)
    assert graphs["embedder"].trunk == ("network",)
    assert graphs["matcher"].trunk == ()


def test_a_network_without_weights_has_no_trunk() -> None:
    assert embedder_graphs(nn.AvgPool2d(4), Entrance(), (16, 16), None)["embedder"].trunk == ()


def test_stated_names_are_the_networks_own() -> None:
    pose = regressor_graphs("pose", Regressor(), Entrance(), (16, 16), ("crops", "K"), ("head", "-head.layers.1"))[
        "pose"
    ]
    assert pose.trunk == ("network.head", "-network.head.layers.1")
    assert read_trunk(pose).has("network.head.layers.0")
    assert not read_trunk(pose).has("network.head.layers.1")
    assert not read_trunk(pose).has("network.header")
    with pytest.raises(PrecisionError, match=r"'network.bone', expected submodules"):
        regressor_graphs("pose", Regressor(), Entrance(), (16, 16), ("crops", "K"), ("bone",))
    with pytest.raises(PrecisionError, match="bone"):
        detector_graph(Detector(), Entrance(), (32, 32), ("bone",))
    with pytest.raises(PrecisionError, match="bone"):
        embedder_graphs(nn.Conv2d(3, 4, 4, 4), Entrance(), (16, 16), None, ("bone",))


@pytest.mark.parametrize("trunk", [("-head.layers.1",), ("-network.head.layers.1",)])
def test_exceptions_alone_are_of_the_trunk_that_is_found(trunk: tuple[str, ...]) -> None:
    pose = regressor_graphs("pose", Regressor(), Entrance(), (16, 16), ("crops", "K"), trunk)["pose"]
    assert read_trunk(pose).parts == ("network.backbone", "network.head.layers.0")


def test_names_of_reports_are_names_of_a_trunk() -> None:
    """What a message says, "-network.head", is what the recipe takes; the network's own names come first."""
    names = ("network.head", "-network.head.layers.1")
    pose = regressor_graphs("pose", Regressor(), Entrance(), (16, 16), ("crops", "K"), names)["pose"]
    assert pose.trunk == names

    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = nn.Conv2d(3, 4, 4, 4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.network(x)
            return out

    assert embedder_graphs(Nested(), Entrance(), (16, 16), None, ("network",))["embedder"].trunk == ("network.network",)
    assert embedder_graphs(Nested(), Entrance(), (16, 16), None, ("network.network",))["embedder"].trunk == (
        "network.network",
    )


def test_the_longest_name_decides() -> None:
    trunk = Trunk(("network.head", "network.head.layers.1.weighted"), ("network.head.layers",))
    for name, inside in (
        ("network.head", True),
        ("network.head.out", True),
        ("network.head.layers.0", False),
        ("network.head.layers.1", False),
        ("network.head.layers.1.weighted", True),
        ("network", False),
    ):
        assert trunk.has(name) is inside


def test_a_list_stands_for_its_members() -> None:
    pose = regressor_graphs("pose", Regressor(), Entrance(), (16, 16), ("crops", "K"), ("head.layers",))["pose"]
    assert read_trunk(pose).parts == ("network.head.layers.0", "network.head.layers.1")


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_states_the_trunk_of_every_graph_with_weights(name: str) -> None:
    system = system_named(name)
    network = system.network(**({"classes": 2} if name == "anchor-free" else {}))
    for graph in system.graphs(network, system.crop).values():
        assert bool(graph.trunk) == bool(list(graph.module.parameters()))
        if graph.trunk:
            read_trunk(graph)
