"""What `posekit doctor` shows: the machine, a row per check, and for a bundle what loads where."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from posekit.render import PIPED_WIDTH, show_rows

if TYPE_CHECKING:
    from posekit.checks import Check
    from posekit.doctor import BundleDiagnosis, Diagnosis, GraphDiagnosis, Load
    from posekit.runtime.machine import Machine

COLOURS = {"ok": "green", "absent": "dim", "broken": "bold red", "loads": "green", "builds": "yellow", "refused": "red"}
# Of the instruction sets, the ones to name: the newest of each kind tells the others.
NAMED_INSTRUCTIONS = ("amx_int8", "amx_bf16", "avx512_vnni", "avx_vnni", "avx2", "i8mm", "asimddp", "sve2")


def show_diagnosis(diagnosis: Diagnosis) -> None:
    """For a person: tables, a summary line, the next commands."""
    _show_machine(diagnosis)
    _show_checks(diagnosis.checks)
    if diagnosis.bundle is not None:
        _show_bundle(diagnosis.bundle, diagnosis.checks)
    _print(f"\n[bold]{_escaped(_summary(diagnosis))}[/]")
    show_rows("", (), (), then=diagnosis.next)


def _show_machine(diagnosis: Diagnosis) -> None:
    table = _table(f"posekit {diagnosis.posekit} on this machine")
    table.show_header = False
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for what, value in _machine_rows(diagnosis.machine):
        table.add_row(what, _escaped(value))
    _print(table)


def _machine_rows(machine: Machine) -> Iterator[tuple[str, str]]:
    cpu, jetson = machine.cpu, machine.jetson
    if jetson:
        release = f"L4T {jetson.l4t or 'unknown'}, JetPack {jetson.jetpack or 'unknown'}"
        yield "Jetson", f"{jetson.model or 'unknown board'}, {release}"
        yield "power mode", jetson.power_mode or "unknown (nvpmodel -q gives none)"
        if jetson.clocks_locked is not None:
            yield (
                "clocks",
                "locked" if jetson.clocks_locked else "free: latency will vary until `jetson_clocks` locks them",
            )
    count = f"{cpu.count} logical" if cpu.count else "unknown count"
    count += f", {cpu.cores} cores" if cpu.cores else ""
    yield "processor", f"{cpu.model or 'unknown'} ({machine.architecture}), {count}"
    yield "instructions", " ".join(name for name in NAMED_INSTRUCTIONS if name in cpu.instructions) or "unknown"
    if machine.gpus:
        yield "GPUs", ", ".join(machine.gpus)
    if cpu.governor or cpu.frequency_mhz:
        low, high = cpu.frequency_mhz or (0.0, 0.0)
        now = f", now {low:.0f} to {high:.0f} MHz" if cpu.frequency_mhz else ""
        yield "frequency", f"governor {cpu.governor or 'unknown'}{now}"
    yield "memory", f"{machine.memory_bytes / 2**30:.1f} GiB" if machine.memory_bytes else "unknown"
    yield "system", f"{machine.os or 'unknown'}, kernel {machine.kernel or 'unknown'}"


def _show_checks(checks: Sequence[Check]) -> None:
    """A remedy that several rows share is printed once."""
    from rich.text import Text

    table = _table("checks")
    for column in ("check", "status"):
        table.add_column(column, no_wrap=True)
    table.add_column("what was found, what to do", overflow="fold")
    said: set[str] = set()
    for check in checks:
        text = Text(check.found, style="dim" if check.status == "absent" else "")
        if check.remedy and check.remedy not in said:
            text.append(f"\n{check.remedy}", style="green")
            said.add(check.remedy)
        table.add_row(check.code, Text(check.status, style=COLOURS[check.status]), text)
    _print(table)


def _show_bundle(bundle: BundleDiagnosis, checks: Sequence[Check]) -> None:
    from rich.text import Text

    status = {check.code: check.status for check in checks}
    loads = [load for graph in bundle.graphs.values() for load in graph.loads]
    names = list(dict.fromkeys(load.backend for load in loads))
    working = [name for name in names if status[name] == "ok"]
    table = _table(f"{bundle.name}: what loads here (* what auto takes)")
    for column in ("graph", "variant", *working):
        table.add_column(column, overflow="fold")
    cells = {(load.graph, load.precision, load.backend): load.status for load in loads}
    for name, precision in dict.fromkeys((load.graph, load.precision) for load in loads):
        auto = bundle.graphs[name].auto
        row = [Text(name), Text(precision)]
        for backend in working:
            word = cells[name, precision, backend]
            chosen = auto is not None and (auto.backend, auto.precision) == (backend, precision)
            row.append(Text(f"{word} *" if chosen else word, style=COLOURS.get(word, "dim")))
        table.add_row(*row)
    if working:
        _print(table)
    _show_absent(names, status, loads)
    _show_problems(
        [load for load in loads if load.backend in working and load.status in ("builds", "refused", "broken")]
    )
    _show_auto(bundle, status)
    for name, graph in bundle.graphs.items():
        for precision, why in graph.held_back.items():
            _print(_escaped(f"{name} {precision} is held back, it runs only when asked for: {why}"))
    paths = [
        (name + " (default)" * (name == bundle.default_path), "yes" if runs else "no")
        for name, runs in bundle.paths.items()
    ]
    detector = [] if bundle.detector is None else [("its detector", "yes" if bundle.detector else "no")]
    show_rows("paths", ("path", "runs here"), [*paths, *detector])


def _show_absent(names: Sequence[str], status: Mapping[str, str], loads: Sequence[Load]) -> None:
    """The backends that load nothing, for the reasons in the checks; engines that lie there all the same."""
    lacking = [f"{name} {status[name]}" for name in names if status[name] != "ok"]
    if lacking:
        _print(f"not here: {', '.join(lacking)}: see the checks")
    for name in names:
        others = sum(load.engine.others for load in loads if load.backend == name and load.engine)
        if others:
            _print(f"{name}: {others} engines of these graphs are in the cache, for other GPUs or versions")
    _print("")


def _show_problems(loads: Sequence[Load]) -> None:
    """Equal ones together."""
    from rich.text import Text

    groups: dict[tuple[str, str, str, str | None], list[Load]] = {}
    for load in loads:
        groups.setdefault((load.backend, load.status, load.found, load.remedy), []).append(load)
    table = _table("why not, or not yet")
    table.add_column("backend")
    table.add_column("variants, why, what to do", overflow="fold")
    for (backend, status, found, remedy), group in groups.items():
        variants = ", ".join(f"{load.graph} {load.precision}" for load in group)
        text = Text.assemble((variants, "bold"), f"\n{found}", (f"\n{remedy}" if remedy else "", "green"))
        table.add_row(Text.assemble(backend, (f"\n{status}", COLOURS[status])), text)
    if groups:
        _print(table)


def _show_auto(bundle: BundleDiagnosis, status: Mapping[str, str]) -> None:
    """Graphs with the same choice for the same reasons in one row; reasons that the checks give are only named."""
    groups: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for name, graph in bundle.graphs.items():
        takes = f"{graph.auto.backend} {graph.auto.precision}" if graph.auto else "nothing"
        groups.setdefault((takes, _passed_over(graph, status)), []).append(name)
    table = _table("what auto takes")
    for column in ("graph", "takes", "passed over"):
        table.add_column(column, overflow="fold")
    for (takes, before), names in groups.items():
        table.add_row(*(_escaped("\n".join(lines)) for lines in (names, [takes], before or ["nothing"])))
    _print(table)


def _passed_over(graph: GraphDiagnosis, status: Mapping[str, str]) -> tuple[str, ...]:
    reasons = [(r.partition(":")[0], r) for r in (graph.reasons[:-1] if graph.auto else graph.reasons)]
    lacking = [f"{backend} {status[backend]}" for backend, _ in reasons if status[backend] != "ok"]
    told = [reason for backend, reason in reasons if status[backend] == "ok"]
    return tuple(filter(None, (", ".join(dict.fromkeys(lacking)), *told)))


def _summary(diagnosis: Diagnosis) -> str:
    from posekit.runtime.backends import BACKENDS

    broken = [check.code for check in diagnosis.checks if check.status == "broken"]
    if diagnosis.bundle is not None:
        text = _bundle_summary(diagnosis.bundle, diagnosis.can_run)
    elif diagnosis.can_run:
        able = [check.code for check in diagnosis.checks if check.status == "ok" and check.code in BACKENDS]
        text = f"{', '.join(able)} can run here"
    else:
        text = "nothing can run here"
    return text + (f"; broken: {', '.join(broken)}" if broken else "")


def _bundle_summary(bundle: BundleDiagnosis, can_run: bool) -> str:
    default = f"{bundle.path}: default path {bundle.default_path}"
    if not can_run:
        return f"{default} does not run here"
    graphs = [bundle.graphs[name] for name in bundle.paths[bundle.default_path].graphs]
    chosen = dict.fromkeys(f"{graph.auto.backend} {graph.auto.precision}" for graph in graphs if graph.auto)
    taken = [(load, graph.auto) for graph in graphs for load in graph.loads if graph.auto]
    built = sum(
        load.status == "builds" and (load.backend, load.precision) == (auto.backend, auto.precision)
        for load, auto in taken
    )
    first = f"; its first run builds {built} engine{'' if built == 1 else 's'}, once" if built else ""
    return f"{default} runs here on {', '.join(chosen)}{first}"


def _table(title: str) -> Any:
    from rich import box
    from rich.table import Table

    return Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left", title_style="bold")


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _print(what: Any) -> None:
    from rich.console import Console

    console = Console()
    Console(width=None if console.is_terminal else PIPED_WIDTH).print(
        what, highlight=False, soft_wrap=isinstance(what, str)
    )
