"""Building: refusals name the node, a timing cache is what it was pinned to, an interruption leaves nothing."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from toy_engines import RANGES, compiled, rtx_only, toy_graph
from trt_names import NO_OP, TENSORRT, other_version

from posekit.runtime.engines.build import build_plan
from posekit.runtime.engines.options import AxisRange, BuildOptions
from posekit.runtime.engines.progress import BuildProgress, builds_watched
from posekit.runtime.errors import EngineError
from posekit.runtime.tensor import TensorSpec

CROPS = (TensorSpec("crops", "uint8", ("batch", 16, 16, 3)),)
OPTIONS = BuildOptions("rtx", ({"batch": RANGES["batch"]},), compute_capabilities=(86,))

pytestmark = rtx_only


def test_a_build_is_reported() -> None:
    steps: list[BuildProgress] = []
    built = build_plan(toy_graph("fp32"), CROPS, OPTIONS, progress=steps.append)
    report = built.report
    assert (report.title, report.size) == ("TensorRT-RTX", len(built.plan))
    assert report.sha256 == hashlib.sha256(built.plan).hexdigest()
    assert report.timing_cache_sha256 is None
    assert report.seconds > 0
    assert steps[-1].fraction == 1.0


def test_options_are_accepted_one_by_one() -> None:
    profiles = ({"batch": AxisRange(1, 1, 1)}, {"batch": AxisRange(1, 4, 8)})
    options = BuildOptions("rtx", profiles, 1 << 28, 5, (86, 120))
    assert build_plan(memoryview(toy_graph("fp16")), CROPS, options).plan


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        (helper.make_node("Det", ["square"], ["det"], name="the_det"), r"Det 'the_det'"),
        (helper.make_node("NoSuchOperator", ["mean"], ["x"], name="odd"), r"NoSuchOperator 'odd'"),
    ],
)
def test_an_operator_that_it_cannot_do_is_named(extra: onnx.NodeProto, named: str) -> None:
    graph = toy_graph("fp32", extra=extra, constants={"square": np.eye(3, dtype=np.float32)[None]})
    with pytest.raises(EngineError, match=f"TensorRT-RTX parser: got node .*{named}"):
        build_plan(graph, CROPS, OPTIONS)


def test_an_operator_that_parses_and_does_not_compile_is_refused_with_its_words() -> None:
    nonzero = helper.make_node("NonZero", ["mean"], ["where"], name="where")
    model = onnx.load_from_string(toy_graph("fp32", extra=nonzero))
    model.graph.output.append(helper.make_tensor_value_info("where", onnx.TensorProto.INT64, [2, "found"]))
    with pytest.raises(EngineError, match=r"TensorRT-RTX (build|parser): got .*(NonZero|where).*`posekit lint`"):
        build_plan(model.SerializeToString(), CROPS, OPTIONS)


@pytest.mark.parametrize("graph", [b"", b"not a graph", toy_graph("fp32")[:300]])
def test_what_is_no_graph_is_refused(graph: bytes) -> None:
    with pytest.raises(EngineError, match="TensorRT-RTX parser"):
        build_plan(graph, CROPS, OPTIONS)


def test_a_capability_that_rtx_does_not_have_is_refused_with_the_known_ones() -> None:
    with pytest.raises(EngineError, match=r"compute capability 87.*SM86.*build on the device"):
        compiled(toy_graph("fp32"), (87,))


def test_a_profile_outside_the_graph_is_refused() -> None:
    fixed = BuildOptions("rtx", ({"batch": AxisRange(1, 2, 4)},), compute_capabilities=(86,))
    inputs = (TensorSpec("crops", "uint8", ("batch", 17, 16, 3)),)
    with pytest.raises(EngineError, match="got"):
        build_plan(toy_graph("fp32"), inputs, fixed)


def test_rtx_takes_no_timing_cache(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="times nothing"):
        build_plan(toy_graph("fp32"), CROPS, OPTIONS, timing_cache=tmp_path / "timings")


def interrupted(_: BuildProgress) -> None:
    raise KeyboardInterrupt


def test_an_exception_of_the_caller_cancels_the_build_and_reaches_the_caller() -> None:
    with pytest.raises(KeyboardInterrupt):
        build_plan(toy_graph("fp32"), CROPS, OPTIONS, progress=interrupted)
    assert build_plan(toy_graph("fp32"), CROPS, OPTIONS).plan


SCRIPT = """
import os, signal, sys
from posekit.runtime.engines.build import build_plan
from posekit.runtime.engines.options import AxisRange, BuildOptions
from posekit.runtime.tensor import TensorSpec

signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever began the tests may have it ignored
crops = (TensorSpec("crops", "uint8", ("batch", 16, 16, 3)),)
options = BuildOptions("rtx", ({"batch": AxisRange(1, 4, 8)},), compute_capabilities=(86,))
try:
    build_plan(sys.stdin.buffer.read(), crops, options, progress=lambda _: os.kill(os.getpid(), signal.SIGINT))
except KeyboardInterrupt:
    print("interrupted")
"""


def test_a_real_interrupt_ends_the_build() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], input=toy_graph("fp32"), capture_output=True, check=True)
    assert done.stdout.split() == [b"interrupted"]
    assert done.stderr == b""


@pytest.fixture
def tensorrt(monkeypatch: Any) -> BuildOptions:
    """Simulated: TensorRT-RTX compiles under the names of TensorRT 10.3."""
    monkeypatch.setitem(sys.modules, "tensorrt", other_version(TENSORRT[0]))
    return BuildOptions("tensorrt", ({"batch": RANGES["batch"]},))


@pytest.mark.filterwarnings(NO_OP)
def test_a_timing_cache_is_written_and_its_hash_reported(tensorrt: BuildOptions, tmp_path: Path) -> None:
    path = tmp_path / "timings"
    report = build_plan(toy_graph("fp32"), CROPS, tensorrt, timing_cache=path).report
    content = path.read_bytes()
    assert report.timing_cache_sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.filterwarnings(NO_OP)
def test_a_pinned_timing_cache_is_used_and_left_alone(tensorrt: BuildOptions, tmp_path: Path) -> None:
    """An empty one: without a GPU TensorRT reads no other."""
    path = tmp_path / "timings"
    path.write_bytes(b"")
    pin = hashlib.sha256(b"").hexdigest()
    options = replace(tensorrt, timing_cache_sha256=pin)
    assert build_plan(toy_graph("fp32"), CROPS, options, timing_cache=path).report.timing_cache_sha256 == pin
    assert path.read_bytes() == b""


def test_another_timing_cache_than_the_pinned_one_is_refused(tensorrt: BuildOptions, tmp_path: Path) -> None:
    path, pinned = tmp_path / "timings", replace(tensorrt, timing_cache_sha256="0" * 64)
    for prepared in (None, b"other"):
        if prepared is not None:
            path.write_bytes(prepared)
        with pytest.raises(EngineError, match=f"timing cache .*expected sha256 {'0' * 64}"):
            build_plan(toy_graph("fp32"), CROPS, pinned, timing_cache=path)
    with pytest.raises(EngineError, match="got no file"):
        build_plan(toy_graph("fp32"), CROPS, pinned)


@pytest.mark.filterwarnings(NO_OP)
def test_a_damaged_timing_cache_is_refused_and_left_alone(tensorrt: BuildOptions, tmp_path: Path) -> None:
    """TensorRT itself goes on with an empty one."""
    path = tmp_path / "timings"
    path.write_bytes(b"garbage" * 100)
    with pytest.raises(EngineError, match=r"timing cache .*Failed to deserialize"):
        build_plan(toy_graph("fp32"), CROPS, tensorrt, timing_cache=path)
    assert path.read_bytes() == b"garbage" * 100
    with pytest.raises(EngineError, match="a readable file"):
        build_plan(toy_graph("fp32"), CROPS, tensorrt, timing_cache=tmp_path)


def test_a_build_below_a_session_is_seen_by_who_watches() -> None:
    seen: list[BuildProgress] = []
    with builds_watched(seen.append):
        build_plan(toy_graph("fp32"), CROPS, OPTIONS)
    assert [step.fraction for step in seen] == sorted(step.fraction for step in seen)
    assert len(seen) >= 2
    count = len(seen)
    build_plan(toy_graph("fp32"), CROPS, OPTIONS)
    assert len(seen) == count
