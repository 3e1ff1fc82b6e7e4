"""Engines compiled ahead of time with TensorRT-RTX, GPU or no GPU, and their kernels held against the graphs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnx

from posekit.export.kernel_types import as_chosen, product_types
from posekit.runtime.backends.tensorrt import profiles_for
from posekit.runtime.bundle import Bundle
from posekit.runtime.engines.api import FlavourName, tensorrt_module
from posekit.runtime.engines.build import build_plan
from posekit.runtime.engines.cache import EngineCache, EngineKey
from posekit.runtime.engines.kernels import check_kernels
from posekit.runtime.engines.options import RTX_CAPABILITIES, BuildOptions
from posekit.runtime.manifest import Precision

FLAVOUR: FlavourName = "rtx"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class CompiledEngine:
    """One plan. kernels: number of convolutions and matrix products by the type that they multiply.

    seconds: of the build, whenever that was.  path: of the raw plan in the cache, None where it could not be kept.
    """

    graph: str
    precision: Precision
    compute_capability: int
    seconds: float
    size_bytes: int
    kernels: dict[str, int]
    path: Path | None
    reason: str


def compile_ahead(bundle: Bundle, progress: Progress, cache: EngineCache | None = None) -> tuple[CompiledEngine, ...]:
    """Compile every fp16 and int8 graph for every GPU that TensorRT-RTX knows, as a session there would ask for it.

    A plan per compute capability: in one for several, one list of kernels would speak for all. Plans that are in the
    cache are not built again. Raises EngineError for what cannot be compiled, and where a kernel has another number type
    than its graph says, or than the search for the nodes of an int8 file chose.
    """
    version: str = tensorrt_module(FLAVOUR).__version__
    store = cache or EngineCache()
    rows = [
        (graph, precision, capability)
        for graph, entry in bundle.manifest.graphs.items()
        for precision in entry.variants
        if precision != "fp32"
        for capability in RTX_CAPABILITIES
    ]
    chosen, compiled = chosen_nodes(bundle), []
    for done, (graph, precision, capability) in enumerate(rows):
        progress("engines", done, len(rows))
        nodes = chosen.get(graph) if precision == "int8" else None
        compiled.append(_compiled(bundle, graph, precision, capability, version, store, nodes))
    progress("engines", len(rows), len(rows))
    return tuple(compiled)


def chosen_nodes(bundle: Bundle) -> dict[str, tuple[str, ...]]:
    """Graph -> the nodes of its int8 file that were chosen to multiply integers, by the bundle's report on precision."""
    member = bundle.manifest.reports.get("precision")
    rows = json.loads(bytes(bundle.read(member))) if member else []
    found = {row["graph"]: row.get("int8", {}).get("quantised") for row in rows}
    return {graph: tuple(nodes) for graph, nodes in found.items() if nodes}


def _compiled(
    bundle: Bundle,
    graph: str,
    precision: Precision,
    capability: int,
    version: str,
    store: EngineCache,
    chosen: tuple[str, ...] | None,
) -> CompiledEngine:
    entry = bundle.manifest.graphs[graph]
    member = entry.variants[precision]
    content = bytes(bundle.read(member))
    options = BuildOptions(FLAVOUR, profiles_for(entry), compute_capabilities=(capability,))
    key = EngineKey(bundle.manifest.files[member].sha256, options, version)
    found = store.plan_for(key, partial(build_plan, content, entry.inputs, options))
    types = product_types(onnx.load_from_string(content))
    check_kernels(found.report.kernels, types if chosen is None else as_chosen(types, chosen))
    products = Counter(kernel.multiplied for kernel in found.report.kernels if kernel.multiplies)
    return CompiledEngine(
        graph,
        precision,
        capability,
        found.report.seconds,
        len(found.plan),
        dict(sorted(products.items())),
        found.path,
        found.reason,
    )
