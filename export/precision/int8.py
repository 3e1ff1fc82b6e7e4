"""The int8 variant of a graph: calibrated, searched block by block against the gates, and only proposed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import ModelProto

from posekit.calibration.feeds import Arrays, CalibrationSource
from posekit.calibration.fitness import Fitness, check_fitness, fitness_of
from posekit.calibration.nodes import weighted_nodes
from posekit.calibration.qdq import quantized
from posekit.calibration.ranges import RangeTable, calibrate
from posekit.calibration.table import cached_table, table_key
from posekit.export.precision.blocks import blocks_of
from posekit.export.precision.judge import Judge, Measured, Progress
from posekit.export.precision.search import Candidate, Search, kept_nodes, searched
from posekit.runtime.atomic import write_whole
from posekit.runtime.pose import Array

NOT_INTEGER = ("ConvTranspose",)  # TensorRT-RTX multiplies floats there, whatever the file says


@dataclass(frozen=True)
class Int8Report:
    """How one int8 file came about, or why there is none. calibration: where the ranges are from, a sentence.

    clipped: tensor -> share of values beyond its range, where any.  verdict: one sentence.
    """

    calibration: str
    fitness: Fitness
    clipped: dict[str, float]
    blocks: int
    search: Search
    verdict: str


def int8_variant(
    base: Path,
    out: Path,
    source: CalibrationSource,
    method: str,
    tables: Path,
    judge: Judge,
    others: Sequence[Measured],
    directions: Array,
    progress: Progress,
) -> Int8Report:
    """Quantise `base` as far as the judge's gates allow and write it to `out`; no file where nothing may be quantised.

    tables: folder that keeps range tables.  others: the graph's other files, which INT8 has to beat.  directions: (N, 3) that view coverage is counted over.
    Raises CalibrationError for unfit data, PrecisionError for a graph that cannot be quantised.
    """
    fitness = fitness_of(source, directions)
    check_fitness(fitness)
    content = base.read_bytes()
    model = onnx.load_from_string(content)
    key = table_key(content, fitness.fingerprint, source.preprocessing, method)

    def feeds() -> Iterator[Arrays]:
        return (portion.feed for portion in source)

    kept_table = cached_table(tables, key, lambda: calibrate(model, feeds, method))
    table = kept_table.table
    kinds = {node.name: node.op_type for node in model.graph.node}
    nodes = [node.name for node in weighted_nodes(model)]
    blocks = blocks_of(name for name in nodes if kinds[name] not in NOT_INTEGER)
    never = tuple(name for name in nodes if kinds[name] in NOT_INTEGER)
    most, done = 2 * len(blocks) + 1, 0

    def measure(quantised: Collection[str]) -> Candidate:
        nonlocal done
        kept = tuple(block for block in blocks if block not in quantised)
        measured = judge.measure(_file(model, table, never + kept_nodes(blocks, quantised)))
        done += 1
        progress(f"int8 of {judge.graph}", done, max(most, done))
        return Candidate(kept, measured)

    search = searched(list(blocks), measure)
    progress(f"int8 of {judge.graph}", done, done)
    if search.chosen is not None:
        quantised = [block for block in blocks if block not in search.chosen.kept]
        write_whole(out, _file(model, table, never + kept_nodes(blocks, quantised)))
    clipped = {name: entry.clipped for name, entry in table.ranges.items() if entry.clipped}
    verdict = _verdict(search, len(blocks), others)
    origin = kept_table.origin.replace(str(tables), "the cache")  # a bundle carries no path of this machine
    return Int8Report(origin, fitness, clipped, len(blocks), search, verdict)


def _file(model: ModelProto, table: RangeTable, excluded: Sequence[str]) -> bytes:
    return bytes(quantized(model, table, excluded).SerializeToString(deterministic=True))


def _verdict(search: Search, blocks: int, others: Sequence[Measured]) -> str:
    """One sentence: what is quantised, and whether it pays on this machine."""
    if search.chosen is None:
        missed = [gate.gate for gate in search.tried[-1].measured.gates if not gate.passed]
        return f"INT8 is not worth it here: no mix of blocks keeps {' and '.join(missed)} within its gate."
    best = min(others, key=lambda measured: measured.latency_ms)
    chosen = search.chosen.measured
    what = (
        f"{blocks - len(search.chosen.kept)} of {blocks} blocks in INT8: {chosen.latency_ms:.2f} ms on {chosen.backend}, "
        f"{best.latency_ms:.2f} ms without on {best.backend}, on this machine."
    )
    return what if chosen.latency_ms < best.latency_ms else f"INT8 is not worth it for speed here: {what}"
