"""Markdown from a result of `precision.py`, and what it says about the aim: every figure comes out of the file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from posekit.benchmarks.markdown_table import markdown_table
from posekit.benchmarks.studies.precision_result import (
    CONTENDERS,
    EAGER,
    NOISE,
    OPENVINO_FP16,
    OPENVINO_FP32,
    OPENVINO_INT8,
    ORT,
    Difference,
    GraphResult,
    Result,
    SystemResult,
)

SPEED_AIM = {EAGER: 4.0, ORT: 3.0}  # OpenVINO int8 against them, of convolutional systems
ROTATION_AIM_DEG, TRANSLATION_AIM = 0.5, 0.01  # 95th percentiles; the second is a share of the diameter
PRODUCTS = ("Convolution", "FullyConnected", "MatMul")  # beginnings of OpenVINO's kinds of layers
CAUSES = 3  # kinds of layers named where an aim is missed
ABSENT = "-"
Row = Sequence[object]
Graphs = Sequence[tuple[SystemResult, GraphResult]]


def markdown(result: Result) -> str:
    rows = [(system, graph) for system in result.systems for graph in system.measured.graphs]
    parts = (
        _heading(result),
        _latencies(rows),
        _differences(rows),
        _exports(result),
        _engines(rows),
        "".join(f"- {sentence}\n" for system, graph in rows for sentence in [verdict(system, graph)]),
    )
    return "\n".join(part for part in parts if part)


def verdict(system: SystemResult, graph: GraphResult) -> str:
    """Against the aim: what was reached, by how much it was missed, and where the time goes then."""
    speeds = {name: graph.speed_up(name) for name in SPEED_AIM}
    text = f"**{system.system} {graph.graph}**: int8 is "
    text += " and ".join(
        f"{speeds[name]:.1f} times as fast as {name}{_speed_word(system, speeds[name], aim)}"
        for name, aim in SPEED_AIM.items()
    )
    if system.measured.convolutional and any(speeds[name] < aim for name, aim in SPEED_AIM.items()):
        text += f"; of its time {_where_time_goes(graph)}"
    return f"{text}. {_accuracy(system, graph)}" + " Measured on a busy machine." * system.busy


def _speed_word(system: SystemResult, speed: float, aim: float) -> str:
    if not system.measured.convolutional:
        return ""
    return f" (aim {aim:g}: met)" if speed >= aim else f" (aim {aim:g}: missed by {1 - speed / aim:.0%})"


def _where_time_goes(graph: GraphResult) -> str:
    """What is no quantised product gains nothing from integers: quantising itself, float layers, moving data."""
    rest = {name: share for name, share in graph.layer_shares.items() if not _is_integer_product(name)}
    named = ", ".join(f"{name} {share:.0%}" for name, share in list(rest.items())[:CAUSES])
    return f"{sum(rest.values()):.0%} is not spent in integer products ({named})"


def _is_integer_product(layer: str) -> bool:
    return layer.startswith(PRODUCTS) and layer.endswith((" I8", " U8"))


def _accuracy(system: SystemResult, graph: GraphResult) -> str:
    int8, noise = graph.difference(OPENVINO_INT8), graph.difference(NOISE)
    if int8.rotation_p95_deg is None or int8.translation_p95_of_diameter is None:
        output, worst = int8.worst_output
        floor = (noise.of_variation or noise.outputs_p95).get(output)
        what = f"{worst:.2%} of what it varies by over crops" if int8.of_variation else f"{worst:.2%} at p95"
        by = "" if floor is None else f" ({floor:.2%} by {NOISE})"
        return f"Weights are {system.measured.weights}: numbers only, {output} differs by {what}{by}."
    turned = _pose_word(int8.rotation_p95_deg, noise.rotation_p95_deg, ROTATION_AIM_DEG, "{:.2f} degrees")
    moved = _pose_word(
        int8.translation_p95_of_diameter, noise.translation_p95_of_diameter, TRANSLATION_AIM, "{:.1%} of the diameter"
    )
    return f"Poses turn by {turned} and move by {moved} at p95."


def _pose_word(value: float, noise: float | None, aim: float, form: str) -> str:
    word = "met" if value <= aim else f"missed by {value / aim - 1:.0%}"
    floor = "" if noise is None else f"; {form.format(noise)} by {NOISE}"
    return f"{form.format(value)} (aim {form.format(aim)}: {word}{floor})"


def _heading(result: Result) -> str:
    machine, options = result.machine, result.options
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    runs = dict.fromkeys((system.run.date[:10], system.run.commit) for system in result.systems)
    pictures = "; ".join(f"{system.system} on {system.measured.pictures}" for system in result.systems)
    busy = [system for system in result.systems if system.busy]
    loads = ", ".join(
        f"{s.system} begun at load {s.run.load_before:g}, others took {s.others_cpu:.0%} of the processors"
        for s in busy
    )
    return (
        f"{machine.cpu}, {machine.cores} cores, {machine.memory_gb:g} GB, {', '.join(machine.flags)}"
        f"{f', governor {machine.governor}' if machine.governor else ''}; {machine.system}; {versions}; "
        f"{'; '.join(f'{date}, commit {commit}' for date, commit in runs)}. Medians of {options.rounds} interleaved rounds; "
        f"int8 ranges from {options.crops} crops, differences over as many others; {pictures}.\n"
        + (f"\n**Busy machine, do not quote: {loads}.**\n" if busy else "")
    )


def _latencies(rows: Graphs) -> str:
    columns = ("system", "graph", "crops", *(f"{name}, ms" for name in CONTENDERS), "int8 : eager", "int8 : ORT")
    found = []
    for system, graph in rows:
        for crops in sorted({timing.crops for timing in graph.timings}):
            medians = [f"{graph.median_ms(name, crops):.1f}" for name in CONTENDERS]
            ratios = [f"{graph.speed_up(name, crops):.1f} x" for name in (EAGER, ORT)]
            found.append((_marked(system), graph.graph, crops, *medians, *ratios))
    return markdown_table(columns, found)


def _differences(rows: Graphs) -> str:
    columns = ("system", "graph", "weights", "figure", NOISE, OPENVINO_FP32, OPENVINO_FP16, OPENVINO_INT8)
    shown = (NOISE, OPENVINO_FP32, OPENVINO_FP16, OPENVINO_INT8)
    found = []
    for system, graph in rows:
        for figure, cells in _figures([graph.difference(name) for name in shown]):
            found.append((_marked(system), graph.graph, system.measured.weights, figure, *cells))
    return markdown_table(columns, found)


def _figures(differences: Sequence[Difference]) -> Iterator[tuple[str, list[str]]]:
    for name in differences[0].outputs_p95:
        yield f"{name}, relative RMS, p95", [f"{d.outputs_p95[name]:.2g}" for d in differences]
    for name in differences[0].of_variation:
        yield f"{name}, of its variation", [_cell(d.of_variation.get(name), "{:.2%}") for d in differences]
    if any(d.cosine_p1 is not None for d in differences):
        yield "cosine, p1", [_cell(d.cosine_p1, "{:.5f}") for d in differences]
    if any(d.rotation_p95_deg is not None for d in differences):
        yield "crops whose pose noise leaves alone", [_cell(d.settled, "{:.0%}") for d in differences]
        yield "rotation, p95, deg", [_cell(d.rotation_p95_deg, "{:.2f}") for d in differences]
        yield "translation, p95, of diameter", [_cell(d.translation_p95_of_diameter, "{:.2%}") for d in differences]


def _exports(result: Result) -> str:
    """Seconds and peak memory per step, and what the files weigh."""
    columns = ("system", "graph", "step", "seconds", "peak RSS, MB")
    found: list[Row] = []
    for system in result.systems:
        steps = [("", step) for step in system.measured.steps]
        steps += [(graph.graph, step) for graph in system.measured.graphs for step in graph.steps]
        found += [(_marked(system), graph, s.name, f"{s.seconds:.1f}", f"{s.peak_rss_mb:.0f}") for graph, s in steps]
    sizes = [
        (_marked(system), graph.graph, *(f"{graph.sizes_bytes[p] / 1e6:.1f}" for p in ("fp32", "fp16", "int8")))
        for system in result.systems
        for graph in system.measured.graphs
    ]
    return (
        markdown_table(columns, found)
        + "\n"
        + markdown_table(("system", "graph", "fp32, MB", "fp16, MB", "int8, MB"), sizes)
    )


def _engines(rows: Graphs) -> str:
    columns = ("system", "graph", "file", "compute capability", "build, s", "plan, MB", "products", "as written")
    found: list[Row] = []
    for system, graph in rows:
        if graph.engines_skipped:
            found.append((_marked(system), graph.graph, *[ABSENT] * 5, graph.engines_skipped))
        for engine in graph.engines:
            products = ", ".join(f"{count} {kind}" for kind, count in engine.kernels.items())
            size, word = f"{engine.size_bytes / 1e6:.1f}", engine.problem or "yes"
            cells = (
                engine.precision,
                engine.compute_capability,
                f"{engine.seconds:.1f}",
                size,
                products or ABSENT,
                word,
            )
            found.append((_marked(system), graph.graph, *cells))
    return markdown_table(columns, found)


def _marked(system: SystemResult) -> str:
    return f"{system.system} (busy)" if system.busy else system.system


def _cell(value: float | None, form: str) -> str:
    return ABSENT if value is None else form.format(value)
