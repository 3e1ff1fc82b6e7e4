"""Export: the file is one valid, silent, reproducible graph with the declared tensors, or there is no file."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxsim
import pytest
import torch
from onnx import ModelProto, TensorProto, helper
from torch import Tensor, nn

from posekit.export.example_feed import MAKERS, example_feed
from posekit.export.onnx_from_network import ExportedGraph, onnx_from_network
from posekit.export.onnx_graph import OPSET, check_graph, specs_from_graph, strip_origin
from posekit.export.onnx_simplify import simplified
from posekit.export.systems import GraphSource
from posekit.runtime.backends.ort import OrtSession
from posekit.runtime.errors import ExportError
from posekit.runtime.tensor import TensorSpec, check_feed

CROPS = TensorSpec("crops", "uint8", ("batch", 16, 16, 3))
K = TensorSpec("K", "float32", ("batch", 3, 3))
torch.set_num_threads(1)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.cls = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, crops: Tensor, K: Tensor) -> tuple[Tensor, Tensor]:
        x = self.norm(self.conv(crops.permute(0, 3, 1, 2).float() / 255)).relu()
        return self.cls(x.mean(dim=(2, 3))), x.flatten(2).transpose(1, 2) + K.sum(dim=(1, 2))[:, None, None]


def source(outputs: tuple[str, ...] = ("logits", "places")) -> GraphSource:
    torch.manual_seed(1)
    return GraphSource("pose", Net(), (CROPS, K), outputs)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("graphs") / "net.onnx"


@pytest.fixture(scope="module")
def exported(path: Path) -> ExportedGraph:
    return onnx_from_network(source(), path)


def test_the_graph_is_what_was_declared(exported: ExportedGraph, path: Path) -> None:
    model = onnx.load(path)
    assert exported.inputs == (CROPS, K)
    assert exported.outputs == (
        TensorSpec("logits", "float32", ("batch", 4)),
        TensorSpec("places", "float32", ("batch", 64, 8)),
    )
    assert specs_from_graph(model) == (exported.inputs, exported.outputs)
    assert exported.nodes == len(model.graph.node)
    assert exported.size == path.stat().st_size
    assert [entry.version for entry in model.opset_import] == [OPSET]
    assert list(path.parent.iterdir()) == [path]
    session = OrtSession(path, threads=1)
    assert session.inputs == exported.inputs
    for batch in (1, 5):
        out = session.run(example_feed(exported.inputs, {"batch": batch}))
        assert out["places"].shape == (batch, 64, 8)


def test_parity_is_measured_for_every_output(exported: ExportedGraph) -> None:
    assert [figure.output for figure in exported.parity.figures] == ["logits", "places"]
    assert exported.parity.batches == (1, 3)
    assert 0 < exported.parity.worst < 1e-5


def test_nothing_of_the_builders_machine_is_in_the_file(exported: ExportedGraph, path: Path) -> None:
    content = path.read_bytes()
    for place in (torch.__file__, __file__, str(Path.cwd())):
        assert str(Path(place).parent).encode() not in content
    model = onnx.load(path)
    assert not any(part.metadata_props for part in (model, model.graph, *model.graph.node, *model.graph.value_info))


def test_equal_networks_give_equal_bytes_and_silence(
    exported: ExportedGraph,
    path: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        again = onnx_from_network(source(), tmp_path / "again.onnx")
    assert again.sha256 == exported.sha256
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()
    assert capfd.readouterr() == ("", "")
    assert not caught
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert logging.root.manager.disable == logging.NOTSET


def refused(source: GraphSource, tmp_path: Path) -> str:
    with pytest.raises(ExportError) as caught:
        onnx_from_network(source, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())
    return str(caught.value)


@pytest.mark.parametrize("outputs", [("cls.weight", "places"), ("K", "places"), ("logits", "logits")])
def test_an_output_named_like_something_else_is_refused(outputs: tuple[str, ...], tmp_path: Path) -> None:
    assert outputs[0] in refused(source(outputs), tmp_path)


class Branching(Net):
    def forward(self, crops: Tensor, K: Tensor) -> tuple[Tensor, Tensor]:
        if crops.float().mean() > 100:
            raise RuntimeError("too bright")
        return super().forward(crops, K)


class OneByOne(Net):
    def forward(self, crops: Tensor, K: Tensor) -> tuple[Tensor, Tensor]:
        pairs = [super(OneByOne, self).forward(crops[i : i + 1], K[i : i + 1]) for i in range(len(crops))]
        return torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs])


@pytest.mark.parametrize("kind", [Branching, OneByOne])
def test_a_network_that_depends_on_values_or_on_the_batch_is_refused(kind: type[Net], tmp_path: Path) -> None:
    assert "graph" in refused(GraphSource("pose", kind(), (CROPS, K), ("logits", "places")), tmp_path)


def test_an_input_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    odd = GraphSource("pose", Net(), (CROPS, TensorSpec("K", "float32", ("rows", 3, 3))), ("logits", "places"))
    assert "dynamic axes among batch" in refused(odd, tmp_path)
    odd = GraphSource("pose", Net(), (CROPS, TensorSpec("text", "bool", ("batch",))), ("logits", "places"))
    assert "bool" in refused(odd, tmp_path)


def hand_made(
    nodes: list[onnx.NodeProto] | None = None,
    output: tuple[Any, ...] = ("batch", 4),
    opset: int = OPSET,
    domains: tuple[str, ...] = ("",),
) -> ModelProto:
    """y = Relu(x), x (batch, 4), unless said otherwise."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, output)
    weights = [
        helper.make_tensor("at", TensorProto.INT64, [1, 1], [0]),
        helper.make_tensor("update", TensorProto.FLOAT, [1, 4], [1.0] * 4),
        helper.make_tensor("two", TensorProto.FLOAT, [1], [2.0]),
    ]
    graph = helper.make_graph(nodes or [helper.make_node("Relu", ["x"], ["y"])], "hand", [x], [y], weights)
    opsets = [helper.make_opsetid(domain, opset) for domain in domains]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


X = (TensorSpec("x", "float32", ("batch", 4)),)


def external() -> ModelProto:
    model = hand_made()
    model.graph.initializer[2].data_location = TensorProto.EXTERNAL
    return model


BAD_GRAPHS: dict[str, tuple[ModelProto, str]] = {
    "other opset": (hand_made(opset=18), "opset 19 alone"),
    "custom domain": (hand_made(domains=("", "com.microsoft")), "opset 19 alone"),
    "fixed batch": (hand_made(output=(1, 4)), "any batch size"),
    "no such tensor": (hand_made([helper.make_node("Relu", ["z"], ["y"])]), "a valid ONNX graph"),
    "one name twice": (
        hand_made([helper.make_node("Relu", ["x"], ["two"]), helper.make_node("Relu", ["two"], ["y"])]),
        "a valid ONNX graph",
    ),
    "value-dependent shape": (
        hand_made(
            [
                helper.make_node("NonZero", ["x"], ["n"]),
                helper.make_node("Cast", ["n"], ["f"], to=TensorProto.FLOAT),
                helper.make_node("ReduceSum", ["f"], ["s"], keepdims=0),
                helper.make_node("Mul", ["x", "s"], ["y"]),
            ]
        ),
        "operator NonZero",
    ),
    "scatter that adds": (
        hand_made([helper.make_node("ScatterND", ["x", "at", "update"], ["y"], reduction="add")]),
        "ScatterND with a reduction",
    ),
    "random numbers": (
        hand_made([helper.make_node("RandomNormalLike", ["x"], ["r"]), helper.make_node("Mul", ["x", "r"], ["y"])]),
        "RandomNormalLike",
    ),
    "weights elsewhere": (external(), "two"),
}


@pytest.mark.parametrize(("model", "named"), BAD_GRAPHS.values(), ids=BAD_GRAPHS.keys())
def test_a_graph_that_breaks_the_contract_is_refused(model: ModelProto, named: str) -> None:
    with pytest.raises(ExportError) as caught:
        check_graph(model, X, ("y",))
    assert named in str(caught.value)


def test_other_inputs_or_outputs_are_refused() -> None:
    check_graph(hand_made(), X, ("y",))
    with pytest.raises(ExportError, match=r"inputs x float32\(batch, 4\)"):
        check_graph(hand_made(), (TensorSpec("x", "uint8", ("batch", 4)),), ("y",))
    with pytest.raises(ExportError, match="outputs"):
        check_graph(hand_made(), X, ("z",))


def test_origin_is_stripped_everywhere() -> None:
    model = hand_made()
    for part in (model, model.graph, model.graph.node[0], model.graph.input[0], model.graph.initializer[0]):
        part.metadata_props.add(key="trace", value="/home/me/net.py")
        part.doc_string = "/home/me"
    strip_origin(model)
    assert b"/home/me" not in model.SerializeToString()


def foldable() -> ModelProto:
    """y = x * (two * two): one node can go."""
    return hand_made([helper.make_node("Mul", ["two", "two"], ["four"]), helper.make_node("Mul", ["x", "four"], ["y"])])


def check(model: ModelProto) -> None:
    strip_origin(model)
    check_graph(model, X, ("y",))


def test_a_simpler_equal_graph_is_taken() -> None:
    simpler, how = simplified(foldable(), X, check)
    assert len(simpler.graph.node) == 1
    assert how == "onnxsim: 2 to 1 nodes"
    same, how = simplified(hand_made(), X, check)
    assert same == hand_made()
    assert "nothing to remove" in how


def _raises(*_: object, **__: object) -> Any:
    raise RuntimeError("segmentation")


@pytest.mark.parametrize(
    ("simplify", "named"),
    [
        (lambda model, **_: (hand_made(), True), "would differ by"),
        (lambda model, **_: (hand_made(opset=18), True), "opset"),
        (_raises, "segmentation"),
    ],
    ids=["other numbers", "other opset", "crash"],
)
def test_a_bad_simplification_is_not_taken_and_said(simplify: Any, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxsim, "simplify", simplify)
    kept, how = simplified(foldable(), X, check)
    assert kept == foldable()
    assert how.startswith("not simplified")
    assert named in how


def test_without_onnxsim_the_graph_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxsim", None)
    assert simplified(foldable(), X, check) == (foldable(), "not simplified: onnxsim is not installed")


SPECS = (
    CROPS,
    K,
    TensorSpec("box", "float32", ("batch", 4)),
    TensorSpec("warp", "float32", ("batch", 2, 3)),
    TensorSpec("image_wh", "float32", ("batch", 2)),
    TensorSpec("label", "int64", ("batch",)),
    TensorSpec("bbox_m", "float32", ("batch", 2, 3)),
    TensorSpec("descriptors", "float32", ("batch", 4, 8)),
    TensorSpec("templates", "float32", (4, 8, "views")),
    TensorSpec("weights", "float32", ("views",)),
    TensorSpec("projection", "float32", (32, 5)),
    TensorSpec("sketches", "float32", (5, "views")),
    TensorSpec("image", "uint8", (1, 24, 32, 3)),
    TensorSpec("other", "float32", ("batch", 5)),
)


def test_example_feeds_fit_their_specs_and_are_plausible() -> None:
    assert {spec.name for spec in SPECS} >= set(MAKERS)
    feed = example_feed(SPECS, {"batch": 3, "views": 7}, seed=4)
    check_feed(feed, SPECS)
    again = example_feed(SPECS, {"batch": 3, "views": 7}, seed=4)
    assert all(np.array_equal(feed[name], again[name]) for name in feed)
    np.testing.assert_allclose(np.linalg.norm(feed["templates"], axis=1), 1, rtol=1e-6)
    assert ((feed["weights"] >= 1 / 4) & (feed["weights"] <= 1)).all()
    np.testing.assert_allclose(feed["projection"].T @ feed["projection"], np.eye(5), atol=1e-6)
    centres = (feed["box"][:, :2] + feed["box"][:, 2:]) / 2
    in_crop = np.einsum("bij,bj->bi", feed["warp"][:, :, :2], centres) + feed["warp"][:, :, 2]
    np.testing.assert_allclose(in_crop, 7.5, atol=1e-4)  # the box's centre is the crop's
    assert (feed["bbox_m"][:, 0] < feed["bbox_m"][:, 1]).all()
