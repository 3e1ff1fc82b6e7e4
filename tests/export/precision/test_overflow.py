"""The probe finds what would overflow in float16, where it does, and blames nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn
from torch.nn import functional as F

from posekit.export.example_feed import Arrays, example_feed
from posekit.export.networks.entrance import Entrance
from posekit.export.networks.own import embedder_graphs
from posekit.export.onnx_from_network import onnx_from_network
from posekit.export.parity import network_outputs
from posekit.export.precision.half import HALF_MAX, half_source
from posekit.export.precision.half_check import HalfReport
from posekit.export.precision.overflow import LARGEST_SAFE, overflow_probe, within_half
from posekit.export.systems import GraphSource
from posekit.runtime.errors import PrecisionError, SpecError

torch.set_num_threads(1)
Array = npt.NDArray[Any]


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
    return embedder_graphs(network.eval(), Entrance(), (16, 16), None, trunk)["embedder"]


def feeds(source: GraphSource, count: int = 3) -> Iterator[Arrays]:
    return (example_feed(source.inputs, {"batch": 2}, seed) for seed in range(count))


def test_a_quiet_network_has_headroom() -> None:
    quiet = source(Loud())
    report, _ = overflow_probe(quiet, feeds(quiet))
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
    assert overflow_probe(quiet, feeds(quiet))[0].largest["network.second"] == pytest.approx(max(seen), rel=0.02)


def kept(loud: GraphSource) -> tuple[GraphSource, dict[str, float]]:
    found, report = within_half(loud, lambda: feeds(loud))
    assert report.largest.keys().isdisjoint(report.kept) or "network" in report.kept
    assert max(report.largest.values()) <= LARGEST_SAFE
    return found, report.kept


def halved(source: GraphSource) -> tuple[Array, Array]:
    """Descriptors in float16, which torch computes as such, and in float32, of other crops than were probed."""
    feed = example_feed(source.inputs, {"batch": 2}, 5)
    half, exact = (network_outputs(source, one, feed) for one in (half_source(source).module, source.module))
    return half["descriptors"], exact["descriptors"]


def written(source: GraphSource, path: Path) -> tuple[HalfReport, Array]:
    """The float16 file, and its descriptors in float16 arithmetic, which ONNX Runtime's CPU has not."""
    report = onnx_from_network(half_source(source), path, simplify=False).half
    assert report is not None
    with np.errstate(over="ignore", invalid="ignore"):  # its sigmoid computes both branches, and takes one
        found: Any = ReferenceEvaluator(str(path)).run(None, dict(example_feed(source.inputs, {"batch": 2}, 5)))
    return report, np.asarray(found[0])


def test_the_layer_that_overflows_stays_in_float32_by_itself() -> None:
    loud = source(Loud(gain=1e5), ("first", "second", "last"))
    mended, stayed = kept(loud)
    assert list(stayed) == ["network.second"]
    assert mended.trunk == ("network.first", "network.last")
    assert loud.trunk == ("network.first", "network.second", "network.last")
    np.testing.assert_allclose(*halved(mended), atol=5e-3)


@pytest.mark.parametrize("between", ["square", "attention"])
def test_what_a_forward_does_between_its_layers_stays_without_them(between: str) -> None:
    loud = source(Loud(gain=2e3, between=between))
    mended, stayed = kept(loud)
    assert "network" in stayed
    assert "network.first" in mended.trunk
    np.testing.assert_allclose(*halved(mended), atol=2e-2)


def test_weights_beyond_float16_stay_in_float32() -> None:
    network = Loud()
    with torch.no_grad():
        network.second.weight[0, 0] = 1e6
        network.second.bias = None
    mended, stayed = kept(source(network))
    assert stayed["network.second"] >= 1e6
    assert mended.trunk == ("network", "-network.second")
    np.testing.assert_allclose(*halved(mended), atol=5e-3)


class Inverted(nn.Module):
    """An inverted bottleneck as mobile networks have it: depthwise, expanded, depthwise, projected, added to its input.

    excite: with squeeze-and-excite behind the second depthwise convolution. growth: of its weights; 1 keeps the scale.
    """

    def __init__(self, width: int, growth: float, excite: bool) -> None:
        super().__init__()
        inner = 4 * width
        self.start = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.expand, self.norm = nn.Conv2d(width, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.middle = nn.Conv2d(inner, inner, 5, padding=2, groups=inner)
        self.squeeze, self.excite = nn.Conv2d(inner, width, 1), nn.Conv2d(width, inner, 1)
        self.project = nn.Conv2d(inner, width, 1)
        self.act: nn.Module = nn.SiLU() if excite else nn.ReLU()
        self.excites = excite
        with torch.no_grad():
            self.project.weight.mul_(growth)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.norm(self.expand(self.start(x))))
        y = self.act(self.middle(y))
        if self.excites:
            y = y * torch.sigmoid(self.excite(self.act(self.squeeze(y.mean((2, 3), keepdim=True)))))
        out: Tensor = x + self.project(y)
        return out


class Mobile(nn.Module):
    """A stem, blocks whose scale grows without a norm to hold it, and a head that normalises."""

    def __init__(self, blocks: int, growth: float, excite: bool) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(*(Inverted(8, growth, excite) for _ in range(blocks)))
        self.head = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.head(self.blocks(self.stem(x))), dim=1)


@pytest.mark.parametrize("excite", [False, True])
def test_a_deep_network_keeps_the_part_that_grows_beyond_and_halves_the_rest(excite: bool) -> None:
    mobile = source(Mobile(5, 1500.0, excite))
    assert overflow_probe(mobile, feeds(mobile))[0].headroom > 1
    mended, stayed = kept(mobile)
    assert any(name.startswith("network.blocks.4") for name in stayed)
    assert not any(name.startswith(("network.stem", "network.blocks.0")) for name in stayed)
    half, exact = halved(mended)
    assert np.isfinite(half).all()
    assert np.min(np.sum(half * exact, axis=2)) > 0.999  # unit descriptors


@pytest.mark.slow  # half a minute of torch's exporter and of NumPy
def test_the_file_of_such_a_network_is_float16_in_the_rest(tmp_path: Path) -> None:
    mended, _ = kept(source(Mobile(5, 1500.0, excite=True)))
    report, half = written(mended, tmp_path / "half.onnx")
    assert report.half_ops >= 8
    assert np.min(np.sum(half * halved(mended)[1], axis=2)) > 0.999


def test_where_nothing_is_left_fp16_is_refused_with_the_reason() -> None:
    network = nn.Conv2d(3, 4, 4, 4)
    with torch.no_grad():
        network.weight *= 1e7
    with pytest.raises(PrecisionError, match=r"in 'network', and nothing is left"):
        kept(source(network))


def test_a_module_whose_members_are_used_by_their_weights_stays_as_a_whole() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.patches, self.attention = nn.Conv2d(3, 8, 4, 4), nn.MultiheadAttention(8, 2, batch_first=True)
            with torch.no_grad():
                torch.nn.init.constant_(self.attention.in_proj_bias, 1e5)

        def forward(self, x: Tensor) -> Tensor:
            places = self.patches(x).flatten(2).transpose(1, 2)
            out: Tensor = self.attention(places, places, places, need_weights=False)[0]
            return out

    mended, stayed = kept(source(Attends()))
    assert "network.attention" in stayed
    assert "network.patches" in mended.trunk or "network" in mended.trunk
    half_source(mended)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(["", "grow", "act", "norm"]), min_size=1, max_size=5), st.integers(0, 100))
def test_what_is_left_never_overflows(kinds: list[str], seed: int) -> None:
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Conv2d(3, 4, 4, 4)]
    for kind in kinds:
        layer = nn.Conv2d(4, 4, 1)
        with torch.no_grad():
            layer.weight.mul_(3e4 if kind == "grow" else 1.0)
        layers.append(nn.ReLU() if kind == "act" else nn.GroupNorm(2, 4) if kind == "norm" else layer)
    found = source(nn.Sequential(nn.Sequential(*layers), nn.Conv2d(4, 4, 1)))
    with suppress(PrecisionError):  # nothing left
        mended, _ = kept(found)
        feed = example_feed(found.inputs, {"batch": 2})
        half = network_outputs(mended, half_source(mended).module, feed)["descriptors"]
        assert np.isfinite(half).all()


def test_what_the_plan_keeps_in_float32_is_not_blamed() -> None:
    large = source(Loud(gain=2e3, between="norm"))
    assert overflow_probe(large, feeds(large))[0].headroom < 1


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
