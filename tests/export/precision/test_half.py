"""A float16 trunk: authored in torch, exported, checked. Whatever the network, what is sensitive stays float32."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.nn import functional as F

from posekit.export.example_feed import example_feed
from posekit.export.networks.entrance import Entrance
from posekit.export.networks.own import embedder_graphs
from posekit.export.onnx_from_network import ExportedGraph, onnx_from_network
from posekit.export.parity import check_parity, network_outputs
from posekit.export.precision.half import HalfNetwork, half_source
from posekit.export.precision.half_check import check_half
from posekit.export.precision.half_graph import SENSITIVE, element_types, sensitive_halves, sensitive_in_float32
from posekit.export.systems import GraphSource
from posekit.runtime.backends.ort import OrtSession
from posekit.runtime.errors import ParityError, PrecisionError
from posekit.runtime.tensor import TensorSpec

torch.set_num_threads(1)
CROPS = TensorSpec("crops", "uint8", ("batch", 16, 16, 3))


class Everything(nn.Module):
    """Convolution with a norm to fold and one that cannot be, norms by function and by module, attention, exp in place."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.BatchNorm2d(3)
        self.conv, self.bn = nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16)
        self.norm, self.group = nn.LayerNorm(16), nn.GroupNorm(4, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.mix = nn.Linear(16, 16)
        self.place = nn.Parameter(torch.randn(1, 64, 16))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.group(self.bn(self.conv(self.before(x))))).flatten(2).transpose(1, 2) + self.place
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = F.layer_norm(x, (16,))
        x = x + F.scaled_dot_product_attention(*(x[:, None],) * 3)[:, 0]
        weights = self.mix(x).exp_()
        weights = weights / weights.sum(dim=1, keepdim=True)
        x = F.softmax(x, dim=2) * weights + (x - x.mean(dim=2, keepdim=True)) / x.std(dim=2, keepdim=True)
        return F.normalize(self.mix(x), dim=2)  # epsilon 1e-12: zero in float16


def everything() -> Everything:
    torch.manual_seed(2)
    network = Everything().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_var is not None
            assert module.running_mean is not None
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.running_mean)
    return network


def embedder(network: nn.Module, trunk: tuple[str, ...] = ()) -> GraphSource:
    return embedder_graphs(network.eval(), Entrance(), (16, 16), None, trunk)["embedder"]


@pytest.fixture(scope="module")
def source() -> GraphSource:
    return embedder(everything())


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("half") / "half.onnx"


@pytest.fixture(scope="module")
def exported(source: GraphSource, file: Path) -> ExportedGraph:
    return onnx_from_network(half_source(source), file)


@pytest.fixture(scope="module")
def model(exported: ExportedGraph, file: Path) -> onnx.ModelProto:
    return onnx.load(file)


def test_weights_are_float16_and_nothing_sensitive_is(
    source: GraphSource, exported: ExportedGraph, model: onnx.ModelProto
) -> None:
    assert exported.half == check_half(model, source)
    assert exported.half is not None
    assert exported.half.trunk == source.trunk == ("network",)
    assert exported.half.half_ops == 7  # conv, query, key, value and output of attention, mix twice
    assert exported.half.float32_ops == ()
    types = element_types(model)
    inside = {n.op_type: types[n.input[0]] for n in model.graph.node if n.op_type in SENSITIVE}
    assert {"Softmax", "LayerNormalization", "InstanceNormalization", "BatchNormalization", "Exp"} <= set(inside)
    assert set(inside.values()) == {TensorProto.FLOAT}
    half = [n.op_type for n in model.graph.node if types[n.output[0]] == TensorProto.FLOAT16]
    assert (
        half.count("MatMul") + half.count("Gemm") == 6 + 2
    )  # an attention's own products; the other's inputs are float32


def test_inputs_and_outputs_keep_their_types(source: GraphSource, exported: ExportedGraph, file: Path) -> None:
    assert exported.inputs == source.inputs
    assert [spec.dtype for spec in exported.outputs] == ["float32"]
    feed = example_feed(source.inputs, {"batch": 4}, seed=5)
    session = OrtSession(file, threads=1)
    descriptors, wanted = session.run(feed)["descriptors"], network_outputs(source, source.module, feed)["descriptors"]
    assert (descriptors.astype(np.float64) * wanted).sum(axis=2).min() > 0.999


def test_a_norm_is_folded_before_rounding_or_computed_in_float32(source: GraphSource) -> None:
    half = half_source(source).module
    assert isinstance(half, HalfNetwork)
    network, original = half.network.get_submodule("network"), source.module.get_submodule("network")
    assert isinstance(network, Everything)
    assert isinstance(original, Everything)
    assert isinstance(network.get_submodule("bn"), nn.Identity)
    assert network.before.weight.dtype == network.norm.weight.dtype == torch.float32
    assert original.bn.running_var is not None
    scale = original.bn.weight / torch.sqrt(original.bn.running_var + original.bn.eps)
    assert torch.equal(network.conv.weight, (original.conv.weight * scale.view(-1, 1, 1, 1)).half())


def test_the_source_is_left_as_it_was(source: GraphSource) -> None:
    before = {name: tensor.clone() for name, tensor in source.module.state_dict().items()}
    half_source(source)
    after = source.module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in source.module.modules())


def test_a_zero_vector_has_no_direction_and_is_no_nan() -> None:
    """F.normalize divides by at least 1e-12, which is zero in float16."""

    class Unit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 4, 4, bias=False)
            nn.init.zeros_(self.conv.weight)

        def forward(self, x: Tensor) -> Tensor:
            return F.normalize(self.conv(x))

    source = embedder(Unit())
    feed = example_feed(source.inputs, {"batch": 1})
    assert not network_outputs(half := half_source(source), half.module, feed)["descriptors"].any()


class Two(nn.Module):
    """A trunk, geometry in float32 after it, a last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU()), nn.Conv2d(8, 4, 1)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.trunk(x) * 1000.0 + 1.0)
        return out


def test_what_is_kept_out_stays_float32(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for trunk in (("trunk",), ("trunk", "head", "-head")):
        graph = onnx_from_network(half_source(embedder(Two(), trunk)), tmp_path / "two.onnx", simplify=False)
        assert graph.half is not None
        assert graph.half.float32_ops == ("network.head/Conv",)
        assert graph.half.half_ops == 1
        assert graph.half.initializer_bytes["float16"] == 2 * (3 * 8 * 16 + 8)


def test_adjacent_parts_pass_float16_on(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.Conv2d(8, 4, 1))
    half = half_source(embedder(network, ("0", "1", "2")))
    onnx_from_network(half, tmp_path / "chain.onnx", simplify=False)
    ops = [node.op_type for node in onnx.load(tmp_path / "chain.onnx").graph.node]
    assert ops[ops.index("Conv") :][:3] == ["Conv", "Relu", "Conv"]
    assert ops.count("Cast") == 3  # from uint8, into the trunk, out of it


class Unhalved(nn.Module):
    """Casts its weight itself: float32 products whatever the trunk is."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.conv = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 4, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.fine(x).float(), self.conv.weight.float())


def test_a_silent_float32_trunk_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PrecisionError, match=r"silent float32 trunk: network/Conv"):
        onnx_from_network(half_source(embedder(Unhalved())), tmp_path / "silent.onnx", simplify=False)
    assert not list(tmp_path.iterdir())


def test_a_float32_graph_is_no_float16_graph(source: GraphSource, tmp_path: Path) -> None:
    graph = onnx_from_network(embedder(Two(), ("trunk",)), tmp_path / "full.onnx", simplify=False)
    assert graph.half is None
    with pytest.raises(PrecisionError, match="silent float32 trunk"):
        check_half(onnx.load(tmp_path / "full.onnx"), embedder(Two(), ("trunk",)))


def test_float16_outside_the_trunk_is_refused(source: GraphSource, model: onnx.ModelProto) -> None:
    strayed = copy.deepcopy(model)
    node = next(n for n in strayed.graph.node if n.op_type == "Conv")
    node.name = "entrance/Conv"
    with pytest.raises(PrecisionError, match="entrance/Conv in float16"):
        check_half(strayed, source)


def test_a_wrong_float16_graph_is_caught_and_rounding_is_not(
    source: GraphSource, exported: ExportedGraph, file: Path
) -> None:
    for figure in exported.parity.figures:
        assert 1e-4 < figure.noise < figure.tolerance < 0.1
        assert figure.max_rel <= figure.tolerance / 2
    wrong = half_source(source)
    with torch.no_grad():
        wrong.module.get_parameter("network.network.mix.bias")[0] += 0.5
    with pytest.raises(ParityError, match="descriptors"):
        check_parity(wrong, OrtSession(file, threads=1))


@pytest.mark.parametrize(
    ("trunk", "named"),
    [
        ((), "none"),
        (("network.bakbone",), "'network.bakbone', expected submodules of the network (entrance, network, ...)"),
        (("network.unused",), "'network.unused', which forward never calls"),
        (("network.trunk.1",), "without weights"),
        (("network.trunk", "-network.head"), "-network.head"),
        (("-network.trunk",), "none"),
    ],
)
def test_a_trunk_that_cannot_be_had_is_refused(trunk: tuple[str, ...], named: str) -> None:
    with pytest.raises(PrecisionError) as caught:
        half_source(replace(embedder(Two(), ("trunk",)), trunk=trunk))
    assert named in str(caught.value)
    assert caught.value.remedy


def test_weights_beyond_float16_are_named() -> None:
    network = Two()
    with torch.no_grad():
        network.head.weight[0, 0] = 7e4
    with pytest.raises(PrecisionError, match=r"\|network\.head\.weight\| up to 7e\+04.*\"-network\.head\""):
        half_source(embedder(network, ("trunk", "head")))


class Stubborn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if x.dtype != torch.float32:
            raise TypeError("float32 only")
        return x


def test_a_network_that_fails_in_float16_is_refused() -> None:
    with pytest.raises(PrecisionError, match="TypeError: float32 only"):
        half_source(embedder(Stubborn()))


def chain(*operators: str) -> onnx.ModelProto:
    """x -> Cast to float16 -> operators -> Cast to float32, named as those of a trunk."""
    names = ["x", *(f"t{i}" for i in range(len(operators) + 1)), "y"]
    nodes = [
        helper.make_node(op, [a], [b], name=f"net/{op}_{b}")
        for op, a, b in zip(("Cast", *operators, "Cast"), names[:-1], names[1:], strict=True)
    ]
    for node, to in ((nodes[0], TensorProto.FLOAT16), (nodes[-1], TensorProto.FLOAT)):
        node.attribute.append(helper.make_attribute("to", to))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in ("x", "y"))
    return helper.make_model(
        helper.make_graph(nodes, "g", [x], [y]), opset_imports=[helper.make_opsetid("", 19)], ir_version=10
    )


@pytest.mark.parametrize("operator", ["Exp", "Softmax", "Sqrt", "Softplus", "LogSoftmax"])
def test_sensitive_operators_are_wrapped_and_neighbours_stay_in_float32(operator: str) -> None:
    model = chain("Relu", operator, "Exp", "Neg")
    assert len(list(sensitive_halves(model, element_types(model)))) == 2
    assert sensitive_in_float32(model) == 2
    onnx.checker.check_model(model, full_check=True)
    assert not list(sensitive_halves(model, element_types(model)))
    assert [n.op_type for n in model.graph.node] == ["Cast", "Relu", "Cast", operator, "Exp", "Cast", "Neg", "Cast"]
    assert sensitive_in_float32(model) == 0
    assert all(n.name.startswith("net/") for n in model.graph.node)


def test_a_graph_without_float16_is_left_alone() -> None:
    model = chain("Exp")
    for node in model.graph.node:
        if node.op_type == "Cast":
            node.attribute[0].i = TensorProto.FLOAT
    before = model.SerializeToString()
    assert sensitive_in_float32(model) == 0
    assert model.SerializeToString() == before


def test_overflow_between_wrapped_operators_does_not_happen() -> None:
    """exp(12) is beyond float16; its logarithm is not."""
    model = chain("Exp", "Log")
    sensitive_in_float32(model)
    x = np.full((1, 4), 12.0, np.float32)
    y = OrtSession(model.SerializeToString(), threads=1).run({"x": x})["y"].astype(np.float64)
    np.testing.assert_allclose(y, 12.0, rtol=1e-3)
