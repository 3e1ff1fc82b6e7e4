"""TensorRT and TensorRT-RTX: an engine on its own stream, with named tensors, fixed buffers and one CUDA graph per batch.

Rules that the runtime documents and that hold everywhere here: the default stream is never used; a captured graph is
bound to its context, shapes and addresses, so every graph has a context of its own, and all of them share one scratch
memory because only one runs at a time; the first enqueue of a context is never captured.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from posekit.runtime import cuda
from posekit.runtime.backends.declared import as_declared
from posekit.runtime.backends.opened import OpenedSession
from posekit.runtime.backends.resident import Array, Residents, unchanging
from posekit.runtime.bank import MIN_VIEWS, search_of
from posekit.runtime.cuda.driver import Bytes, Driver
from posekit.runtime.engines import api
from posekit.runtime.engines.api import FlavourName, Log, listening
from posekit.runtime.engines.build import build_plan
from posekit.runtime.engines.cache import Device, EngineCache, EngineKey
from posekit.runtime.engines.causes import remedy_for
from posekit.runtime.engines.options import AxisRange, BuildOptions
from posekit.runtime.engines.plan import engine_from_plan
from posekit.runtime.errors import BackendError, EngineError, SpecError
from posekit.runtime.machine import l4t
from posekit.runtime.manifest import DEFAULT_CROPS_PER_PASS, DEFAULT_VIEWS, GraphEntry
from posekit.runtime.session import Session
from posekit.runtime.tensor import Feed, TensorSpec, written

if TYPE_CHECKING:
    from typing_extensions import Self

MAX_PREPARED = 32  # contexts with their graphs; the one prepared first goes first
DTYPES = {
    "FLOAT": "float32", "HALF": "float16", "INT8": "int8", "UINT8": "uint8", "INT32": "int32", "INT64": "int64",
    "BOOL": "bool",
}  # fmt: skip

Key = tuple[tuple[tuple[int, ...], int], ...]  # per input its shape and its address


@dataclass(frozen=True, eq=False)
class _Prepared:
    """A context with shapes and addresses set.  shapes: of the outputs.  graph: captured, or None."""

    context: Any
    shapes: dict[str, tuple[int, ...]]
    graph: int | None


@dataclass(frozen=True, eq=False)
class _Buffer:
    """The device's and the host's side of one tensor, as large as the profile allows."""

    pointer: int
    host: Bytes


class TensorRtSession(OpenedSession):
    """One engine on one GPU. Implements posekit.runtime.session.SharedSession; also a context manager.

    Inputs that cannot change (resident.py) are copied to the device once, all others at every run. Twins share the
    engine; stream, contexts, CUDA graphs and memory, a bank's on the device among it, are each one's own.
    """

    def __init__(
        self,
        engine: Any,
        module: Any,
        driver: Driver,
        *,
        inputs: Sequence[TensorSpec] = (),
        outputs: Sequence[TensorSpec] = (),
        engine_origin: str = "",
    ) -> None:
        """engine: opened from a plan by `module`, TensorRT or TensorRT-RTX.  inputs, outputs: as the manifest declares.
        engine_origin: a sentence, whether it was found or built.

        Raises BackendError: other tensors than declared, an output whose size depends on values, no memory.
        """
        self._engine, self._module, self._driver = engine, module, driver
        found = [_spec(engine, module, i) for i in range(engine.num_io_tensors)]
        title = f"{module.__name__} {module.__version__}, {driver.device.name} (SM{driver.device.sm})"
        modes = {s.name: engine.get_tensor_mode(s.name) for s in found}
        self._no_graphs = driver.no_graphs
        self.engine_origin = engine_origin
        super().__init__(
            as_declared([s for s in found if modes[s.name] == module.TensorIOMode.INPUT], inputs, title),
            as_declared([s for s in found if modes[s.name] == module.TensorIOMode.OUTPUT], outputs, title),
            f"{title}, {driver.provider}",
        )
        self._ranges = {s.name: engine.get_tensor_profile_shape(s.name, 0) for s in self._inputs}
        self._buffers: dict[str, _Buffer] = {}
        self._prepared: dict[Key, _Prepared] = {}
        self._residents: Residents[int] = Residents(self._free_resident)
        self._scratch = 0
        with driver.current(), listening(module) as log:
            self._stream = driver.stream()
            self._events = [driver.event() for _ in range(4)]
            try:
                self._scratch = driver.allocate(engine.device_memory_size_v2)
                largest = self._context({s.name: tuple(self._ranges[s.name][2]) for s in self._inputs}, log)
                for spec in self._outputs:
                    self._allocate(spec, self._output_shape(largest, spec.name))
            except BaseException:
                self.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def backend(self) -> str:
        return f"{self._backend}, " + (f"no CUDA graphs ({self._no_graphs})" if self._no_graphs else "CUDA graphs")

    def twin(self) -> TensorRtSession:
        """See OpenedSession.twin. Raises BackendError: closed, no memory."""
        self._check_open()
        specs = {"inputs": self._inputs, "outputs": self._outputs}
        return TensorRtSession(self._engine, self._module, self._driver, **specs, engine_origin=self.engine_origin)

    def _run(self, feed: Feed) -> dict[str, npt.NDArray[np.generic]]:
        """The next run writes into the same outputs."""
        self._check_ranges(feed)
        driver, (started, fed, computed, done) = self._driver, self._events
        with driver.current():
            driver.record(started, self._stream)
            key = tuple((feed[s.name].shape, self._fed(s, feed[s.name])) for s in self._inputs)
            driver.record(fed, self._stream)
            prepared = self._prepared.get(key)
            if prepared is None:
                with listening(self._module) as log:
                    prepared = self._prepare(key, log)
            self._enqueue(prepared)
            driver.record(computed, self._stream)
            results = {spec.name: self._fetched(spec, prepared.shapes[spec.name]) for spec in self._outputs}
            driver.record(done, self._stream)
            driver.synchronise(self._stream)
        return results

    def stage_ms(self) -> dict[str, float]:
        """GPU time of the last run by CUDA events: copies to the device, the network, copies back."""
        with self._driver.current():
            pairs = zip(("h2d", "gpu", "d2h"), self._events, self._events[1:], strict=False)
            return {name: self._driver.elapsed_ms(start, end) for name, start, end in pairs}

    def _release(self) -> None:
        """Graphs, contexts, device memory and the stream, and the engine if no twin has it.

        Host buffers go with the last array that looks into them, so results stay readable.
        """
        driver = self._driver
        with driver.current():
            driver.synchronise(self._stream)
            self._forget(list(self._prepared))
            self._residents.clear()
            for buffer in self._buffers.values():
                driver.free(buffer.pointer)
            if self._scratch:
                driver.free(self._scratch)
            for event in self._events:
                driver.destroy_event(event)
            driver.destroy_stream(self._stream)
        self._buffers = {}
        self._engine = None

    def _check_ranges(self, feed: Feed) -> None:
        for spec in self._inputs:
            smallest, _, largest = self._ranges[spec.name]
            shape = feed[spec.name].shape
            if not all(low <= n <= high for low, n, high in zip(smallest, shape, largest, strict=True)):
                raise SpecError(
                    f"input {spec.name!r}",
                    got=written(shape),
                    expected=f"{written(tuple(smallest))} to {written(tuple(largest))}, as the engine was built",
                    remedy="Feed it in several passes, or build the engine for a larger range.",
                )

    def _fed(self, spec: TensorSpec, array: Array) -> int:
        """Enqueue the copy of one input and say where it will be."""
        if unchanging(array):
            return self._residents.of(array, self._resident)
        buffer = self._buffers.get(spec.name) or self._allocate(spec, tuple(self._ranges[spec.name][2]))
        staged = _view(buffer.host, spec.dtype, array.shape)
        np.copyto(staged, array)
        self._driver.copy_to_device(buffer.pointer, staged, self._stream)
        return buffer.pointer

    def _resident(self, array: Array) -> int:
        pointer, plain = self._driver.allocate(array.nbytes), np.ascontiguousarray(array)
        self._driver.copy_to_device(pointer, plain, self._stream)
        self._driver.synchronise(self._stream)  # before `plain` goes
        return pointer

    def _free_resident(self, pointer: int) -> None:
        """Of a resident whose array is gone; what was captured with its address goes too."""
        self._forget([key for key in self._prepared if any(address == pointer for _, address in key)])
        self._driver.free(pointer)

    def _allocate(self, spec: TensorSpec, largest: Sequence[int]) -> _Buffer:
        size = int(np.prod(largest, dtype=np.int64)) * np.dtype(spec.dtype).itemsize
        host = self._driver.pinned(size)  # first: it goes by itself if there is no room for the other
        self._buffers[spec.name] = buffer = _Buffer(self._driver.allocate(size), host)
        return buffer

    def _context(self, shapes: dict[str, tuple[int, ...]], log: Log) -> Any:
        """A context on the shared scratch memory, with its shapes set."""
        context = self._engine.create_execution_context(self._module.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            raise self._failed("create_execution_context", log)
        context.set_device_memory(self._scratch, self._engine.device_memory_size_v2)
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise self._failed(f"set_input_shape of {name!r} to {shape}", log)
        if unset := context.infer_shapes():
            raise self._failed(f"infer_shapes without {', '.join(unset)}", log)
        return context

    def _output_shape(self, context: Any, name: str) -> tuple[int, ...]:
        shape = tuple(context.get_tensor_shape(name))
        if min(shape, default=0) < 0:
            raise BackendError(
                f"output {name!r} on {self._backend}",
                got=f"the shape {written(shape)}, known only after running",
                expected="a shape that follows from the inputs' shapes",
                remedy="Export the graph without NonZero and NonMaxSuppression: a fixed TopK instead.",
            )
        return shape

    def _prepare(self, key: Key, log: Log) -> _Prepared:
        """Set up these shapes and addresses, run once, and capture the second run."""
        self._forget(list(self._prepared)[: max(0, len(self._prepared) + 1 - MAX_PREPARED)])
        names = [spec.name for spec in self._inputs]
        context = self._context({name: shape for name, (shape, _) in zip(names, key, strict=True)}, log)
        addresses = {name: address for name, (_, address) in zip(names, key, strict=True)}
        addresses |= {spec.name: self._buffers[spec.name].pointer for spec in self._outputs}
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise self._failed(f"set_tensor_address of {name!r}", log)
        shapes = {spec.name: self._output_shape(context, spec.name) for spec in self._outputs}
        self._execute(context, log)
        self._driver.synchronise(self._stream)
        prepared = _Prepared(context, shapes, None if self._no_graphs else self._captured(context, log))
        self._prepared[key] = prepared
        return prepared

    def _captured(self, context: Any, log: Log) -> int | None:
        """None for what cannot be captured; `backend` says so from then on."""
        problems: list[BackendError] = []
        graph = None
        self._driver.begin_capture(self._stream)
        try:
            self._execute(context, log)
        except BackendError as error:
            problems.append(error)
        try:
            graph = self._driver.end_capture(self._stream)
        except BackendError as error:
            problems.append(error)
        if problems:
            self._no_graphs = problems[0].got
        return graph if not problems else None

    def _enqueue(self, prepared: _Prepared) -> None:
        if prepared.graph is not None:
            self._driver.launch(prepared.graph, self._stream)
            return
        with listening(self._module) as log:
            self._execute(prepared.context, log)

    def _execute(self, context: Any, log: Log) -> None:
        if not context.execute_async_v3(self._stream):
            raise self._failed("execute_async_v3", log)

    def _fetched(self, spec: TensorSpec, shape: tuple[int, ...]) -> Array:
        """Enqueue the copy of one output; the array holds it after `synchronise`."""
        buffer = self._buffers[spec.name]
        array = _view(buffer.host, spec.dtype, shape)
        self._driver.copy_to_host(array, buffer.pointer, self._stream)
        return array

    def _forget(self, keys: list[Key]) -> None:
        for key in keys:
            graph = self._prepared.pop(key).graph
            if graph is not None:
                self._driver.destroy_graph(graph)

    def _failed(self, what: str, log: Log) -> EngineError:
        return EngineError(
            self._backend, got=f"{what} failed: {log.errors}", expected="success", remedy=remedy_for(log.errors)
        )


def open_session(
    model: bytes | memoryview,
    graph: GraphEntry,
    flavour: FlavourName,
    *,
    driver: Driver | None = None,
    cache: EngineCache | None = None,
) -> Session:
    """The engine of an ONNX graph for the GPU that is here, built if it is not cached, on a session.

    graph: as the manifest declares it.  driver, cache: defaults are `cuda.open_driver` and the user's cache.
    Raises BackendError (no driver, no GPU) and EngineError (what TensorRT refuses, in its words).
    """
    driver = driver or cuda.open_driver()  # first: without a GPU nothing needs to be built
    module = api.tensorrt_module(flavour)
    key = key_for(model, graph, flavour, driver)
    with driver.current():
        cached = (cache or EngineCache()).plan_for(key, partial(build_plan, model, graph.inputs, key.options))
        engine = engine_from_plan(flavour, cached.plan)
    declared = {"inputs": graph.inputs, "outputs": graph.outputs}
    return TensorRtSession(engine, module, driver, **declared, engine_origin=cached.reason)


def key_for(model: bytes | memoryview, graph: GraphEntry, flavour: FlavourName, driver: Driver) -> EngineKey:
    """What `open_session` looks its engine up by. Raises EngineError: no such module, an axis of unknown range."""
    ahead_of_time = api.FLAVOURS[flavour].ahead_of_time
    options = BuildOptions(
        flavour,
        profiles=profiles_for(graph),
        compute_capabilities=(driver.device.sm,) if ahead_of_time else (),
    )
    version = api.tensorrt_module(flavour).__version__
    graph_sha256 = hashlib.sha256(model).hexdigest()
    return EngineKey(graph_sha256, options, version, None if ahead_of_time else _device(driver))


def profiles_for(graph: GraphEntry) -> tuple[dict[str, AxisRange], ...]:
    """What an engine is built for: a range per dynamic axis; none for a static graph. EngineError for an unknown axis."""
    fewest, most = MIN_VIEWS[search_of(graph.inputs)], graph.views or DEFAULT_VIEWS
    crops = AxisRange(*(graph.crops_per_pass or DEFAULT_CROPS_PER_PASS))
    ranges = {"batch": crops, "views": AxisRange(fewest, most, most)}
    axes = dict.fromkeys(axis for spec in graph.inputs for axis in spec.shape if isinstance(axis, str))
    unknown = [axis for axis in axes if axis not in ranges]
    if unknown:
        raise EngineError(
            f"dynamic axis {unknown[0]!r}",
            got="an axis of unknown range",
            expected=f"one of {', '.join(ranges)}",
            remedy="Export the graph with that axis static, or run it on another backend.",
        )
    return ({axis: ranges[axis] for axis in axes},) if axes else ()


def _device(driver: Driver) -> Device:
    sm = driver.device.sm
    return Device(driver.device.name, f"{sm // 10}.{sm % 10}", l4t())


def _spec(engine: Any, module: Any, index: int) -> TensorSpec:
    name = engine.get_tensor_name(index)
    dtype, where = engine.get_tensor_dtype(name).name, engine.get_tensor_location(name)
    if dtype not in DTYPES or where != module.TensorLocation.DEVICE:
        raise EngineError(
            f"engine tensor {name!r}",
            got=f"{dtype} in {where.name}",
            expected=f"one of {', '.join(DTYPES)} in DEVICE",
            remedy="Export a graph whose inputs and outputs are plain tensors.",
        )
    shape = enumerate(engine.get_tensor_shape(name))
    return TensorSpec(name, DTYPES[dtype], tuple(f"{name}_{i}" if n < 0 else n for i, n in shape))


def _view(memory: Bytes, dtype: str, shape: Sequence[int]) -> Array:
    count = int(np.prod(shape, dtype=np.int64))
    return memory[: count * np.dtype(dtype).itemsize].view(dtype).reshape(shape)
