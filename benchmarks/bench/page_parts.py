"""Pieces of HTML that the report is made of. A table's figure knows where in which result.json it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from posekit.benchmarks.bench.shown import Shown

ABSENT = "–"


@dataclass(frozen=True)
class Cell:
    """One figure of result.json. run: its place among the page's.  key: its path there, "runs.0.throughput_hz"."""

    run: int
    key: str
    value: float | None


Row = Sequence[str | Cell]  # HTML, or a figure


def section(title: str, body: str, note: str = "") -> str:
    """Nothing, where there is nothing to show."""
    said = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{said}{body}</section>" if body else ""


def figure(picture: str | None, caption: str, runs: Sequence[Shown]) -> str:
    """With the machines that it is of. Nothing without a picture."""
    machines = " · ".join(dict.fromkeys(run.machine for run in runs))
    said = f"<figcaption>{escape(caption)} <small>{escape(machines)}</small></figcaption>"
    return f"<figure>{said}{picture}</figure>" if picture else ""


def side_by_side(figures: Iterable[str]) -> str:
    body = "".join(figures)
    return f'<div class="grid-of-charts">{body}</div>' if body else ""


def first_open(parts: Mapping[str, str]) -> str:
    """Title -> body: the first is seen, the others can be opened."""
    bodies = [(title, body) for title, body in parts.items() if body]
    rest = "".join(f"<details><summary>{escape(title)}</summary>{body}</details>" for title, body in bodies[1:])
    return bodies[0][1] + rest if bodies else ""


def definitions(rows: Mapping[str, str]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in rows.items()) + "</dl>"


def name(run: Shown) -> str:
    """In red, where it does not count."""
    invalid = "" if run.result.valid else ' <strong class="invalid">INVALID</strong>'
    return f"<b>{escape(run.label)}</b>{invalid}"


def table(heads: Sequence[str], rows: Iterable[Row], caption: str) -> str:
    """Rows below their names."""
    rows = list(rows)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return _table(_heads(heads, rows), body, caption)


def table_by_run(heads: Sequence[str], groups: Iterable[tuple[Shown, Sequence[Row]]], caption: str) -> str:
    """Each run and its machine stand once beside the run's rows. Nothing without rows."""
    body, head = "", ""
    for run, rows in groups:
        head = head or _heads(("run, on", *heads), [("", *row) for row in rows])
        first = f'<th scope="rowgroup" rowspan="{len(rows)}">{name(run)}<small>{escape(run.machine)}</small></th>'
        lines = [("" if i else first) + "".join(map(_cell, row)) for i, row in enumerate(rows)]
        body += "".join(f"<tr>{line}</tr>" for line in lines)
    return _table(head, body, caption) if body else ""


def number(value: float) -> str:
    """Counts whole, everything else to three decimals: microseconds of a latency."""
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def _heads(heads: Sequence[str], rows: Sequence[Row]) -> str:
    """Above figures to the right, as they are."""
    kinds = ["figure" if isinstance(cell, Cell) else "" for cell in rows[0]] if rows else [""] * len(heads)
    return "".join(
        f'<th scope="col" class="{kind}">{escape(head)}</th>' for head, kind in zip(heads, kinds, strict=True)
    )


def _table(head: str, body: str, caption: str) -> str:
    return (
        f'<div class="wide"><table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(cell: str | Cell) -> str:
    if isinstance(cell, str):
        return f"<td>{cell}</td>"
    if cell.value is None:
        return f'<td class="figure">{ABSENT}</td>'
    where = f'data-run="{cell.run}" data-key="{cell.key}" data-value="{cell.value!r}"'
    return f'<td class="figure" {where}>{number(cell.value)}</td>'
