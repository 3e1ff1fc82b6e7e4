"""Which backend opens which variant of a graph, and what is said about the others."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast, get_args

import pytest
from onnx import TensorProto, helper
from toy_bundles import write_toy_bundle

from posekit.runtime import backends
from posekit.runtime.backends import AUTO_ORDER, BACKENDS, Backend, open_session, session_and_choice
from posekit.runtime.bundle import Bundle
from posekit.runtime.errors import BackendError
from posekit.runtime.manifest import GraphEntry, Precision
from posekit.runtime.session import Session

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
WHY = "5 of 55 blocks in INT8 are slower than without."


def graph() -> bytes:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in "xy")
    built = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "toy", [x], [y])
    model = helper.make_model(built, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    return cast(bytes, model.SerializeToString())


class OneGraph:
    """The part of a bundle that opening a session needs."""

    def __init__(self, *variants: Precision, held_back: tuple[Precision, ...] = ()) -> None:
        entry = GraphEntry(
            "pose", {p: f"net.{p}.onnx" for p in variants}, (), (), held_back=dict.fromkeys(held_back, WHY)
        )
        self.manifest = SimpleNamespace(graphs={"net": entry})

    def read(self, member: str) -> memoryview:
        return memoryview(graph())


def bundle_of(*variants: Precision, held_back: tuple[Precision, ...] = ()) -> Bundle:
    return cast(Bundle, OneGraph(*variants, held_back=held_back))


class Opened:
    """A session that nothing is asked of but its name."""

    backend = "a backend that was opened"


def opens(*_: Any) -> Session:
    return cast(Session, Opened())


def refuses(*_: Any) -> Session:
    raise BackendError("engine", got="sm_87", expected="sm_89", remedy="Build it again.")


def machine(monkeypatch: pytest.MonkeyPatch, **able: bool) -> None:
    """A machine with the backends named; True: they open every graph, False: they refuse it."""
    rows = {
        name: Backend(
            (lambda: None) if name in able else (lambda: "not installed"),
            row.precisions,
            opens if able.get(name) else refuses,
        )
        for name, row in BACKENDS.items()
    }
    monkeypatch.setattr(backends, "BACKENDS", rows)


CASES: list[tuple[dict[str, bool], tuple[Precision, ...], tuple[str, str]]] = [
    ({"tensorrt": True, "openvino": True, "onnxruntime": True}, PRECISIONS, ("tensorrt", "int8")),
    ({"tensorrt": True, "openvino": True, "onnxruntime": True}, ("fp32", "fp16"), ("tensorrt", "fp16")),
    ({"tensorrt-rtx": True, "openvino": True}, PRECISIONS, ("tensorrt-rtx", "int8")),
    ({"tensorrt": False, "openvino": True, "onnxruntime": True}, PRECISIONS, ("openvino", "int8")),
    ({"onnxruntime-cuda": True, "openvino": True}, PRECISIONS, ("onnxruntime-cuda", "fp16")),
    ({"openvino": True, "onnxruntime": True}, ("fp32", "fp16"), ("onnxruntime", "fp32")),
    ({"openvino": False, "onnxruntime": True}, PRECISIONS, ("onnxruntime", "fp32")),
    ({"openvino": True}, ("fp32", "fp16"), ("openvino", "fp16")),
    ({"openvino": True, "onnxruntime": False}, ("fp32",), ("openvino", "fp32")),
    ({"onnxruntime": True}, ("int8",), ("onnxruntime", "int8")),
]


@pytest.mark.parametrize(("able", "variants", "wanted"), CASES)
def test_auto_takes_the_first_that_can(
    monkeypatch: pytest.MonkeyPatch,
    able: dict[str, bool],
    variants: tuple[Precision, ...],
    wanted: tuple[str, Precision],
) -> None:
    machine(monkeypatch, **able)
    session, choice = session_and_choice(bundle_of(*variants), "net")
    assert (choice.backend, choice.precision) == wanted
    assert choice.member == f"net.{wanted[1]}.onnx"
    tried = [reason.split(":")[0] for reason in choice.reasons]
    turns = [name for name, _ in AUTO_ORDER]
    assert tried == turns[: len(tried)]  # everyone before the chosen one says why not, nobody is passed over
    assert session.backend in choice.reasons[-1]
    for name, reason in zip(tried[:-1], choice.reasons[:-1], strict=True):
        expected = "sm_87" if able.get(name) is False else "its turn is for" if name in able else "not installed"
        assert expected in reason


def test_every_backend_has_its_turn_for_everything_it_runs() -> None:
    turns = {name: [p for n, precisions in AUTO_ORDER if n == name for p in precisions] for name in BACKENDS}
    assert {name: sorted(precisions) for name, precisions in turns.items()} == {
        name: sorted(row.precisions) for name, row in BACKENDS.items()
    }


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_named_precision_is_obeyed(monkeypatch: pytest.MonkeyPatch, precision: Precision) -> None:
    machine(monkeypatch, openvino=True, onnxruntime=True)
    for backend in ("auto", "openvino", "onnxruntime"):
        _, choice = session_and_choice(bundle_of(*PRECISIONS), "net", backend=backend, precision=precision)
        assert choice.precision == precision
        others = [p for p in PRECISIONS if p != precision]
        with pytest.raises(BackendError, match=precision):
            session_and_choice(bundle_of(*others), "net", backend=backend, precision=precision)


def test_a_precision_that_comes_out_wrong_here_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by choice, not by name: the next precision or backend has its turn, and the reason is told."""
    machine(monkeypatch, openvino=True, onnxruntime=True)
    wrong = replace(backends.BACKENDS["openvino"], unfit=lambda p: "it overflows" if p == "int8" else None)
    monkeypatch.setitem(backends.BACKENDS, "openvino", wrong)
    _, choice = session_and_choice(bundle_of(*PRECISIONS), "net")
    assert (choice.backend, choice.precision) == ("onnxruntime", "fp32")
    assert "openvino: it overflows." in choice.reasons
    _, choice = session_and_choice(bundle_of(*PRECISIONS), "net", backend="openvino")
    assert choice.precision == "fp16"
    with pytest.raises(BackendError, match="it overflows"):
        session_and_choice(bundle_of(*PRECISIONS), "net", backend="openvino", precision="int8")


HELD_BACK: list[tuple[dict[str, bool], tuple[Precision, ...], str, tuple[str, Precision]]] = [
    ({"tensorrt": True, "onnxruntime": True}, ("int8",), "auto", ("tensorrt", "fp16")),
    ({"tensorrt": True}, ("int8", "fp16"), "auto", ("tensorrt", "fp32")),
    ({"tensorrt": True}, ("int8",), "tensorrt", ("tensorrt", "fp16")),
    ({"openvino": True, "onnxruntime": True}, ("int8",), "auto", ("onnxruntime", "fp32")),
    ({"openvino": True}, ("int8", "fp16"), "auto", ("openvino", "fp32")),
    ({"openvino": True}, ("int8",), "openvino", ("openvino", "fp16")),
]


@pytest.mark.parametrize(("able", "held_back", "backend", "wanted"), HELD_BACK)
def test_what_is_held_back_is_never_taken_unasked(
    monkeypatch: pytest.MonkeyPatch,
    able: dict[str, bool],
    held_back: tuple[Precision, ...],
    backend: str,
    wanted: tuple[str, Precision],
) -> None:
    machine(monkeypatch, **able)
    bundle = bundle_of(*PRECISIONS, held_back=held_back)
    _, choice = session_and_choice(bundle, "net", backend=backend)
    assert (choice.backend, choice.precision) == wanted
    assert f"int8 is held back: {WHY}" in " ".join(choice.reasons)
    for precision in held_back:
        _, asked = session_and_choice(bundle, "net", backend=backend, precision=precision)
        assert asked.precision == precision
        assert WHY not in " ".join(asked.reasons)


def test_a_backend_for_which_all_is_held_back_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, **{"onnxruntime-cuda": True})
    bundle = bundle_of("fp16", "int8", held_back=("fp16",))
    with pytest.raises(BackendError, match=f"fp16 is held back: {WHY}"):
        open_session(bundle, "net", backend="onnxruntime-cuda")


def test_a_named_backend_is_opened_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, tensorrt=False, onnxruntime=True)
    with pytest.raises(BackendError, match="got sm_87, expected sm_89"):
        open_session(bundle_of(*PRECISIONS), "net", backend="tensorrt")
    with pytest.raises(BackendError, match="not installed"):
        open_session(bundle_of(*PRECISIONS), "net", backend="openvino")


def test_what_really_runs_here() -> None:
    """No mock: on a machine without GPU the reasons are TensorRT's and CUDA's own absence."""
    session, choice = session_and_choice(bundle_of("fp32"), "net", threads=1)
    assert choice.backend in BACKENDS
    assert session.backend in str(choice)
    assert len({reason.split(":")[0] for reason in choice.reasons}) == len(choice.reasons)
    assert all(len(reason) > len("tensorrt: None.") and "None" not in reason for reason in choice.reasons)


def test_only_what_is_opened_is_imported(tmp_path: Path) -> None:
    """Where there is no GPU, what builds and runs engines would be a tenth of the time to a first pose."""
    path = write_toy_bundle(tmp_path / "toy.posekit")
    code = (
        "import sys\nfrom posekit.runtime.bundle import Bundle\nfrom posekit.runtime.estimator import PoseEstimator\n"
        "from posekit.runtime.cuda import cuda_python\ncuda_python.LIBCUDA = 'libabsent.so.1'\n"
        f"with Bundle({str(path)!r}) as bundle, PoseEstimator(bundle): print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "onnxruntime" in loaded
    assert not {"openvino", "posekit.runtime.backends.tensorrt", "posekit.runtime.engines.build"} & loaded
    assert not {"cuda.bindings", "tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"} & loaded


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"graph_name": "none"}, "one of net"),
        ({"backend": "abacus"}, "onnxruntime"),
        ({"precision": "fp16"}, "variants fp32"),
        ({"precision": "fp16", "backend": "onnxruntime"}, "variants fp32"),
    ],
)
def test_what_cannot_be_opened_is_refused(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(BackendError, match=named):
        open_session(bundle_of("fp32"), **{"graph_name": "net", **arguments})
