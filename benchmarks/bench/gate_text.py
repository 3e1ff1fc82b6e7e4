"""What a gate says: "total.p95<+5%", "paced:total.p99<40ms", "rotation.p95<0.5deg", "recall_add>-0.02".

[MODE:]FIGURE, "<" where less is better or ">" where more is, then the limit. With a sign the limit is a change against
BASE, of which "%" is a share; without one it is NEW's own figure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from posekit.benchmarks.bench.figures import FIGURE_NAMES, Figure, figure_named
from posekit.runtime.errors import InputError

Kind = Literal["ratio", "change", "value"]
GRAMMAR = re.compile(
    r"(?:(?P<mode>[^:<>]+):)?(?P<figure>[^:<>]+?)\s*(?P<way>[<>])\s*(?P<sign>[+-]?)(?P<number>\d{1,9}(?:\.\d{1,9})?)"
    r"\s*(?P<unit>%|[A-Za-z]*)",
    re.ASCII,
)


@dataclass(frozen=True)
class Gate:
    """limit: NEW / BASE - 1 of a "ratio", NEW - BASE of a "change", NEW of a "value"; the latter two in the figure's unit.

    mode: None for the first mode that was measured.
    """

    text: str
    figure: Figure
    mode: str | None
    kind: Kind
    limit: float


def gate_from(text: str) -> Gate:
    """Raises InputError for what is no gate, with what is wrong about it."""
    parts = GRAMMAR.fullmatch(text.strip())
    if parts is None:
        raise _no_gate(text, "no gate")
    figure = figure_named(parts["figure"])
    if figure is None:
        raise _no_gate(text, f"no figure {parts['figure']!r}")
    if (parts["way"] == ">") != figure.more_is_better:
        better = "more" if figure.more_is_better else "less"
        raise _no_gate(text, f"a gate that a better NEW misses: {better} is better of {figure.name}")
    share = parts["unit"] == "%"
    if share and not parts["sign"]:
        raise _no_gate(text, "a share of nothing: a change against BASE has a sign, +5%")
    if parts["unit"] not in ("", "%", figure.unit):
        raise _no_gate(text, f"unit {parts['unit']!r} of a figure in {figure.unit or 'no unit'}")
    limit = float(parts["sign"] + parts["number"])
    if share:
        if limit <= -100:
            raise _no_gate(text, "a loss of everything")
        return Gate(text.strip(), figure, parts["mode"], "ratio", limit / 100)
    return Gate(text.strip(), figure, parts["mode"], "change" if parts["sign"] else "value", limit)


def _no_gate(text: str, got: str) -> InputError:
    return InputError(
        f"gate {text!r}",
        got=got,
        expected=f'"total.p95<+5%", "total.p95<12ms", "rotation.p95<0.5deg" and the like, of {FIGURE_NAMES}',
        remedy="Correct --gate.",
    )
