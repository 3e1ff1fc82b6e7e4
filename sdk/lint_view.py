"""What `posekit lint` shows: one table per graph, equal findings together, errors first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posekit.render import PIPED_WIDTH, counted, show_rows

if TYPE_CHECKING:
    from posekit.export.lint import Finding
    from posekit.export.lint.lint_file import LintedGraph

SHOWN_NODES = 3
TENSORRT, TENSORRT_TARGETS = "tensorrt", 4
COLOURS = {"error": "bold red", "warning": "yellow"}


def lint_summary(path: Path, graphs: Sequence[LintedGraph], targets: Sequence[str]) -> dict[str, Any]:
    """For a program: everything, nothing grouped."""
    totals = {f"{severity}s": sum(graph.count(severity) for graph in graphs) for severity in COLOURS}
    return {"file": str(path), "targets": list(targets), **totals, "graphs": graphs}


def show_lint(path: Path, graphs: Sequence[LintedGraph], targets: Sequence[str]) -> None:
    """For a person: tables, a summary line, the next command."""
    for graph in graphs:
        if graph.findings:
            _show_graph(graph, targets)
    summary = lint_summary(path, graphs, targets)
    counts = f"{counted(summary['errors'], 'error')}, {counted(summary['warnings'], 'warning')}"
    where = f"{counted(len(graphs), 'graph')}, {sum(graph.nodes for graph in graphs)} nodes"
    print(f"\n{path}: {counts} in {where}, for {', '.join(targets)}")
    show_rows("", (), (), then=[_next_command(path, summary)])


def _next_command(path: Path, summary: Mapping[str, Any]) -> str:
    if summary["errors"]:
        return f"posekit lint {path}    after the changes above"
    bundle = path.suffix == ".posekit"
    return (
        f"posekit inspect {path}" if bundle else "posekit export RECIPE.toml -o X.posekit    a bundle with this graph"
    )


def _show_graph(graph: LintedGraph, targets: Sequence[str]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=graph.name, title_justify="left", title_style="bold")
    table.add_column("rule, and for what", overflow="fold", max_width=24)
    table.add_column("node, what is wrong, what to do", overflow="fold")
    for group in _grouped(graph.findings):
        first = group[0]
        severity = (f"{first.severity}\n", COLOURS[first.severity])
        rule = Text.assemble(severity, f"{first.rule}\n", (_concerned(first, targets), "dim"))
        wrong = f"{first.what}: got {first.got}, expected {first.expected}\n"
        table.add_row(rule, Text.assemble((_nodes(group), "bold"), "\n", wrong, (first.remedy, "green")))
        table.add_section()
    console = Console()
    Console(width=None if console.is_terminal else PIPED_WIDTH).print(table, markup=False)


def _grouped(findings: Sequence[Finding]) -> list[list[Finding]]:
    """Those that differ in nothing but the node, in the order of the first of each."""
    groups: dict[tuple[str, ...], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.rule, finding.got, finding.expected, *finding.targets), []).append(finding)
    return list(groups.values())


def _nodes(group: Sequence[Finding]) -> str:
    shown = [f.node + (f" ({f.op_type})" if f.op_type else "") or "the whole graph" for f in group[:SHOWN_NODES]]
    more = [f"and {len(group) - SHOWN_NODES} more"] if len(group) > SHOWN_NODES else []
    return "\n".join((*shown, *more))


def _concerned(finding: Finding, asked: Sequence[str]) -> str:
    """The targets concerned; the four TensorRTs, and all that were asked for, as one word."""
    if len(asked) > 1 and set(finding.targets) == set(asked):
        return "all targets"
    every = [target for target in finding.targets if target.startswith(TENSORRT)]
    named = [target for target in finding.targets if target not in every]
    return ", ".join((["TensorRT"] if len(every) == TENSORRT_TARGETS else every) + named)
