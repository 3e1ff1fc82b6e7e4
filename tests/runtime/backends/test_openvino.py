"""The OpenVINO session computes what ONNX Runtime computes, from the same files, and refuses what it cannot run."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import toy_precisions
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from posekit.runtime.backends.compiled import CompiledCache
from posekit.runtime.backends.openvino import OpenVinoSession, unfit
from posekit.runtime.backends.ort import OrtSession
from posekit.runtime.errors import BackendError, SpecError
from posekit.runtime.manifest import Precision
from posekit.runtime.session import Session
from posekit.runtime.tensor import TensorSpec

pytest.importorskip("openvino")

ULP = 2.0**-23
Array = npt.NDArray[Any]


def graph(
    nodes: list[onnx.NodeProto],
    inputs: Sequence[tuple[str, int, Sequence[Any]]],
    outputs: Sequence[tuple[str, int, Sequence[Any]]],
) -> bytes:
    feeds, results = ([helper.make_tensor_value_info(*entry) for entry in entries] for entries in (inputs, outputs))
    model = helper.make_model(
        helper.make_graph(nodes, "toy", feeds, results), opset_imports=[helper.make_opsetid("", 19)], ir_version=9
    )
    return cast(bytes, model.SerializeToString())


def sum_graph(rows: Any = "batch") -> bytes:
    """y = x + bank, where bank has no batch."""
    F = TensorProto.FLOAT
    return graph(
        [helper.make_node("Add", ["x", "bank"], ["y"])],
        [("x", F, [rows, 3]), ("bank", F, [3])],
        [("y", F, [rows, 3])],
    )


@pytest.fixture(scope="module")
def networks() -> dict[str, bytes]:
    """The toy in every precision, with ranges measured on other crops than the tests feed."""
    ranges = toy_precisions.measured_ranges(toy_precisions.network(), toy_precisions.feed(16, seed=9))
    return {p: toy_precisions.network(p, ranges).SerializeToString() for p in toy_precisions.PRECISIONS}


@pytest.fixture(scope="module")
def pairs(networks: dict[str, bytes]) -> dict[str, tuple[Session, Session]]:
    """Per precision OpenVINO and ONNX Runtime on the same bytes."""
    return {p: (OpenVinoSession(model, threads=1), OrtSession(model, threads=1)) for p, model in networks.items()}


def pose(session: Session, crops: dict[str, Array]) -> Array:
    return cast(Array, session.run(crops)["pose"])


def rms(values: Array) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


@pytest.fixture(scope="module")
def noise(pairs: dict[str, tuple[Session, Session]]) -> dict[str, float]:
    """What a precision itself costs: its distance from fp32, both on ONNX Runtime; for fp32 a few dozen roundings."""
    crops = toy_precisions.feed(16, seed=5)
    exact = pose(pairs["fp32"][1], crops)
    cost = {p: rms(pose(reference, crops) - exact) for p, (_, reference) in pairs.items()}
    return {**cost, "fp32": 100 * ULP * rms(exact)}


# Batches grow and shrink: buffers, shapes and compiled kernels of one size must not leak into the next.
@given(batches=st.lists(st.sampled_from([1, 3, 8]), min_size=1, max_size=5), seed=st.integers(0, 1000))
@settings(max_examples=15)
def test_equals_onnx_runtime_whatever_came_before(
    pairs: dict[str, tuple[Session, Session]], noise: dict[str, float], batches: list[int], seed: int
) -> None:
    for precision, (session, reference) in pairs.items():
        if "int8" in precision and unfit("int8") is not None:
            continue
        for batch in batches:
            crops = toy_precisions.feed(batch, seed)
            got, wanted = pose(session, crops), pose(reference, crops)
            assert got.shape == wanted.shape == (batch, toy_precisions.OUTPUTS)
            # Backends round at other places, so each is off by the precision's own cost and they by at most the sum
            # (seen with ONNX Runtime 1.23); a wrong scale, zero point or axis costs more.
            assert rms(got - wanted) < 2 * noise[precision], precision


def test_the_precisions_of_the_toy_differ(pairs: dict[str, tuple[Session, Session]], noise: dict[str, float]) -> None:
    """Else the law above would compare one network with itself."""
    signal = rms(pose(pairs["fp32"][1], toy_precisions.feed(16, seed=5)))
    assert noise["fp32"] < noise["fp16"] < 0.1 * noise["int8"] < 0.1 * signal


@pytest.mark.parametrize("precision", toy_precisions.PRECISIONS)
def test_says_what_really_runs(pairs: dict[str, tuple[Session, Session]], precision: str) -> None:
    import openvino

    said = pairs[precision][0].backend
    assert said.startswith(f"OpenVINO {openvino.__version__.split('-')[0]}, ")
    assert "f32, threads 1" in said
    in_int8 = "4 of 5 products in int8"  # three convolutions and the last product; the boxes' stays in float
    assert (in_int8 in said) == ("int8" in precision)


@pytest.mark.parametrize("declared", [True, False])
def test_specs_are_those_of_the_file(networks: dict[str, bytes], declared: bool) -> None:
    reference = OrtSession(networks["fp32"], threads=1)
    inputs, outputs = (reference.inputs, reference.outputs) if declared else ((), ())
    session = OpenVinoSession(networks["fp32"], threads=1, inputs=inputs, outputs=outputs)
    for got, wanted in ((session.inputs, reference.inputs), (session.outputs, reference.outputs)):
        assert [(s.name, s.dtype) for s in got] == [(s.name, s.dtype) for s in wanted]
        assert [len(s.shape) for s in got] == [len(s.shape) for s in wanted]
    assert (session.inputs == reference.inputs) == declared  # the names of axes are the manifest's to give
    assert session.inputs[1].shape == (("batch", 4) if declared else ("box_0", 4))


def test_another_graph_than_declared_is_refused(networks: dict[str, bytes]) -> None:
    reference = OrtSession(networks["fp32"], threads=1)
    other = TensorSpec("crops", "uint8", ("batch", 32, 32, 3))
    with pytest.raises(BackendError, match=r"32, 32.*describes another graph"):
        OpenVinoSession(networks["fp32"], inputs=(other, reference.inputs[1]), threads=1)
    with pytest.raises(BackendError, match="describes another graph"):
        OpenVinoSession(networks["fp32"], inputs=reference.inputs[:1], threads=1)


def test_names_of_the_file_survive_aliases_and_every_type() -> None:
    """Two outputs of one tensor, an input handed through, and types beside float32."""
    F, I, B, H = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL, TensorProto.FLOAT16
    nodes = [
        helper.make_node("Relu", ["x"], ["z"]),
        helper.make_node("Identity", ["z"], ["a"]),
        helper.make_node("Identity", ["label"], ["same"]),
        helper.make_node("Greater", ["x", "z"], ["below"]),
        helper.make_node("Cast", ["x"], ["half"], to=H),
    ]
    wanted = [("z", F), ("a", F), ("same", I), ("below", B), ("half", H)]
    outputs = [(name, kind, ["batch"] if name == "same" else ["batch", 3]) for name, kind in wanted]
    model = graph(nodes, [("x", F, ["batch", 3]), ("label", I, ["batch"])], outputs)
    session, reference = OpenVinoSession(model, threads=1), OrtSession(model, threads=1)
    feed = {"x": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3), "label": np.array([7, 8])}
    got, expected = session.run(feed), reference.run(feed)
    assert list(got) == list(expected)
    for name in expected:
        assert got[name].dtype == expected[name].dtype
        np.testing.assert_array_equal(got[name], expected[name])


def test_outputs_last_until_the_next_run_and_are_never_freed_memory() -> None:
    session = OpenVinoSession(sum_graph(), threads=1)
    bank = np.zeros(3, np.float32)
    first = session.run({"x": np.ones((2, 3), np.float32), "bank": bank})["y"]
    kept = first.copy()
    large = session.run({"x": np.full((512, 3), 5, np.float32), "bank": bank})["y"]
    small = session.run({"x": np.full((1, 3), 7, np.float32), "bank": bank})["y"]
    assert np.shares_memory(large, small)  # made once
    assert not np.shares_memory(first, large)  # a grown buffer leaves the old one to whoever holds it
    session.close()
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(small, [[7, 7, 7]])


def read_only(array: Array) -> Array:
    array.flags.writeable = False
    return array


def hidden_behind_a_view(array: Array) -> Array:
    """Cannot be written through, but through the array that it looks into."""
    return read_only(array[:])


@pytest.mark.parametrize("form", [lambda a: a, hidden_behind_a_view], ids=["writable", "view"])
def test_an_input_changed_in_place_is_seen(form: Any) -> None:
    session = OpenVinoSession(sum_graph(), threads=1)
    x, memory = np.zeros((1, 3), np.float32), np.ones(3, np.float32)
    bank = form(memory)
    for value in (1, 2, 3):
        memory[:] = value
        np.testing.assert_array_equal(session.run({"x": x, "bank": bank})["y"], [[value] * 3])


def test_banks_that_cannot_change_are_taken_over_once_and_told_apart() -> None:
    session = OpenVinoSession(sum_graph(), threads=1)
    banks = [read_only(np.full(3, value, np.float32)) for value in (10, 20)]
    copies: list[Array] = []
    copied = session._copied

    def counted(array: Array) -> Any:
        copies.append(array)
        return copied(array)

    session._copied = counted  # type: ignore[method-assign]
    for i in (0, 1, 1, 0, 1):
        x = np.full((1 + i, 3), i, np.float32)
        np.testing.assert_array_equal(
            session.run({"x": x, "bank": banks[i]})["y"], np.full((1 + i, 3), i + 10 * (i + 1))
        )
    assert [id(c) for c in copies] == [id(bank) for bank in banks]


def test_memory_without_order_is_fed_as_it_is_meant() -> None:
    session = OpenVinoSession(sum_graph(), threads=1)
    wide = np.arange(12, dtype=np.float32).reshape(2, 6)
    for x in (wide[:, ::2], read_only(wide[:, ::2]), np.asfortranarray(wide[:, :3])):
        np.testing.assert_array_equal(session.run({"x": x, "bank": np.zeros(3, np.float32)})["y"], x)


@pytest.mark.parametrize(
    "feed",
    [
        {},
        {"x": np.ones((1, 3), np.float32)},
        {"x": np.ones((1, 4), np.float32), "bank": np.ones(3, np.float32)},
        {"x": np.ones((1, 3)), "bank": np.ones(3, np.float32)},
        {"x": np.ones((1, 3), np.float32), "bank": np.ones(3, np.float32), "z": np.ones(3, np.float32)},
    ],
    ids=["nothing", "missing", "shape", "dtype", "too much"],
)
def test_a_wrong_feed_is_a_spec_error(feed: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=r"x"):
        OpenVinoSession(sum_graph(), threads=1).run(feed)


def no_such_op() -> bytes:
    F = TensorProto.FLOAT
    return graph([helper.make_node("NoSuchOp", ["x"], ["y"])], [("x", F, [3])], [("y", F, [3])])


@pytest.mark.parametrize("model", [b"", b"not a graph", sum_graph()[:-20], no_such_op()])
def test_a_bad_graph_is_a_backend_error(model: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BackendError, match="a graph it can load") as caught:
        OpenVinoSession(model, threads=1)
    assert "core.cpp" not in str(caught.value)  # OpenVINO's own source lines help nobody
    assert capfd.readouterr() == ("", "")


def test_a_missing_file_is_a_backend_error(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"none\.onnx"):
        OpenVinoSession(tmp_path / "none.onnx")


def test_an_error_while_running_is_a_backend_error() -> None:
    """Sizes that the specs leave open and that cannot be added."""
    F = TensorProto.FLOAT
    nodes = [helper.make_node("Add", ["x", "bank"], ["y"])]
    session = OpenVinoSession(graph(nodes, [("x", F, ["batch", 3]), ("bank", F, ["n"])], [("y", F, ["batch", "n"])]))
    x = np.ones((2, 3), np.float32)
    with pytest.raises(BackendError, match="a finished run"):
        session.run({"x": x, "bank": np.ones(2, np.float32)})
    np.testing.assert_array_equal(session.run({"x": x, "bank": np.ones(3, np.float32)})["y"], 2 * x)  # it lives on


def test_closed_twice_then_run() -> None:
    session = OpenVinoSession(sum_graph(), threads=1)
    session.close()
    session.close()
    with pytest.raises(BackendError, match="closed"):
        session.run({"x": np.ones((1, 3), np.float32), "bank": np.ones(3, np.float32)})


@pytest.mark.parametrize("precision", toy_precisions.PRECISIONS)
def test_what_was_compiled_before_gives_the_same_bits(
    networks: dict[str, bytes], precision: str, tmp_path: Path
) -> None:
    model, cache = networks[precision], CompiledCache(tmp_path)
    without, first, again = (OpenVinoSession(model, threads=1, cache=kept) for kept in (None, cache, cache))
    assert not without.engine_origin
    assert "Kept as" in first.engine_origin
    assert again.engine_origin.startswith("found ")
    assert (again.inputs, again.outputs, again.backend) == (without.inputs, without.outputs, without.backend)
    for batch in (1, 3, 8, 1):
        crops = toy_precisions.feed(batch)
        wanted = pose(without, crops)
        np.testing.assert_array_equal(pose(first, crops), wanted)
        np.testing.assert_array_equal(pose(again, crops), wanted)


def test_what_was_compiled_for_something_else_is_not_found(networks: dict[str, bytes], tmp_path: Path) -> None:
    cache = CompiledCache(tmp_path)
    for model, threads in ((networks["fp32"], 1), (networks["fp32"], 2), (networks["int8"], 1)):
        assert OpenVinoSession(model, threads=threads, cache=cache).engine_origin.startswith(
            "compiled: nothing is kept"
        )


def test_a_compiled_file_that_is_damaged_or_foreign_is_made_again(networks: dict[str, bytes], tmp_path: Path) -> None:
    """Damaged: OpenVINO never sees it. Foreign: whole, and refused by OpenVINO."""
    model, cache = networks["fp32"], CompiledCache(tmp_path)
    crops = toy_precisions.feed(3)
    wanted = pose(OpenVinoSession(model, threads=1, cache=cache), crops)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()

    def half_written() -> None:
        path.write_bytes(whole[: len(whole) // 2])

    def of_another_program() -> None:
        cache.keep(path, b"of another program" * 100)

    for break_it, why in ((half_written, "was damaged"), (of_another_program, "OpenVINO refuses")):
        break_it()
        session = OpenVinoSession(model, threads=1, cache=cache)
        assert why in session.engine_origin
        assert "Kept as" in session.engine_origin
        np.testing.assert_array_equal(pose(session, crops), wanted)
        assert OpenVinoSession(model, threads=1, cache=cache).engine_origin.startswith("found ")


def test_a_folder_that_cannot_be_written_is_done_without(networks: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    session = OpenVinoSession(networks["fp32"], threads=1, cache=CompiledCache(tmp_path / "file"))
    assert "Not kept: " in session.engine_origin
    assert pose(session, toy_precisions.feed(3)).shape == (3, toy_precisions.OUTPUTS)


def test_a_graph_that_openvino_cannot_export_runs_all_the_same(
    networks: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import openvino

    def refuse(*_: Any) -> None:
        raise RuntimeError("no such operation")

    monkeypatch.setattr(openvino.CompiledModel, "export_model", refuse)
    session = OpenVinoSession(networks["fp32"], threads=1, cache=CompiledCache(tmp_path))
    assert session.engine_origin.endswith("Not kept: RuntimeError: no such operation.")
    assert pose(session, toy_precisions.feed(3)).shape == (3, toy_precisions.OUTPUTS)
    assert not list(tmp_path.iterdir())


def test_arithmetic_that_the_cpu_lacks_is_refused(networks: dict[str, bytes]) -> None:
    import openvino

    with pytest.raises(BackendError, match="got f16, expected f32"):
        OpenVinoSession(networks["fp32"], arithmetic=cast(Any, "f16"))
    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        session = OpenVinoSession(networks["fp32"], threads=1, arithmetic="bf16")
        reference = OrtSession(networks["fp32"], threads=1)
        crops = toy_precisions.feed(3)
        wanted = pose(reference, crops)
        error = rms(pose(session, crops) - wanted) / rms(wanted)
        assert 1e-5 < error < 2e-2  # 8 bits of mantissa: asked for, and really given
        assert ", bf16, " in session.backend
    else:
        with pytest.raises(BackendError, match="got bf16"):
            OpenVinoSession(networks["fp32"], arithmetic="bf16")


def test_a_missing_package_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name == "openvino":
            raise ImportError("No module named 'openvino'")
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(BackendError, match=r"pip install 'posekit\[openvino\]'"):
        OpenVinoSession(sum_graph())


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_no_precision_is_fit_for_aarch64(precision: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert "aarch64" in str(unfit.__wrapped__(precision))
