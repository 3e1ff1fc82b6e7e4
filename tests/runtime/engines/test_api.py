"""The names that posekit uses exist in every TensorRT it is written for, and it uses no other ones."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from toy_engines import RANGES, rtx_only, toy_graph
from trt_names import NO_OP, RTX, TABLES, TENSORRT, other_version

from posekit.export.onnx_graph import specs_from_graph
from posekit.runtime.engines import api
from posekit.runtime.engines.api import (
    API,
    FLAVOURS,
    RTX_API,
    UNLISTED,
    listening,
    missing,
    tensorrt_module,
    version_of,
)
from posekit.runtime.engines.build import build_plan
from posekit.runtime.engines.options import BuildOptions
from posekit.runtime.errors import EngineError


@pytest.mark.parametrize("version", TABLES)
@pytest.mark.parametrize("kind", API)
def test_every_version_has_every_name(version: str, kind: str) -> None:
    assert set(API[kind]) <= set(TABLES[version][kind])


@pytest.mark.parametrize("kind", RTX_API)
def test_rtx_has_its_own_names_and_no_other_version_all_of_them(kind: str) -> None:
    assert set(RTX_API[kind]) <= set(TABLES[RTX][kind])
    for version in TENSORRT:
        assert not set(RTX_API[kind]) <= set(TABLES[version].get(kind, ()))


def test_the_oldest_version_is_in_the_tables() -> None:
    assert min(version_of(SimpleNamespace(__version__=v)) for v in TENSORRT)[:2] == FLAVOURS["tensorrt"].oldest


def test_enum_integers_move_between_versions() -> None:
    """Why none is written down."""
    bits = {v: TABLES[v]["NetworkDefinitionCreationFlag"]["STRONGLY_TYPED"] for v in TABLES}
    assert len(set(bits.values())) > 1


ROOT = Path(__file__).resolve().parents[3]
USERS = [*sorted((ROOT / "runtime" / "engines").glob("*.py")), ROOT / "runtime" / "backends" / "tensorrt.py"]
OURS = {"log", "logger", "name", "dtype"}  # words that other objects have as well


@pytest.mark.parametrize("path", USERS, ids=lambda path: path.stem)
def test_what_reads_like_a_name_of_tensorrt_is_in_the_table(path: Path) -> None:
    """The simulations below do not run every line."""
    known = {name for kinds in TABLES.values() for names in kinds.values() for name in names} - OURS
    declared = {name for table in (API, RTX_API, UNLISTED) for names in table.values() for name in names}
    used = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    assert used & known <= declared


@rtx_only
def test_the_installed_module_has_the_names_too() -> None:
    module = tensorrt_module("rtx")
    for table in (API, RTX_API, UNLISTED):
        for kind, names in table.items():
            assert set(names) <= set(dir(getattr(module, kind))), kind


@rtx_only
@pytest.mark.filterwarnings(NO_OP)
@pytest.mark.parametrize("version", TENSORRT)
def test_the_builder_uses_no_name_that_a_version_lacks(version: str, monkeypatch: Any, tmp_path: Any) -> None:
    """Simulated: TensorRT-RTX compiles, but every attribute that API or that version's table lacks raises."""
    monkeypatch.setitem(sys.modules, "tensorrt", other_version(version))
    graph = toy_graph("int8")
    options = BuildOptions("tensorrt", ({"batch": RANGES["batch"]},), workspace_bytes=1 << 28, optimization_level=3)
    inputs = specs_from_graph(onnx.load_from_string(graph))[0]
    built = build_plan(graph, inputs, options, timing_cache=tmp_path / "timings")
    assert built.report.version == version
    assert [kernel.kind for kernel in built.report.kernels] == ["CaskConvolution"]
    assert (tmp_path / "timings").exists()


@rtx_only
def test_the_stand_in_refuses_other_names() -> None:
    """Otherwise the test above could not fail."""
    module = other_version(TENSORRT[0])
    with pytest.raises(AttributeError, match="ComputeCapability"):
        _ = module.ComputeCapability
    with listening(tensorrt_module("rtx")) as log:
        config = module.Builder(log.logger).create_builder_config()
        with pytest.raises(AttributeError, match="num_compute_capabilities"):
            config.num_compute_capabilities = 1
        with pytest.raises(AttributeError, match="int8_calibrator"):
            _ = config.int8_calibrator


def test_an_old_tensorrt_is_refused_with_the_version_that_is_wanted(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="8.6.1", __name__="tensorrt"))
    with pytest.raises(EngineError, match=r"got version 8\.6\.1, expected 10\.3 or later"):
        tensorrt_module("tensorrt")


@pytest.mark.skipif(missing("tensorrt") is None, reason="TensorRT is installed")
def test_without_tensorrt_the_error_says_where_it_comes_from() -> None:
    with pytest.raises(EngineError, match=r"No module named 'tensorrt'.*JetPack 6\.1"):
        tensorrt_module("tensorrt")
    assert "python3-libnvinfer" in str(missing("tensorrt"))


def test_a_broken_installation_is_told_from_a_missing_one(monkeypatch: Any, tmp_path: Any) -> None:
    """The bindings' wheel without its libraries, or a placeholder package."""
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.10: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(EngineError, match=r"libnvinfer\.so\.10"):
        tensorrt_module("tensorrt")


@rtx_only
def test_nothing_is_printed_and_every_listener_hears_all(capfd: Any) -> None:
    module = tensorrt_module("rtx")
    with listening(module) as outer:
        with listening(module) as inner:
            module.Runtime(inner.logger).deserialize_cuda_engine(bytes(100))
        with listening(module) as later:
            assert later.errors == "no message"
        assert inner.logger is outer.logger
        assert "magicTag" in inner.errors
        assert outer.messages == inner.messages
    assert capfd.readouterr() == ("", "")
    assert api._loggers[module.__name__].listeners == ()
