"""A table in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A line each, ended; nothing without rows. A bar inside a cell would end it."""
    lines = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    if not lines:
        return ""
    head = [list(columns), ["---"] * len(columns)]
    return "".join(f"| {' | '.join(line)} |\n" for line in head + lines)
