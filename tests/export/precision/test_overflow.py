"""The probe finds what would overflow in float16, where it does, and blames nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from posekit.export.example_feed import Arrays, example_feed
from posekit.export.networks.entrance import Entrance
from posekit.export.networks.own import embedder_graphs
from posekit.export.precision.half import HALF_MAX
from posekit.export.precision.overflow import overflow_probe
from posekit.export.systems import GraphSource
from posekit.runtime.errors import PrecisionError, SpecError

torch.set_num_threads(1)


class Loud(nn.Module):
    """gain: of the second layer.  between: a function on what it gives."""

    def __init__(self, gain: float = 1.0, between: str = "relu") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)
        self.between = between
        with torch.no_grad():
            self.second.weight *= gain

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x))
        if self.between == "square":
            x = x * x
        elif self.between == "attention":
            places = x.flatten(2).transpose(1, 2)
            x = F.scaled_dot_product_attention(places, places, places).transpose(1, 2).view_as(x)
        elif self.between == "norm":
            x = F.layer_norm(x.pow(2).float(), x.shape[1:])
        out: Tensor = self.last(x.clamp(-1, 1))
        return out


def source(network: nn.Module, trunk: tuple[str, ...] = ()) -> GraphSource:
    return embedder_graphs(network.eval(), Entrance(), 16, None, trunk)["embedder"]


def feeds(source: GraphSource, count: int = 3) -> Iterator[Arrays]:
    return (example_feed(source.inputs, {"batch": 2}, seed) for seed in range(count))


def test_a_quiet_network_has_headroom() -> None:
    quiet = source(Loud())
    report = overflow_probe(quiet, feeds(quiet))
    assert report.crops == 6
    assert list(report.largest) == ["network", "network.first", "network.second", "network.last"]
    assert report.headroom == report.largest[report.nearest] / HALF_MAX < 1e-3


def test_the_largest_value_is_the_networks_own() -> None:
    quiet, seen = source(Loud(gain=30)), []
    layer = quiet.module.get_submodule("network.second")
    handle = layer.register_forward_hook(lambda module, args, out: seen.append(float(out.abs().max())))
    with torch.inference_mode():
        for feed in feeds(quiet):
            quiet.module(torch.from_numpy(feed["crops"]))
    handle.remove()
    assert overflow_probe(quiet, feeds(quiet)).largest["network.second"] == pytest.approx(max(seen), rel=0.02)


def test_the_layer_that_overflows_is_named_with_its_value_and_the_way_out() -> None:
    loud = source(Loud(gain=1e5), ("first", "second", "last"))
    with pytest.raises(PrecisionError, match=r"\|x\| up to \d.* in 'network.second'.* on 6 crops") as caught:
        overflow_probe(loud, feeds(loud))
    assert '"-network.second"' in caught.value.remedy
    kept = source(Loud(gain=1e5), ("first", "second", "last", "-second"))
    assert "network.second" not in overflow_probe(kept, feeds(kept)).largest  # clamped before it is float16 again


@pytest.mark.parametrize("between", ["square", "attention"])
def test_values_between_layers_count(between: str) -> None:
    loud = source(Loud(gain=2e3, between=between))
    with pytest.raises(PrecisionError, match="in 'network' on 6 crops"):
        overflow_probe(loud, feeds(loud))


def test_what_the_plan_keeps_in_float32_is_not_blamed() -> None:
    large = source(Loud(gain=2e3, between="norm"))
    assert overflow_probe(large, feeds(large)).headroom < 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_network_that_gives_nan_or_infinity_is_refused(value: float) -> None:
    sick = source(Loud())

    def poison(module: nn.Module, args: object, out: Tensor) -> Tensor:
        return out + value

    sick.module.get_submodule("network.first").register_forward_hook(poison)
    with pytest.raises(PrecisionError, match="NaN or infinity in"):
        overflow_probe(sick, feeds(sick))


def test_no_crops_and_other_feeds_are_refused() -> None:
    quiet = source(Loud())
    with pytest.raises(PrecisionError, match="no crops"):
        overflow_probe(quiet, [])
    with pytest.raises(SpecError):
        overflow_probe(quiet, [{"crops": example_feed(quiet.inputs, {"batch": 1})["crops"].astype("float32")}])
