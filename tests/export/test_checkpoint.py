"""Checkpoints: read without running anything, matched strictly; and networks from the user's own module."""

from __future__ import annotations

import os
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from posekit.export.checkpoint import load_checkpoint, load_state_dict, network_from_factory, sha256_of
from posekit.runtime.errors import CheckpointError, RecipeError

State = dict[str, Tensor]


class Net(nn.Sequential):
    def __init__(self, channels: int = 4) -> None:
        super().__init__(nn.Conv2d(3, channels, 1), nn.BatchNorm2d(channels))


@pytest.fixture
def state() -> State:
    torch.manual_seed(3)
    return dict(Net().state_dict())


def saved(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def assert_equal(got: State, expected: State) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(got[name], tensor)


WRAPPED: dict[str, Callable[[State], Any]] = {
    "plain": lambda s: s,
    "ordered": lambda s: OrderedDict(s),
    "state_dict": lambda s: {"state_dict": s, "epoch": 3, "lr": 0.1},
    "model_state_dict": lambda s: {"model_state_dict": s, "optimizer": {"step": 1}},
    "model": lambda s: {"model": s},
    "DataParallel": lambda s: {"model": {f"module.{name}": t for name, t in s.items()}},
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED.keys())
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt"])
def test_torch_files_in_the_usual_wrappings(
    wrap: Callable[[State], Any], suffix: str, state: State, tmp_path: Path
) -> None:
    assert_equal(load_state_dict(saved(wrap(state), tmp_path / f"net{suffix}")), state)


def test_safetensors(state: State, tmp_path: Path) -> None:
    save_file(state, tmp_path / "net.safetensors")
    assert_equal(load_state_dict(tmp_path / "net.safetensors"), state)


def test_the_recipe_can_say_where_the_weights_are(state: State, tmp_path: Path) -> None:
    content = {"ema": {"weights": {f"backbone.{name}": t for name, t in state.items()} | {"head.w": torch.ones(1)}}}
    path = saved(content, tmp_path / "net.pt")
    assert_equal(load_state_dict(path, key="ema.weights", prefix="backbone."), state)
    for key, prefix, named in (("ema", None, "ema"), ("gone", None, "gone"), ("ema.weights", "neck.", "neck")):
        with pytest.raises(CheckpointError, match=named):
            load_state_dict(path, key=key, prefix=prefix)


def test_two_candidates_are_not_guessed_between(state: State, tmp_path: Path) -> None:
    path = saved({"model": state, "state_dict": state}, tmp_path / "net.pt")
    with pytest.raises(CheckpointError, match="checkpoint_key"):
        load_state_dict(path)
    assert_equal(load_state_dict(path, key="model"), state)


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("content", [Malicious(), {"state_dict": Malicious()}, Net()], ids=["code", "nested", "module"])
def test_a_file_with_code_is_refused_and_not_run(content: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = saved(content, tmp_path / "net.pt")
    with pytest.raises(CheckpointError, match=r"(?s)runs code.*safetensors\.torch\.save_file"):
        load_state_dict(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["net.pt", "net.safetensors", "net.onnx", "gone.pt"])
def test_an_unreadable_file_is_a_checkpoint_error(name: str, tmp_path: Path) -> None:
    (tmp_path / "net.pt").write_bytes(b"PK\3\4 no checkpoint")
    (tmp_path / "net.safetensors").write_bytes(b"\xff" * 20)
    (tmp_path / "net.onnx").touch()
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        load_state_dict(tmp_path / name)


@pytest.mark.parametrize("content", [{}, [torch.ones(1)], {"model": {"w": 3}}, {"w": torch.ones(1), "note": "x"}])
def test_a_file_without_named_tensors_is_refused(content: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="named tensors"):
        load_state_dict(saved(content, tmp_path / "net.pt"))


def test_truncated_files_are_checkpoint_errors(state: State, tmp_path: Path) -> None:
    whole = saved(state, tmp_path / "net.pt").read_bytes()
    for length in range(0, len(whole), 97):
        (tmp_path / "cut.pt").write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            load_state_dict(tmp_path / "cut.pt")


def test_weights_arrive_and_the_file_is_identified(state: State, tmp_path: Path) -> None:
    path = saved(state, tmp_path / "net.pt")
    network = Net()
    assert load_checkpoint(network, path) == sha256_of(path)
    assert_equal(network.state_dict(), state)


def test_everything_that_does_not_fit_is_listed(state: State, tmp_path: Path) -> None:
    state["1.running_mean"][0] = torch.nan
    state["0.weight"] = torch.ones(4, 3, 3, 3)
    del state["0.bias"]
    state |= {f"head.{i}": torch.ones(1) for i in range(12)}
    network = Net()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(network, saved(state, tmp_path / "net.pt"))
    message = str(caught.value)
    for part in (
        "1 missing: 0.bias",
        "12 unexpected: head.0",
        "…",
        "0.weight (4, 3, 3, 3), not (4, 3, 1, 1)",
        "1 NaN or infinite: 1.running_mean",
        "exactly the 7 tensors of Net",
    ):
        assert part in message
    assert_equal(network.state_dict(), before)


FACTORIES = """
from torch import nn
def make(width=2): return nn.Linear(width, 1)
def fail(): raise KeyError("no weights")
def text(): return "network"
number = 3
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    package = tmp_path / "ownnets"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "nets.py").write_text(FACTORIES)
    (package / "broken.py").write_text("import no_such_package_at_all")
    return tmp_path


@pytest.fixture(autouse=True)
def forget_modules() -> Any:
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.split(".")[0] == "ownnets":
            del sys.modules[name]


def test_a_network_from_the_users_module(folder: Path) -> None:
    path = list(sys.path)
    network = network_from_factory("ownnets.nets:make", {"width": 5}, folder)
    assert isinstance(network, nn.Linear)
    assert network.in_features == 5
    assert sys.path == path


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("ownnets.nets", {}, "package.module:function"),
        ("../nets:make", {}, "package.module:function"),
        ("ownnets.gone:make", {}, "gone"),
        ("ownnets.broken:make", {}, "no_such_package_at_all"),
        ("ownnets.nets:gone", {}, "gone"),
        ("ownnets.nets:number", {}, "number"),
        ("ownnets.nets:make", {"depth": 1}, "depth"),
        ("ownnets.nets:fail", {}, "no weights"),
        ("ownnets.nets:text", {}, "str"),
    ],
)
def test_a_factory_that_fails_is_named(name: str, options: dict[str, Any], named: str, folder: Path) -> None:
    with pytest.raises(RecipeError, match=named):
        network_from_factory(name, options, folder)


def test_a_module_of_the_same_name_elsewhere_is_not_taken(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    network_from_factory("ownnets.nets:make", {}, folder)
    other = tmp_path_factory.mktemp("other")
    (other / "ownnets").mkdir()
    (other / "ownnets" / "__init__.py").touch()
    (other / "ownnets" / "nets.py").write_text(FACTORIES)
    with pytest.raises(RecipeError, match="imported before"):
        network_from_factory("ownnets.nets:make", {}, other)
