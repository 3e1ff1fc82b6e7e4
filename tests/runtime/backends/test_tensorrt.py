"""The TensorRT session against a simulated GPU that forgives nothing (tier: simulated), and against a real one (gpu)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import numpy.typing as npt
import pytest
import toy_precisions
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from simulated_cuda import SimulatedCuda, Violation
from simulated_tensorrt import VERSIONS, Engine, module

from posekit.runtime import cuda
from posekit.runtime.backends import BACKENDS, tensorrt
from posekit.runtime.backends.ort import OrtSession
from posekit.runtime.backends.tensorrt import TensorRtSession
from posekit.runtime.bank import MATCHED, MIN_VIEWS, Search
from posekit.runtime.engines import api
from posekit.runtime.engines.build import BuildReport, BuiltPlan
from posekit.runtime.engines.cache import Device, EngineCache
from posekit.runtime.engines.options import AxisRange, BuildOptions
from posekit.runtime.errors import BackendError, EngineError, SpecError
from posekit.runtime.machine import l4t
from posekit.runtime.manifest import DEFAULT_CROPS_PER_PASS, DEFAULT_VIEWS, GraphEntry
from posekit.runtime.tensor import TensorSpec

Array = npt.NDArray[Any]
SIZE = toy_precisions.SIZE
LARGEST = 8
TOY_RANGES = {
    "crops": ((1, SIZE, SIZE, 3), (4, SIZE, SIZE, 3), (LARGEST, SIZE, SIZE, 3)),
    "box": ((1, 4), (4, 4), (LARGEST, 4)),
}
SUM_RANGES = {"x": ((1, 3), (1, 3), (4, 3))}
SOME = VERSIONS[0]
TOY = toy_precisions.network().SerializeToString()


def sum_graph() -> bytes:
    """y = x + bank, where bank has no batch."""
    F = TensorProto.FLOAT
    infos = {name: helper.make_tensor_value_info(name, F, ["batch", 3]) for name in "xy"}
    bank = helper.make_tensor_value_info("bank", F, [3])
    built = helper.make_graph([helper.make_node("Add", ["x", "bank"], ["y"])], "sum", [infos["x"], bank], [infos["y"]])
    model = helper.make_model(built, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    return cast(bytes, model.SerializeToString())


def toy_session(version: str = SOME, cuda: SimulatedCuda | None = None, graph: bytes = TOY) -> TensorRtSession:
    cuda = cuda or SimulatedCuda()
    return TensorRtSession(Engine(version, graph, TOY_RANGES, cuda), module(version), cuda)


def sum_session(cuda: SimulatedCuda | None = None, **engine: Any) -> TensorRtSession:
    cuda = cuda or SimulatedCuda()
    return TensorRtSession(Engine(SOME, sum_graph(), SUM_RANGES, cuda, **engine), module(SOME), cuda)


def cuda_of(session: TensorRtSession) -> SimulatedCuda:
    return cast(SimulatedCuda, session._driver)


def engine_of(session: TensorRtSession) -> Engine:
    return cast(Engine, session._engine)


def holds_nothing(cuda: SimulatedCuda) -> bool:
    return not (cuda.memory or cuda.streams or cuda.events or cuda.graphs)


def x_of(batch: int, value: float = 1) -> Array:
    return np.full((batch, 3), value, np.float32)


def bank_of(value: float, frozen: bool = True) -> Array:
    bank = np.full(3, value, np.float32)
    bank.flags.writeable = not frozen
    return bank


@pytest.fixture(scope="module")
def reference() -> OrtSession:
    return OrtSession(TOY, threads=1)


@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "no graphs"])
@pytest.mark.parametrize("version", VERSIONS)
def test_computes_what_the_graph_says_on_every_version(version: str, graphs: bool, reference: OrtSession) -> None:
    cuda = SimulatedCuda(no_graphs=None if graphs else "the provider has none")
    with toy_session(version, cuda) as session:
        for batch in (1, 3, 3, LARGEST, 1):
            crops = toy_precisions.feed(batch, seed=batch)
            np.testing.assert_array_equal(session.run(crops)["pose"], reference.run(crops)["pose"])
        assert len(cuda.graphs) == (3 if graphs else 0)  # one per batch size
        assert ("no CUDA graphs (the provider has none)" in session.backend) == (not graphs)
        assert version.removeprefix("rtx-") in session.backend
        assert "Simulated GPU (SM87), simulation" in session.backend


@given(
    runs=st.lists(st.tuples(st.integers(1, LARGEST), st.integers(0, 9)), min_size=1, max_size=8),
    prepared=st.integers(1, 3),
)
@settings(max_examples=25)
def test_no_run_leaks_into_the_next(runs: list[tuple[int, int]], prepared: int) -> None:
    """Whatever batches came before, and however few captured graphs are kept."""
    with pytest.MonkeyPatch.context() as patch, toy_session() as session:
        patch.setattr(tensorrt, "MAX_PREPARED", prepared)
        reference = OrtSession(TOY, threads=1)
        for batch, seed in runs:
            crops = toy_precisions.feed(batch, seed)
            np.testing.assert_array_equal(session.run(crops)["pose"], reference.run(crops)["pose"])
            assert len(cuda_of(session).graphs) <= prepared


def test_buffers_are_made_once() -> None:
    with toy_session() as session:
        session.run(toy_precisions.feed(1))
        cuda, pointers = cuda_of(session), set(cuda_of(session).memory)
        first = session.run(toy_precisions.feed(2))["pose"]
        again = session.run(toy_precisions.feed(LARGEST))["pose"]
        assert set(cuda.memory) == pointers
        assert np.shares_memory(first, again)


@pytest.mark.parametrize("first", [0, 1])
def test_twins_share_the_engine_and_nothing_on_the_device(first: int, reference: OrtSession) -> None:
    """Whichever closes first; results of one outlive runs and the end of the other."""
    cuda = SimulatedCuda()
    session = toy_session(cuda=cuda)
    before, engine = set(cuda.memory), engine_of(session)
    sessions = (session, session.twin())
    assert engine_of(sessions[1]) is engine
    assert len(cuda.memory) == 2 * len(before)
    assert len(cuda.streams) == 2
    assert (sessions[1].inputs, sessions[1].backend) == (session.inputs, session.backend)
    feeds = [toy_precisions.feed(3, seed=seed) for seed in (1, 2)]
    found = [one.run(feed)["pose"] for one, feed in zip(sessions, feeds, strict=True)]
    for array, feed in zip(found, feeds, strict=True):
        np.testing.assert_array_equal(array, reference.run(feed)["pose"])
    sessions[first].close()
    np.testing.assert_array_equal(sessions[1 - first].run(feeds[0])["pose"], reference.run(feeds[0])["pose"])
    sessions[1 - first].close()
    assert holds_nothing(cuda)
    for closed in sessions:
        assert closed._engine is None
        with pytest.raises(BackendError, match="a closed one"):
            closed.twin()


def test_a_bank_of_twins_is_on_the_device_once_each() -> None:
    cuda, bank = SimulatedCuda(), bank_of(5)
    with sum_session(cuda) as session, session.twin() as other:
        before = len(cuda.memory)
        for _ in range(2):
            for one in (session, other):
                np.testing.assert_array_equal(one.run({"x": x_of(2), "bank": bank})["y"], x_of(2, 6))
        assert len(cuda.memory) == before + 4  # x and the bank, of each
    assert holds_nothing(cuda)


def test_times_follow_each_other() -> None:
    with toy_session() as session:
        session.run(toy_precisions.feed(2))
        assert list(session.stage_ms()) == ["h2d", "gpu", "d2h"]
        assert all(ms > 0 for ms in session.stage_ms().values())


def test_closing_gives_everything_back_and_leaves_the_results(reference: OrtSession) -> None:
    cuda, crops = SimulatedCuda(), toy_precisions.feed(3)
    before = cuda.free_bytes
    session = toy_session(cuda=cuda)
    pose = session.run(crops)["pose"]
    session.close()
    session.close()
    assert holds_nothing(cuda)
    assert cuda.free_bytes == before
    np.testing.assert_array_equal(pose, reference.run(crops)["pose"])
    with pytest.raises(BackendError, match="closed"):
        session.run(crops)


@pytest.mark.parametrize("memory_bytes", [0, 4095, 4096, 4200, 18000])
def test_out_of_memory_is_said_and_leaves_nothing(memory_bytes: int) -> None:
    cuda = SimulatedCuda(memory_bytes=memory_bytes)

    def open_and_run() -> None:
        with toy_session(cuda=cuda) as session:
            session.run(toy_precisions.feed(1))

    with pytest.raises(BackendError, match="OUT_OF_MEMORY"):
        open_and_run()
    assert holds_nothing(cuda)


def test_a_bank_is_copied_once_and_banks_are_told_apart() -> None:
    banks = [bank_of(10), bank_of(20)]
    with sum_session() as session:
        for i in (0, 1, 1, 0, 1):
            y = session.run({"x": x_of(1 + i, i), "bank": banks[i]})["y"]
            np.testing.assert_array_equal(y, x_of(1 + i, 11 * i + 10))
        assert cuda_of(session).copies.count("h2d 12") == 2 + 2  # two banks, and x twice at batch 1


@pytest.mark.parametrize("form", [lambda a: a, lambda a: np.broadcast_to(a, a.shape)], ids=["writable", "view"])
def test_an_input_changed_in_place_is_seen(form: Callable[[Array], Array]) -> None:
    memory = bank_of(0, frozen=False)
    bank = form(memory)
    with sum_session() as session:
        for value in (1, 2, 3):
            memory[:] = value
            np.testing.assert_array_equal(session.run({"x": x_of(1, 0), "bank": bank})["y"], x_of(1, value))


def test_a_bank_that_is_gone_is_given_back_with_what_was_captured_for_it() -> None:
    with sum_session() as session:
        session.run({"x": x_of(1), "bank": bank_of(0, frozen=False)})
        cuda = cuda_of(session)
        kept = len(cuda.memory)
        for value in range(6):
            y = session.run({"x": x_of(1), "bank": bank_of(value)})["y"]
            np.testing.assert_array_equal(y, x_of(1, 1 + value))
            assert len(cuda.memory) <= kept + 1
            assert len(cuda.graphs) <= 2


def test_memory_without_order_is_fed_as_it_is_meant() -> None:
    wide = np.arange(12, dtype=np.float32).reshape(2, 6)
    frozen = wide.copy()
    frozen.flags.writeable = False
    with sum_session() as session:
        for x in (wide[:, ::2], frozen[:, ::2]):
            np.testing.assert_array_equal(session.run({"x": x, "bank": bank_of(0)})["y"], wide[:, ::2])


def test_other_threads_may_run_it(reference: OrtSession) -> None:
    with toy_session() as session:
        crops, found = toy_precisions.feed(2), []
        thread = threading.Thread(target=lambda: found.append(session.run(crops)["pose"]))
        thread.start()
        thread.join()
        np.testing.assert_array_equal(found[0], reference.run(crops)["pose"])


@pytest.mark.parametrize(
    "feed",
    [
        {},
        {"x": x_of(1)},
        {"x": np.ones((1, 4), np.float32), "bank": bank_of(0)},
        {"x": np.ones((1, 3)), "bank": bank_of(0)},
    ],
    ids=["nothing", "missing", "shape", "dtype"],
)
def test_a_wrong_feed_is_a_spec_error(feed: dict[str, Any]) -> None:
    with sum_session() as session:
        with pytest.raises(SpecError, match="x"):
            session.run(feed)
        np.testing.assert_array_equal(session.run({"x": x_of(1), "bank": bank_of(1)})["y"], x_of(1, 2))


@pytest.mark.parametrize("batch", [0, 5])
def test_a_batch_outside_the_profile_is_a_spec_error(batch: int) -> None:
    with sum_session() as session:
        with pytest.raises(SpecError, match=r"\(1, 3\) to \(4, 3\)"):
            session.run({"x": x_of(batch), "bank": bank_of(0)})
        np.testing.assert_array_equal(session.run({"x": x_of(4), "bank": bank_of(1)})["y"], x_of(4, 2))


def test_a_size_that_depends_on_values_is_refused() -> None:
    cuda = SimulatedCuda()
    with pytest.raises(BackendError, match=r"output 'y'.*known only after running.*TopK"):
        sum_session(cuda, data_dependent=frozenset("y"))
    assert not cuda.memory


def test_another_graph_than_declared_is_refused(reference: OrtSession) -> None:
    cuda = SimulatedCuda()
    engine = Engine(SOME, TOY, TOY_RANGES, cuda)
    with TensorRtSession(engine, module(SOME), cuda, inputs=reference.inputs, outputs=reference.outputs) as session:
        assert (session.inputs, session.outputs) == (reference.inputs, reference.outputs)
    other = (TensorSpec("pose", "float32", ("batch", 7)),)
    with pytest.raises(BackendError, match="describes another graph"):
        TensorRtSession(engine, module(SOME), cuda, inputs=reference.inputs, outputs=other)
    assert not cuda.memory


def test_what_tensorrt_refuses_while_running_is_an_engine_error() -> None:
    with sum_session() as session:
        engine_of(session)._fails = True
        with pytest.raises(EngineError, match="execute_async_v3"):
            session.run({"x": x_of(1), "bank": bank_of(0)})
        engine_of(session)._fails = False
        np.testing.assert_array_equal(session.run({"x": x_of(1), "bank": bank_of(1)})["y"], x_of(1, 2))


def test_what_cannot_be_captured_runs_without_a_graph_and_says_so() -> None:
    with sum_session() as session:
        engine_of(session)._cannot_capture = True
        for value in (1, 2):
            y = session.run({"x": x_of(2, value), "bank": bank_of(1)})["y"]
            np.testing.assert_array_equal(y, x_of(2, value + 1))
        assert "no CUDA graphs (execute_async_v3 failed" in session.backend
        assert not cuda_of(session).captures


class Impatient(SimulatedCuda):
    """Comes back from `synchronise` before the work is done."""

    def synchronise(self, stream: int) -> None:
        if len(self.queue(stream)) <= 1:
            super().synchronise(stream)


def careless(name: str) -> tuple[type[SimulatedCuda], type[TensorRtSession]]:
    """A session with one mistake."""

    class Careless(TensorRtSession):
        pass

    def on_the_default_stream(self: Any, context: Any, log: Any) -> None:
        context.execute_async_v3(0)

    def without_warm_up(self: Any, key: Any, log: Any) -> Any:
        execute, self._execute = self._execute, lambda context, log: None
        captured = self._captured

        def capture(context: Any, log: Any) -> Any:
            self._execute = execute
            return captured(context, log)

        self._captured = capture
        return TensorRtSession._prepare(self, key, log)

    def too_soon(self: Any, spec: Any, array: Array) -> int:
        pointer = TensorRtSession._fed(self, spec, array)
        self._buffers[spec.name].host[:] = 0  # the copy has not happened yet
        return pointer

    def freed(self: Any, spec: Any, array: Array) -> int:
        pointer = TensorRtSession._fed(self, spec, array)
        self._driver.synchronise(self._stream)
        self._driver.free(pointer)
        return pointer

    mistakes: dict[str, dict[str, Any]] = {
        "default stream": {"_execute": on_the_default_stream},
        "capture without warm-up": {"_prepare": without_warm_up},
        "input buffer reused too soon": {"_fed": too_soon},
        "freed memory": {"_fed": freed},
        "results read too soon": {},
    }
    for attribute, mistake in mistakes[name].items():
        setattr(Careless, attribute, mistake)
    return (Impatient if name == "results read too soon" else SimulatedCuda), Careless


@pytest.mark.parametrize(
    "name",
    [
        "default stream",
        "capture without warm-up",
        "input buffer reused too soon",
        "freed memory",
        "results read too soon",
    ],
)
def test_the_simulation_catches(name: str) -> None:
    """Else the laws above would prove nothing."""
    cuda_class, session_class = careless(name)
    cuda = cuda_class()
    session = session_class(Engine(SOME, sum_graph(), SUM_RANGES, cuda), module(SOME), cuda)

    def run() -> None:
        y = session.run({"x": x_of(2), "bank": bank_of(1, frozen=False)})["y"]
        np.testing.assert_array_equal(y, x_of(2, 2))

    with pytest.raises(AssertionError):
        run()


def test_the_simulation_has_the_names_of_its_version_alone() -> None:
    engine = Engine("11.0.0.114", TOY, TOY_RANGES, SimulatedCuda())
    for gone in ("device_memory_size", "num_bindings"):
        with pytest.raises(AttributeError, match=gone):
            getattr(engine, gone)


def test_two_streams_on_one_memory_are_a_violation() -> None:
    cuda = SimulatedCuda()
    with cuda.current():
        first, second, pointer, array = cuda.stream(), cuda.stream(), cuda.allocate(12), x_of(1)
        cuda.copy_to_device(pointer, array, first)
        with pytest.raises(Violation, match="races"):
            cuda.copy_to_host(array, pointer, second)


def test_axes_of_unknown_range_are_refused() -> None:
    with pytest.raises(EngineError, match=r"'height'.*batch, views"):
        tensorrt.profiles_for(graph_of(TensorSpec("image", "uint8", ("batch", "height", 3))))
    assert tensorrt.profiles_for(graph_of(TensorSpec("image", "uint8", (1, 480, 3)))) == ()


def graph_of(*inputs: TensorSpec) -> GraphEntry:
    return GraphEntry("pose", {}, inputs, ())


@pytest.mark.parametrize("search", get_args(Search))
def test_a_matcher_is_built_for_the_banks_that_it_has(search: Search) -> None:
    bank = [TensorSpec(name, "float32", ("views",)) for name in MATCHED[search]]
    graph = graph_of(TensorSpec("descriptors", "float32", ("batch", 4, 8)), *bank)
    (ranges,) = tensorrt.profiles_for(replace(graph, views=5832))
    assert ranges["views"] == AxisRange(MIN_VIEWS[search], 5832, 5832)
    (ranges,) = tensorrt.profiles_for(graph)
    assert ranges["views"].max == DEFAULT_VIEWS


class Builds:
    """Stands for the builder: a plan is the graph, and opening it gives a simulated engine."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cuda: SimulatedCuda) -> None:
        self.options: list[BuildOptions] = []
        monkeypatch.setattr(tensorrt, "build_plan", self.build)
        monkeypatch.setattr(tensorrt, "engine_from_plan", lambda flavour, plan: Engine(SOME, plan, TOY_RANGES, cuda))
        monkeypatch.setattr(api, "tensorrt_module", lambda flavour: module(SOME))

    def build(self, graph: bytes, inputs: Any, options: BuildOptions) -> BuiltPlan:
        self.options.append(options)
        return BuiltPlan(bytes(graph), BuildReport("Simulation", SOME, 0.1, len(graph), "0" * 64, ()))


def test_an_engine_is_built_once_per_gpu_and_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reference: OrtSession
) -> None:
    specs, cache, crops = (reference.inputs, reference.outputs), EngineCache(tmp_path), toy_precisions.feed(2)
    one, other = SimulatedCuda(), SimulatedCuda()
    other.device = replace(other.device, name="Another GPU", sm=89)
    built, origins = [], []
    for driver in (one, one, other):
        builds = Builds(monkeypatch, driver)
        session = tensorrt.open_session(TOY, GraphEntry("pose", {}, *specs), "tensorrt", driver=driver, cache=cache)
        origins.append(cast(TensorRtSession, session).engine_origin.split()[0])
        np.testing.assert_array_equal(session.run(crops)["pose"], reference.run(crops)["pose"])
        session.close()
        built.append(len(builds.options))
    assert built == [1, 0, 1]
    assert origins == ["built:", "found", "built:"]
    assert {entry.record.key.device for entry in cache.entries()} == {
        Device("Simulated GPU", "8.7", l4t()),
        Device("Another GPU", "8.9", l4t()),
    }


def test_rtx_compiles_for_the_gpu_that_is_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reference: OrtSession
) -> None:
    gpu = SimulatedCuda()
    builds = Builds(monkeypatch, gpu)
    specs = (reference.inputs, reference.outputs)
    tensorrt.open_session(TOY, GraphEntry("pose", {}, *specs), "rtx", driver=gpu, cache=EngineCache(tmp_path)).close()
    (options,) = builds.options
    assert options.compute_capabilities == (87,)
    assert options.profiles[0]["batch"].max >= DEFAULT_CROPS_PER_PASS[-1]


def test_without_a_gpu_nothing_is_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_gpu() -> Any:
        raise BackendError("CUDA", got="no libcuda", expected="an NVIDIA driver", remedy="Install it.")

    builds = Builds(monkeypatch, SimulatedCuda())
    monkeypatch.setattr(cuda, "open_driver", no_gpu)
    with pytest.raises(BackendError, match="no libcuda"):
        tensorrt.open_session(TOY, graph_of(), "tensorrt", cache=EngineCache(tmp_path))
    assert not builds.options


@pytest.fixture(params=["tensorrt", "rtx"])
def flavour(request: pytest.FixtureRequest) -> Any:
    why_not = next(row.missing() for row in BACKENDS.values() if row.engine == request.param)
    if why_not:
        pytest.skip(why_not)
    return request.param


@pytest.mark.gpu
@pytest.mark.parametrize("precision", toy_precisions.PRECISIONS)
def test_on_a_real_gpu(flavour: Any, precision: str, tmp_path: Path) -> None:
    ranges = toy_precisions.measured_ranges(toy_precisions.network(), toy_precisions.feed(16, seed=9))
    graph = toy_precisions.network(precision, ranges).SerializeToString()
    reference = OrtSession(graph, threads=1)
    specs = (reference.inputs, reference.outputs)
    cache = EngineCache(tmp_path)
    with cast(
        TensorRtSession, tensorrt.open_session(graph, GraphEntry("pose", {}, *specs), flavour, cache=cache)
    ) as session:
        for batch in (1, 3, 8, 1):
            crops = toy_precisions.feed(batch)
            got, wanted = (cast(Array, s.run(crops)["pose"]) for s in (session, reference))
            assert np.abs(got - wanted).max() < 2e-2
        assert session.backend.endswith("CUDA graphs")
        assert all(ms > 0 for ms in session.stage_ms().values())
