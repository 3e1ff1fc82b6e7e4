"""OpenVINO: the fast CPU backend. Reads the fp32, fp16 and int8 graphs as they are; one compiled model for all batches."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from posekit.runtime.backends.compiled import CompiledCache, Unusable
from posekit.runtime.backends.declared import as_declared
from posekit.runtime.backends.opened import OpenedSession
from posekit.runtime.backends.resident import Array, Residents, unchanging
from posekit.runtime.errors import BackendError
from posekit.runtime.machine import saturates_int8
from posekit.runtime.manifest import DTYPES, Precision
from posekit.runtime.tensor import Feed, TensorSpec

REMEDY_INSTALL = "pip install 'posekit[openvino]'"
DEVICE = "CPU"
Arithmetic = Literal["f32", "bf16"]  # f16 would be computed by emulation: measured 5x and far more slower
# Pinned threads wait for their own core although another is free: on a busy machine a toy took 87 ms instead of 0.24,
# on a quiet one both take the same. Several sessions would also be pinned to the same cores.
ON_A_SHARED_CPU: dict[str, Any] = {"ENABLE_CPU_PINNING": False}
PRODUCTS = {"Convolution", "Deconvolution", "FullyConnected", "MatMul"}  # where the time goes, by OpenVINO's names
INT8 = {"i8", "u8"}


class OpenVinoSession(OpenedSession):
    """One graph on OpenVINO's CPU device. Implements posekit.runtime.session.SharedSession.

    Writable inputs are read where they are; inputs that cannot change are taken over once (resident.py). Twins share
    the compiled graph and what was taken over; each has its own infer request.
    """

    def __init__(
        self,
        model: bytes | memoryview | Path,
        *,
        inputs: Sequence[TensorSpec] = (),
        outputs: Sequence[TensorSpec] = (),
        threads: int | None = None,
        arithmetic: Arithmetic = "f32",
        cache: CompiledCache | None = None,
    ) -> None:
        """model: an ONNX graph or its path.  inputs, outputs: as the manifest declares them, checked and kept.

        threads: None leaves it to OpenVINO.  arithmetic: of everything that the graph does not quantise; bf16 has 8
        bits of mantissa and is refused where the CPU has no instructions for it.  cache: of what was compiled before;
        `engine_origin` says whether it was found. Raises BackendError.
        """
        self._openvino = openvino = imported_openvino()
        core = openvino.Core()
        _check_arithmetic(core, arithmetic)
        wanted = {**ON_A_SHARED_CPU, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": arithmetic}
        if threads is not None:
            wanted["INFERENCE_NUM_THREADS"] = threads
        try:
            content = model.read_bytes() if isinstance(model, Path) else bytes(model)
            compiled, self.engine_origin = _compiled(core, content, wanted, cache)
            found_inputs = [_spec(port) for port in compiled.inputs]
            found_outputs = [_spec(port) for port in compiled.outputs]
        except (OSError, RuntimeError, ValueError, TypeError) as error:
            raise BackendError(
                "OpenVINO",
                got=_reason(error),
                expected="a graph it can load",
                remedy="Check the file, or choose the backend onnxruntime.",
            ) from error
        title = f"OpenVINO {openvino.__version__.split('-')[0]}, {_really(core, compiled, arithmetic)}"
        super().__init__(as_declared(found_inputs, inputs, title), as_declared(found_outputs, outputs, title), title)
        self._input_index = {spec.name: i for i, spec in enumerate(found_inputs)}
        self._output_index = {spec.name: i for i, spec in enumerate(found_outputs)}
        self._compiled: Any = compiled
        self._residents: Residents[Any] = Residents()
        self._own()

    def _own(self) -> None:
        self._request: Any = self._compiled.create_infer_request()
        self._buffers = {spec.name: np.empty(0, spec.dtype) for spec in self._outputs}

    def _run(self, feed: Feed) -> dict[str, npt.NDArray[np.generic]]:
        """The next run writes into the same outputs."""
        try:
            tensors = {name: self._tensor(feed[name]) for name in self._input_index}  # alive until the run is over
            for name, index in self._input_index.items():
                self._request.set_input_tensor(index, tensors[name])
            self._request.infer(share_outputs=True)
            return {spec.name: self._output(spec.name) for spec in self._outputs}
        except (RuntimeError, ValueError, TypeError) as error:
            raise BackendError(
                self._backend,
                got=_reason(error),
                expected="a finished run",
                remedy="Feed a smaller batch if memory ran out; otherwise report the graph.",
            ) from error

    def _release(self) -> None:
        self._compiled = self._request = None
        self._residents = Residents()

    def _tensor(self, array: Array) -> Any:
        if array.flags.writeable:
            return self._openvino.Tensor(np.require(array, requirements=["C", "A"]), shared_memory=True)
        return self._residents.of(array, self._copied) if unchanging(array) else self._copied(array)

    def _copied(self, array: Array) -> Any:
        """OpenVINO takes no read-only memory."""
        return self._openvino.Tensor(np.ascontiguousarray(array))

    def _output(self, name: str) -> Array:
        """Copied out of memory that OpenVINO may move when the batch grows; into a buffer that is made once."""
        result: Array = self._request.get_output_tensor(self._output_index[name]).data
        if self._buffers[name].size < result.size:
            self._buffers[name] = np.empty(result.size, result.dtype)
        out = self._buffers[name][: result.size].reshape(result.shape)
        np.copyto(out, result)
        return out


def missing() -> str | None:
    """Why OpenVINO cannot run here, or None. Looks, does not import."""
    return None if find_spec("openvino") else f"the package openvino is not installed ({REMEDY_INSTALL})"


@cache
def unfit(precision: Precision) -> str | None:
    """Say why OpenVINO gives wrong numbers for a precision on this machine, or None where it gives the graph's own."""
    if platform.machine() == "aarch64":
        return (
            "its answers on aarch64 are not the graph's: a bank's scores were off by 0.1, boxes by 0.01 px (2026.4.1)"
        )
    if precision == "int8" and saturates_int8():
        return "int8 products overflow on this processor (x86 without VNNI), and its answers are wrong"
    return None


def imported_openvino() -> Any:
    """The module, or BackendError with the line that installs it."""
    try:
        import openvino
    except (ImportError, OSError) as error:
        raise BackendError(
            "OpenVINO", got=error, expected="the package openvino", remedy=f"Install it: {REMEDY_INSTALL}"
        ) from error
    return openvino


def _compiled(core: Any, model: bytes, wanted: dict[str, Any], cache: CompiledCache | None) -> tuple[Any, str]:
    """The compiled graph, and a sentence on where it is from; an empty one without a cache."""
    if cache is None:
        return core.compile_model(core.read_model(model), DEVICE, wanted), ""
    made_of = {
        "graph_sha256": hashlib.sha256(model).hexdigest(),
        "openvino": imported_openvino().__version__,
        "cpu": [core.get_property(DEVICE, name) for name in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")],
        "cpus": os.cpu_count(),
        "properties": wanted,
    }
    path = cache.path(made_of)
    try:
        return core.import_model(cache.found(path), DEVICE, wanted), f"found {path}."
    except Unusable as problem:
        why = str(problem)
    except RuntimeError as error:
        why = f"OpenVINO refuses {path} ({_reason(error)})"
    compiled = core.compile_model(core.read_model(model), DEVICE, wanted)
    stream = BytesIO()
    try:
        compiled.export_model(stream)
    except RuntimeError as error:
        return compiled, f"compiled: {why}. Not kept: {_reason(error)}."
    return compiled, f"compiled: {why}. {cache.keep(path, stream.getvalue())}"


def _check_arithmetic(core: Any, arithmetic: Arithmetic) -> None:
    able = [name.lower() for name in core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")]
    known = {"f32": True, "bf16": "bf16" in able}
    if not known.get(arithmetic, False):
        raise BackendError(
            "OpenVINO arithmetic",
            got=arithmetic,
            expected=" or ".join(name for name, possible in known.items() if possible),
            remedy="This CPU would emulate anything else, slowly: leave it at f32.",
        )


def _really(core: Any, compiled: Any, arithmetic: Arithmetic) -> str:
    """What was compiled, asked of OpenVINO itself. BackendError if it is not what was wanted."""
    devices = compiled.get_property("EXECUTION_DEVICES")
    got = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if devices != [DEVICE] or got != arithmetic:
        raise BackendError(
            "OpenVINO", got=f"{devices} in {got}", expected=f"{DEVICE} in {arithmetic}", remedy="Report this machine."
        )
    threads = compiled.get_property("INFERENCE_NUM_THREADS")
    text = f"{core.get_property(DEVICE, 'FULL_DEVICE_NAME')}, {got}, threads {threads}"
    kinds = _product_kinds(compiled)
    in_int8 = sum(kind in INT8 for kind in kinds)
    return text + (f", {in_int8} of {len(kinds)} products in int8" if in_int8 else "")


def _product_kinds(compiled: Any) -> list[str]:
    """Element type that each convolution and matrix product computes in, read from the compiled kernels."""
    kernels = [operation.get_rt_info() for operation in compiled.get_runtime_model().get_ops()]
    return [k["runtimePrecision"].astype(str) for k in kernels if k["layerType"].astype(str) in PRODUCTS]


def _spec(port: Any) -> TensorSpec:
    """Of the graph's edge, whose node is named as in the file; results carry a suffix. A port may have several names."""
    name = port.get_node().get_friendly_name().removesuffix("/sink_port_0")
    dtype = port.get_element_type().to_dtype().name
    if dtype not in DTYPES or port.get_partial_shape().rank.is_dynamic:
        raise BackendError(
            f"graph tensor {name!r}",
            got=f"{port.get_element_type()} of shape {port.get_partial_shape()}",
            expected=f"a known rank and one of {', '.join(DTYPES)}",
            remedy="Export a graph whose inputs and outputs are plain tensors.",
        )
    sizes = enumerate(port.get_partial_shape())
    return TensorSpec(name, dtype, tuple(f"{name}_{i}" if n.is_dynamic else n.get_length() for i, n in sizes))


def _reason(error: Exception) -> str:
    """OpenVINO's messages begin with the places in its source that they came through."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(("Exception from ", "Check '"))] or lines or [""]
    return f"{type(error).__name__}: {' '.join(told)[:300]}"
