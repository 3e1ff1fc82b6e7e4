"""A crop's answer is its own: networks and graphs that mix the crops of one batch are refused, and told apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from posekit.export.onnx_from_network import onnx_from_network
from posekit.export.parity import network_outputs
from posekit.export.row_parity import checked_rows
from posekit.export.systems import GraphSource
from posekit.runtime.errors import ExportError, ParityError, PosekitError
from posekit.runtime.tensor import Feed, TensorSpec

torch.set_num_threads(1)
CROPS = (TensorSpec("crops", "uint8", ("batch", 16, 16, 3)),)
Mix = Callable[[Tensor], Tensor]


class Net(nn.Module):
    """Two convolutions with something between them."""

    def __init__(self, mix: Mix | nn.Module) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.first, self.mix, self.last = nn.Conv2d(3, 8, 3, 2, 1), mix, nn.Conv2d(8, 4, 3, 2, 1)

    def forward(self, crops: Tensor) -> Tensor:
        x = self.first(crops.permute(0, 3, 1, 2).float() / 255)
        answer: Tensor = self.last(torch.relu(self.mix(x))).mean(dim=(2, 3))
        return answer


def source(mix: Mix | nn.Module) -> GraphSource:
    return GraphSource("embedder", Net(mix).eval(), CROPS, ("numbers",))


class Runs:
    """A session that runs a network in torch and does something to its answers."""

    inputs, outputs, backend = CROPS, (), "a backend"

    def __init__(self, of: GraphSource, then: Callable[[np.ndarray], np.ndarray]) -> None:
        self.of, self.then = of, then

    def run(self, feed: Feed) -> dict[str, Any]:
        out = network_outputs(self.of, self.of.module, dict(feed))
        return {name: self.then(array) for name, array in out.items()}

    def close(self) -> None:
        pass


APART: dict[str, Mix | nn.Module] = {
    "nothing": nn.Identity(),
    "batch norm": nn.BatchNorm2d(8),
    "instance norm": nn.InstanceNorm2d(8),
    "group norm": nn.GroupNorm(2, 8),
    "softmax over channels": lambda x: F.softmax(x, dim=1),
    "attention over places": lambda x: (
        (x.flatten(2) @ x.flatten(2).transpose(1, 2)).softmax(-1)[..., None] * x[:, :, :1]
    ),
    "dropout in eval mode": nn.Dropout(0.5),
    "reshape there and back": lambda x: x.reshape(-1, 8 * 8).mul(2).reshape(-1, 8, 8, 8),
}
MIXED: dict[str, Mix | nn.Module] = {
    "batch norm without statistics": nn.BatchNorm2d(8, track_running_stats=False),
    "softmax over the batch": lambda x: F.softmax(x, dim=0),
    "mean over the batch": lambda x: x - x.mean(dim=0, keepdim=True),
    "norm of everything": lambda x: x / x.norm(),
    "the first crop's": lambda x: x * x[:1].mean(dim=(1, 2, 3), keepdim=True),
    "running sum": lambda x: x.cumsum(dim=0),
    "sorted": lambda x: x.sort(dim=0).values,
    "batch reversed": lambda x: x.flip(0),
    "batch shifted": lambda x: torch.cat([x[1:], x[:1]]),
    "reshape that takes batch for channels": lambda x: x.transpose(0, 1).reshape(-1, 8, 8, 8),
    "attention over crops": lambda x: (
        x + ((1e-2 * x.flatten(1) @ x.flatten(1).T).softmax(-1) @ x.flatten(1)).reshape(x.shape)
    ),
}


@pytest.mark.parametrize("mix", APART.values(), ids=APART.keys())
def test_crops_that_keep_apart_pass(mix: Mix | nn.Module) -> None:
    rows = checked_rows(source(mix))
    assert rows is not None
    rows.check(Runs(rows.source, lambda array: array))


@pytest.mark.parametrize("mix", MIXED.values(), ids=MIXED.keys())
def test_crops_that_influence_each_other_are_refused(mix: Mix | nn.Module) -> None:
    with pytest.raises(ParityError, match="crops of one batch influence each other, in the network itself"):
        checked_rows(source(mix))


@pytest.mark.parametrize(
    "then",
    [lambda array: array[::-1], lambda array: np.roll(array, 1, axis=0), lambda array: array - array.mean(axis=0)],
    ids=["reversed", "shifted", "centred"],
)
def test_a_graph_that_mixes_where_the_network_does_not_is_told_apart(
    then: Callable[[np.ndarray], np.ndarray],
) -> None:
    rows = checked_rows(source(nn.Identity()))
    assert rows is not None
    with pytest.raises(ParityError, match="in the exported graph on a backend, though not in the network"):
        rows.check(Runs(rows.source, then))


def test_sessions_may_write_into_the_same_memory_again() -> None:
    rows = checked_rows(source(nn.Identity()))
    assert rows is not None
    kept = np.empty((3, 4), np.float32)

    def into_kept(array: np.ndarray) -> np.ndarray:
        kept[: len(array)] = array
        return kept[: len(array)]

    rows.check(Runs(rows.source, into_kept))


def test_noise_at_inference_is_called_so() -> None:
    with pytest.raises(ParityError, match=r"when the same crop is run again .*dropout"):
        checked_rows(source(lambda x: F.dropout(x, 0.5, training=True)))


def test_a_network_that_cannot_run_one_crop_is_refused_with_its_shapes() -> None:
    norm = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8, track_running_stats=False), nn.Upsample(8))
    with pytest.raises(ExportError, match=r"crops \(1, 16, 16, 3\): got ValueError"):
        checked_rows(source(norm))


def test_real_crops_take_the_place_of_plausible_numbers() -> None:
    crops = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3)).astype(np.uint8)
    rows = checked_rows(source(nn.Identity()), crops={"crops": crops})
    assert rows is not None
    np.testing.assert_array_equal(rows.feed["crops"], crops)


class Image(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image.float().mean(dim=(1, 2))


def test_a_graph_of_whole_images_has_no_rows() -> None:
    image = (TensorSpec("image", "uint8", (1, 16, 16, 3)),)
    assert checked_rows(GraphSource("detector", Image(), image, ("boxes",))) is None


def test_export_asks_the_network_and_every_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    check = "posekit.export.row_parity.Rows.check"
    monkeypatch.setattr(check, lambda rows, session: seen.append(session.backend))
    onnx_from_network(source(nn.BatchNorm2d(8)), tmp_path / "net.onnx")
    pytest.importorskip("openvino", reason="the second backend of a CPU")
    assert [name.split()[0] for name in seen] == ["ONNX", "OpenVINO"]


def test_nothing_is_written_for_a_network_that_mixes(tmp_path: Path) -> None:
    with pytest.raises(PosekitError, match="batch"):
        onnx_from_network(source(MIXED["batch norm without statistics"]), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())
