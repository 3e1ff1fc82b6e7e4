"""The int8 variant of a graph: calibrated, searched block by block against the gates, and only proposed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import ModelProto

from posekit.calibration.feeds import Arrays, CalibrationSource
from posekit.calibration.fitness import Fitness, check_fitness
from posekit.calibration.nodes import weighted_nodes, with_node_names
from posekit.calibration.qdq import quantized
from posekit.calibration.ranges import RangeTable, calibrate
from posekit.calibration.table import cached_table, table_key
from posekit.export.fingerprint import code, fingerprint
from posekit.export.precision.blocks import blocks_of
from posekit.export.precision.judge import Judge, Measured
from posekit.export.precision.search import LARGEST_STRAIN, Candidate, Search, kept_nodes, searched
from posekit.export.verify.reference import Progress
from posekit.runtime.atomic import write_whole

NOT_INTEGER = ("ConvTranspose",)  # TensorRT-RTX multiplies floats there, whatever the file says


@dataclass(frozen=True)
class Int8Report:
    """How one int8 file came about, or why there is none. calibration: where this machine has the ranges from, a sentence; no bundle has it.

    clipped: tensor -> share of values beyond its range, where any.  quantised: names of the nodes that multiply integers in
    the file, as the search chose them.  faster: than every other file of the graph, here.
    verdict: one sentence.
    """

    calibration: str | None
    fitness: Fitness
    clipped: dict[str, float]
    blocks: int
    search: Search
    quantised: tuple[str, ...]
    faster: bool
    verdict: str


def int8_variant(
    content: bytes,
    out: Path,
    source: CalibrationSource,
    fitness: Fitness,
    method: str,
    tables: Path,
    judge: Judge,
    others: Sequence[Measured],
    progress: Progress,
    most_strain: float = LARGEST_STRAIN,
) -> Int8Report:
    """Quantise a graph as far as the judge's gates allow and write it to `out`; no file where nothing may be quantised.

    fitness: of the source, which is checked.  tables: folder that keeps range tables.  others: the graph's other files,
    which INT8 has to beat.  most_strain: what the gates may be strained on the judge's crops.
    Raises CalibrationError for unfit data, PrecisionError for a graph that cannot be quantised.
    """
    check_fitness(fitness)
    model = with_node_names(onnx.load_from_string(content))
    key = table_key(content, fitness.fingerprint, source.preprocessing, method)

    def feeds() -> Iterator[Arrays]:
        return (portion.feed for portion in source)

    kept_table = cached_table(tables, key, lambda: calibrate(model, feeds, method))
    table = kept_table.table
    never = never_integer(model)
    blocks = blocks_of(model, [node.name for node in weighted_nodes(model) if node.name not in never])
    most, done = 2 * len(blocks) + 1, 0

    def measure(quantised: Collection[str]) -> Candidate:
        nonlocal done
        kept = tuple(block for block in blocks if block not in quantised)
        excluded = kept_nodes(blocks, quantised)
        made_of = fingerprint("int8", key.sha256, excluded, code())
        measured = judge.measure(lambda: int8_content(model, table, excluded), made_of)
        done += 1
        progress(f"int8 of {judge.graph}", done, max(most, done))
        return Candidate(kept, measured, most_strain)

    search = searched(list(blocks), measure)
    progress(f"int8 of {judge.graph}", done, done)
    nodes: tuple[str, ...] = ()
    if search.chosen is not None:
        quantised = [block for block in blocks if block not in search.chosen.kept]
        write_whole(out, int8_content(model, table, kept_nodes(blocks, quantised)))
        nodes = tuple(node for block in quantised for node in blocks[block])
    clipped = {name: entry.clipped for name, entry in table.ranges.items() if entry.clipped}
    verdict = _verdict(search, len(blocks), others)
    return Int8Report(kept_table.origin, fitness, clipped, len(blocks), search, nodes, *verdict)


def int8_content(model: ModelProto, table: RangeTable, kept: Sequence[str] = ()) -> bytes:
    """The int8 file of a graph whose weighted nodes are all quantised but `kept`, and those that nobody multiplies so."""
    excluded = (*never_integer(model), *kept)
    return bytes(quantized(model, table, excluded).SerializeToString(deterministic=True))


def never_integer(model: ModelProto) -> tuple[str, ...]:
    """Names of the weighted nodes that stay in floating point in every int8 file."""
    return tuple(node.name for node in weighted_nodes(model) if node.op_type in NOT_INTEGER)


def _verdict(search: Search, blocks: int, others: Sequence[Measured]) -> tuple[bool, str]:
    """Whether INT8 is the fastest on this machine, and one sentence on what is quantised and whether it pays."""
    if search.chosen is None:
        missed = " and ".join(search.tried[-1].strained)
        spare = "on other crops as well" if search.tried[-1].most_strain < LARGEST_STRAIN else "with something to spare"
        return False, f"INT8 is not worth it here: no mix of blocks holds {missed} {spare}."
    best = min(others, key=lambda measured: measured.latency_ms)
    chosen = search.chosen.measured
    what = (
        f"{blocks - len(search.chosen.kept)} of {blocks} blocks in INT8: {chosen.latency_ms:.2f} ms on {chosen.backend}, "
        f"{best.latency_ms:.2f} ms without on {best.backend}, on this machine."
    )
    faster = chosen.latency_ms < best.latency_ms
    return faster, what if faster else f"INT8 is not worth it for speed here: {what}"
