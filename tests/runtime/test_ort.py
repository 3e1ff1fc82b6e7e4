"""The ONNX Runtime session: what it reports, what it refuses, and what it computes."""

from __future__ import annotations

import builtins
import ctypes
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import pytest
import toy_precisions
from onnx import TensorProto, helper

from posekit.runtime.backends import ort
from posekit.runtime.backends.ort import OrtSession
from posekit.runtime.errors import BackendError, SpecError
from posekit.runtime.session import Session
from posekit.runtime.tensor import TensorSpec


def double_graph(op: str = "Mul", shape: tuple[Any, ...] = ("batch", 3), padding: int = 0) -> bytes:
    """y = x * [2, 2, 2]; `padding` bytes of unused weight make the file big."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)
    two = helper.make_tensor("two", TensorProto.FLOAT, [3], [2.0, 2.0, 2.0])
    weights = [two]
    if padding:
        weights.append(helper.make_tensor("unused", TensorProto.INT8, [padding], bytes(padding), raw=True))
    graph = helper.make_graph([helper.make_node(op, ["x", "two"], ["y"])], "double", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    return cast(bytes, model.SerializeToString())


def test_runs_and_reports_its_specs() -> None:
    session: Session = OrtSession(double_graph(), threads=1)
    assert session.inputs == (TensorSpec("x", "float32", ("batch", 3)),)
    assert session.outputs == (TensorSpec("y", "float32", ("batch", 3)),)
    assert "CPUExecutionProvider" in session.backend
    for batch in (1, 4):
        x = np.arange(batch * 3, dtype=np.float32).reshape(batch, 3)
        np.testing.assert_array_equal(session.run({"x": x})["y"], 2 * x)


@pytest.mark.parametrize("padding", [0, ort.MEMFD_FROM_BYTES], ids=["small", "by memory file"])
@pytest.mark.parametrize("form", ["bytes", "memoryview", "path"])
def test_every_source_gives_the_same_graph(form: str, padding: int, tmp_path: Path) -> None:
    model = double_graph(padding=padding)
    path = tmp_path / "double.onnx"
    path.write_bytes(model)
    sources: dict[str, bytes | memoryview | Path] = {"bytes": model, "memoryview": memoryview(model), "path": path}
    session = OrtSession(sources[form], threads=1)
    np.testing.assert_array_equal(session.run({"x": np.ones((1, 3), np.float32)})["y"], [[2, 2, 2]])


def test_no_descriptor_stays_open() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    OrtSession(double_graph(padding=ort.MEMFD_FROM_BYTES), threads=1)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("system", ["C library alone", "neither", "forbidden"])
def test_a_big_graph_loads_whether_or_not_there_are_memory_files(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pythons built on old systems have no os.memfd_create; a system may lack or forbid the call itself."""
    made: list[int] = []
    library = ctypes.CDLL(None)

    def memfd_create(name: bytes, flags: int) -> int:
        made.append(library.memfd_create(name, flags))
        return made[-1]

    def forbidden(name: str) -> int:
        raise PermissionError(name)

    monkeypatch.delattr(os, "memfd_create", raising=False)
    if system == "forbidden":
        monkeypatch.setattr(os, "memfd_create", forbidden, raising=False)
    callable_ = {"memfd_create": memfd_create} if system == "C library alone" else {}
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(**callable_))
    session = OrtSession(double_graph(padding=ort.MEMFD_FROM_BYTES), threads=1)
    np.testing.assert_array_equal(session.run({"x": np.ones((1, 3), np.float32)})["y"], [[2, 2, 2]])
    assert len(made) == (system == "C library alone")


def test_a_big_graph_loads_where_no_file_may_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit on the size of files (ulimit -f) holds for files in memory too."""
    monkeypatch.setattr(ort, "_memory_file", lambda: os.open("/dev/full", os.O_WRONLY))
    session = OrtSession(double_graph(padding=ort.MEMFD_FROM_BYTES), threads=1)
    np.testing.assert_array_equal(session.run({"x": np.ones((1, 3), np.float32)})["y"], [[2, 2, 2]])


@pytest.mark.parametrize(
    "feed",
    [{}, {"x": np.ones((1, 4), np.float32)}, {"x": np.ones((1, 3))}, {"z": np.ones((1, 3), np.float32)}],
    ids=["nothing", "shape", "dtype", "name"],
)
def test_a_wrong_feed_is_a_spec_error(feed: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=r"x"):
        OrtSession(double_graph(), threads=1).run(feed)


def test_an_unnamed_axis_gets_a_name_of_its_own() -> None:
    assert OrtSession(double_graph(shape=(None, 3)), threads=1).inputs[0].shape == ("x_0", 3)


def test_closed_twice_then_run() -> None:
    session = OrtSession(double_graph(), threads=1)
    session.close()
    session.close()
    with pytest.raises(BackendError, match="closed"):
        session.run({"x": np.ones((1, 3), np.float32)})


@pytest.mark.parametrize("model", [b"", b"not a graph", double_graph()[:-20], double_graph(op="NoSuchOp")])
def test_a_bad_graph_is_a_backend_error(model: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BackendError, match="a graph it can load"):
        OrtSession(model)
    assert capfd.readouterr() == ("", "")


def test_a_missing_file_is_a_backend_error(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"none\.onnx"):
        OrtSession(tmp_path / "none.onnx")


def test_an_error_while_running_is_a_backend_error_and_silent(capfd: pytest.CaptureFixture[str]) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.INT64, ["n"])
    y = helper.make_tensor_value_info("y", TensorProto.INT64, ["n"])
    table = helper.make_tensor("table", TensorProto.INT64, [2], [5, 6])
    graph = helper.make_graph([helper.make_node("Gather", ["table", "x"], ["y"])], "lookup", [x], [y], [table])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    session = OrtSession(model.SerializeToString(), threads=1)
    with pytest.raises(BackendError, match="a finished run"):
        session.run({"x": np.array([7])})
    assert capfd.readouterr() == ("", "")


def test_a_sequence_output_is_refused() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [3])
    y = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node("SequenceConstruct", ["x"], ["y"])], "sequence", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    with pytest.raises(BackendError, match="plain tensors"):
        OrtSession(model.SerializeToString())


@pytest.mark.parametrize("providers", [(), ("NoSuchExecutionProvider",)])
def test_an_unavailable_provider_is_refused(providers: tuple[str, ...]) -> None:
    with pytest.raises(BackendError, match="CPUExecutionProvider"):
        OrtSession(double_graph(), providers=providers)


def test_a_provider_that_is_not_active_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    available = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: available)
    fallen_back = SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda *args, **kwargs: fallen_back)
    with pytest.raises(BackendError, match="got CPUExecutionProvider, expected CUDAExecutionProvider"):
        OrtSession(double_graph(), providers=available)


def test_a_missing_package_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name == "onnxruntime":
            raise ImportError("No module named 'onnxruntime'")
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(BackendError, match=r"pip install 'posekit\[onnx\]'"):
        OrtSession(double_graph())


@pytest.fixture(scope="module")
def quantised() -> dict[str, bytes]:
    ranges = toy_precisions.measured_ranges(toy_precisions.network(), toy_precisions.feed(16, seed=9))
    return {p: toy_precisions.network(p, ranges).SerializeToString() for p in toy_precisions.PRECISIONS}


@pytest.mark.parametrize("precision", toy_precisions.PRECISIONS)
def test_a_graph_gives_its_own_numbers_in_every_precision(quantised: dict[str, bytes], precision: str) -> None:
    """Optimisations may not change what a Q/DQ graph says, whether its scales are FP32 or FP16."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    plain = onnxruntime.InferenceSession(quantised[precision], options, providers=["CPUExecutionProvider"])
    crops = toy_precisions.feed(8)
    (wanted,) = plain.run(None, crops)
    got = OrtSession(quantised[precision], threads=1).run(crops)["pose"]
    np.testing.assert_allclose(cast(Any, got), wanted, atol=1e-5)


def test_the_graphs_of_these_tests_are_valid() -> None:
    onnx.checker.check_model(onnx.load_from_string(double_graph()), full_check=True)
