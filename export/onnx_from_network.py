"""From an nn.Module to one ONNX file: exported, cleaned, checked, simplified, and compared with its source."""

from __future__ import annotations

import hashlib
import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from onnx import ModelProto
from torch import Tensor, nn

from posekit.export.example_feed import EXAMPLE_SIZES, example_feed
from posekit.export.onnx_graph import MAX_BYTES, OPSET, check_graph, name_nodes, refused, specs_from_graph, strip_origin
from posekit.export.onnx_simplify import simplified
from posekit.export.parity import ParityReport, check_parity
from posekit.export.precision.half import HalfNetwork
from posekit.export.precision.half_check import HalfReport, check_half
from posekit.export.precision.half_graph import sensitive_in_float32
from posekit.export.row_parity import checked_rows
from posekit.export.systems import GraphSource
from posekit.runtime.atomic import write_whole
from posekit.runtime.backends import BACKENDS
from posekit.runtime.backends.ort import OrtSession
from posekit.runtime.errors import BackendError, ExportError
from posekit.runtime.manifest import GraphEntry
from posekit.runtime.session import Session
from posekit.runtime.tensor import Feed, TensorSpec

# What ends the whole process when a backend reads it (seen with OpenVINO 2026.4).
DEADLY: dict[str, set[str]] = {"openvino": {"DFT"}}


@dataclass(frozen=True)
class ExportedGraph:
    """One graph, written and verified.  simplification: what onnxsim did, or why its graph is not used.

    half: of a float16 source, what really is float16.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    nodes: int
    size: int
    sha256: str
    seconds: float
    simplification: str
    parity: ParityReport
    half: HalfReport | None = None


def onnx_from_network(
    source: GraphSource, path: Path, *, opset: int = OPSET, simplify: bool = True, crops: Feed | None = None
) -> ExportedGraph:
    """Export to `path`, whole or not at all. Equal weights give equal bytes. crops: real ones for `check_parity`.

    A source of posekit.export.precision.half is checked for what it claims besides. Raises ExportError for a network that
    cannot be traced or a graph that breaks the contract, ParityError for other numbers than the network's,
    PrecisionError, OutputError.
    """
    start = time.perf_counter()
    source.module.eval()
    _check_names(source)
    rows = checked_rows(source, crops=crops)

    def check(model: ModelProto) -> None:
        strip_origin(model)
        check_graph(model, source.inputs, source.outputs, opset)

    model = _traced(source, opset)
    half = isinstance(source.module, HalfNetwork)
    name_nodes(model, "module.network" if half else "module")
    check(model)
    if half and sensitive_in_float32(model):
        check(model)
    how = "not simplified: not asked for"
    if simplify:
        model, how = simplified(model, source.inputs, check)
    report = check_half(model, source) if half else None
    content = model.SerializeToString(deterministic=True)
    with closing(OrtSession(content)) as session:
        parity = check_parity(source, session, crops=crops)
        if rows:
            rows.check(session)
    if rows:
        for other in _other_sessions(source, model, content):
            with closing(other):
                rows.check(other)
    write_whole(path, content)
    inputs, outputs = specs_from_graph(model)
    digest = hashlib.sha256(content).hexdigest()
    seconds = time.perf_counter() - start
    return ExportedGraph(inputs, outputs, len(model.graph.node), len(content), digest, seconds, how, parity, report)


def _other_sessions(source: GraphSource, model: ModelProto, content: bytes) -> Iterator[Session]:
    """On the backends of this machine beside the one above; those that build engines have their turn in verification."""
    entry = GraphEntry(source.role, {source.precision: ""}, *specs_from_graph(model))
    operators = {node.op_type for node in model.graph.node}
    for name, backend in BACKENDS.items():
        takes_it = backend.engine is None and source.precision in backend.precisions
        if name == "onnxruntime" or not takes_it or operators & DEADLY.get(name, set()) or backend.missing():
            continue
        try:
            session = backend.open(memoryview(content), entry, None)
        except BackendError:  # whoever wants that backend is told when they open the bundle on it
            continue
        yield session


class _Positional(nn.Module):
    """The one signature that the exporter sees, whatever the names and defaults of the network's own."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *feeds: Tensor) -> object:
        return self.module(*feeds)


def _traced(source: GraphSource, opset: int) -> ModelProto:
    feed = example_feed(source.inputs, EXAMPLE_SIZES)
    axes = tuple({i: n for i, n in enumerate(spec.shape) if isinstance(n, str)} for spec in source.inputs)
    try:
        with silence():
            program = torch.onnx.export(
                _Positional(source.module).eval(),
                tuple(torch.from_numpy(feed[spec.name]) for spec in source.inputs),
                dynamo=True,
                external_data=False,
                verbose=False,
                opset_version=opset,
                input_names=[spec.name for spec in source.inputs],
                output_names=list(source.outputs),
                dynamic_shapes=(axes,),
                custom_translation_table={torch.ops.aten.threshold.default: _threshold},
            )
            assert program is not None
            model = program.model_proto
    except Exception as error:  # the exporter runs the user's forward, which may raise anything
        raise ExportError(
            f"export of the {source.role} graph",
            got=_root_cause(error),
            expected="a network that torch.export can trace",
            remedy="Avoid control flow and shapes that depend on values; run forward once in eval mode.",
        ) from error
    if model.ByteSize() > MAX_BYTES:
        raise refused(f"{model.ByteSize()} bytes", f"at most {MAX_BYTES}", "Export a smaller network.")
    return model


def _threshold(x: Any, threshold: float, value: float) -> Any:
    """One node where torch's exporter has a comparison and a selection: ONNX Runtime takes a tenth of their time for it."""
    from onnxscript import opset19

    ops: Any = opset19
    if value == 0:
        return ops.ThresholdedRelu(x, alpha=float(threshold))
    limit, instead = (ops.CastLike(ops.Constant(value_float=float(number)), x) for number in (threshold, value))
    return ops.Where(ops.Greater(x, limit), x, instead)


def _check_names(source: GraphSource) -> None:
    """An output that is called like a parameter makes an invalid graph (seen with torch 2.13)."""
    taken = {name for name, _ in (*source.module.named_parameters(), *source.module.named_buffers())}
    taken |= {spec.name for spec in source.inputs}
    clash = sorted(taken & set(source.outputs))
    if clash or len(set(source.outputs)) != len(source.outputs):
        raise ExportError(
            f"outputs of the {source.role} graph",
            got=f"{clash[0]!r}, which is also a parameter or input" if clash else f"a name twice in {source.outputs}",
            expected="names of their own",
            remedy="Rename the parameter or the output.",
        )


@contextmanager
def silence() -> Iterator[None]:
    """Without what torch and its exporter warn and log about: checks of what came out decide."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"
