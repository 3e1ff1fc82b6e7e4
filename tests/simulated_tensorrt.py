"""TensorRT's runtime as strict as its documentation: each version has its own names, and ONNX Runtime as its GPU.

Only what `tests/golden/trt_api_names.json` lists for the version can be reached. Work goes through simulated_cuda.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
from simulated_cuda import Operation, SimulatedCuda, Violation

from posekit.runtime.engines.api import API

NAMES: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "golden" / "trt_api_names.json").read_text())
VERSIONS = tuple(NAMES)
KINDS = {
    "tensor(float)": "FLOAT", "tensor(float16)": "HALF", "tensor(uint8)": "UINT8", "tensor(int8)": "INT8",
    "tensor(int64)": "INT64", "tensor(int32)": "INT32", "tensor(bool)": "BOOL",
}  # fmt: skip
Ranges = Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
SCRATCH_BYTES = 4096


def module(version: str) -> Any:
    """What `import tensorrt` gives: enumerations with this version's integers, and a logger to derive from."""
    table = NAMES[version]
    found = SimpleNamespace(__name__=f"simulated_tensorrt_{version}", __version__=version.removeprefix("rtx-"))
    for name in ("DataType", "TensorIOMode", "TensorLocation", "ExecutionContextAllocationStrategy"):
        setattr(found, name, enum.IntEnum(name, table[name]))
    found.ILogger = type("ILogger", (), {"__init__": lambda self: None})
    return found


class _Listed:
    """Public names that the version does not list do not exist, nor those that posekit does not say it uses."""

    _class_name = ""
    _version = ""

    def __getattribute__(self, name: str) -> Any:
        kind = object.__getattribute__(self, "_class_name")
        if not name.startswith("_") and name not in set(NAMES[self._version][kind]) & set(API[kind]):
            raise AttributeError(f"TensorRT {self._version} has no {kind}.{name}, or it is not in API")
        return object.__getattribute__(self, name)


class Engine(_Listed):
    """An ICudaEngine of one ONNX graph. ranges: of the inputs in profile 0.  data_dependent: outputs of unknown size."""

    _class_name = "ICudaEngine"

    def __init__(
        self,
        version: str,
        graph: bytes,
        ranges: Ranges,
        cuda: SimulatedCuda,
        *,
        data_dependent: frozenset[str] = frozenset(),
    ) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._version, self._cuda, self._ranges, self._data_dependent = version, cuda, ranges, data_dependent
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self._inputs = {i.name: i for i in self._session.get_inputs()}
        self._outputs = {o.name: o for o in self._session.get_outputs()}
        self._arguments = self._inputs | self._outputs
        self._module = module(version)
        self._fails = False  # the next enqueue
        self._cannot_capture = False

    @property
    def num_io_tensors(self) -> int:
        return len(self._arguments)

    @property
    def device_memory_size_v2(self) -> int:
        return SCRATCH_BYTES

    def get_tensor_name(self, index: int) -> str:
        return str(list(self._arguments)[index])

    def get_tensor_mode(self, name: str) -> Any:
        return self._module.TensorIOMode["INPUT" if name in self._inputs else "OUTPUT"]

    def get_tensor_dtype(self, name: str) -> Any:
        return self._module.DataType[KINDS[self._arguments[name].type]]

    def get_tensor_location(self, name: str) -> Any:
        return self._module.TensorLocation.DEVICE

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(n if isinstance(n, int) else -1 for n in self._arguments[name].shape)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        fixed = self.get_tensor_shape(name)
        return list(self._ranges.get(name, (fixed, fixed, fixed)))

    def create_execution_context(self, strategy: Any = None) -> Context:
        wanted = self._module.ExecutionContextAllocationStrategy.USER_MANAGED
        if int(strategy) != int(wanted):
            raise Violation("every context would take scratch memory of its own")
        return Context(self)

    def _dtype(self, name: str) -> np.dtype[Any]:
        names = {"FLOAT": "float32", "HALF": "float16", "BOOL": "bool"}
        kind = KINDS[self._arguments[name].type]
        return np.dtype(names.get(kind, kind.lower()))

    def _run(self, feed: dict[str, Any]) -> dict[str, Any]:
        return dict(zip(self._outputs, self._session.run(None, feed), strict=True))


class Context(_Listed):
    """An IExecutionContext. What was captured from it is void once it is changed."""

    _class_name = "IExecutionContext"

    def __init__(self, engine: Engine) -> None:
        self._version, self._engine, self._cuda = engine._version, engine, engine._cuda
        self._shapes: dict[str, tuple[int, ...]] = {n: s for n in engine._inputs if min(s := self._fixed(n)) >= 0}
        self._addresses: dict[str, int] = {}
        self._scratch: int | None = None
        self._state, self._warm = 0, -1

    def set_device_memory(self, pointer: int, size: int) -> None:
        if size < SCRATCH_BYTES or self._cuda.at(pointer).size < SCRATCH_BYTES:
            raise Violation(f"{size} bytes of scratch memory, {SCRATCH_BYTES} needed")
        self._scratch = pointer
        self._state += 1

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self._engine.get_tensor_profile_shape(name, 0)
        if len(low) != len(shape) or not all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True)):
            return False
        self._shapes[name] = tuple(shape)
        self._state += 1
        return True

    def infer_shapes(self) -> list[str]:
        return [name for name in self._engine._inputs if name not in self._shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        engine = self._engine
        if name in engine._inputs:
            return self._shapes.get(name, self._fixed(name))
        if name in engine._data_dependent or self.infer_shapes():
            return engine.get_tensor_shape(name)
        zeros = {n: np.zeros(self._shapes[n], engine._dtype(n)) for n in engine._inputs}
        return tuple(engine._run(zeros)[name].shape)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._cuda.at(address)
        if address % 256:
            raise Violation(f"address {address:#x} of {name} is not aligned to 256 bytes")
        self._addresses[name] = address
        self._state += 1
        return name in self._engine._arguments

    def execute_async_v3(self, stream: int) -> bool:
        engine, cuda = self._engine, self._cuda
        if engine._fails:
            return False
        if stream not in cuda.streams:
            raise Violation(f"enqueued on stream {stream}: the default one, or none")
        if self._scratch is None or self.infer_shapes() or set(self._addresses) != set(engine._arguments):
            raise Violation("enqueued without scratch memory, all shapes and all addresses")
        if stream in cuda.captures and engine._cannot_capture:
            return False
        if stream in cuda.captures and self._warm != self._state:
            raise Violation("captured the first enqueue after a change")
        self._warm = self._state
        shapes, addresses, state = dict(self._shapes), dict(self._addresses), self._state

        def do() -> None:
            if state != self._state:
                raise Violation("the context was changed before its work was done, or after it was captured")
            feed = {name: _value(cuda, addresses[name], engine._dtype(name), shapes[name]) for name in engine._inputs}
            for name, value in engine._run(feed).items():
                memory, content = cuda.at(addresses[name]), np.ascontiguousarray(value).reshape(-1).view(np.uint8)
                if content.size > memory.size:
                    raise Violation(f"output {name} needs {content.size} bytes, its buffer has {memory.size}")
                memory[: content.size] = content

        reads = frozenset(addresses[name] for name in engine._inputs)
        writes = frozenset([*(addresses[name] for name in engine._outputs), self._scratch])
        cuda.enqueue(stream, Operation("an enqueue", do, reads, writes))
        return True

    def _fixed(self, name: str) -> tuple[int, ...]:
        return self._engine.get_tensor_shape(name)


def _value(cuda: SimulatedCuda, address: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Any:
    size = int(np.prod(shape)) * dtype.itemsize
    memory = cuda.at(address)
    if memory.size < size:
        raise Violation(f"{size} bytes read from a buffer of {memory.size}")
    return memory[:size].copy().view(dtype).reshape(shape)
