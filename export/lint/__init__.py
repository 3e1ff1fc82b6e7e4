"""What TensorRT and ONNX Runtime refuse or silently mis-handle, found before they do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx

from posekit.export.lint import dtypes, operators, portability, quantisation, shapes
from posekit.export.lint.finding import ALL, Finding, Rule
from posekit.export.lint.typed_graph import typed_graph
from posekit.runtime.errors import ExportError

__all__ = ["ALL", "RULES", "Finding", "Rule", "checked_targets", "lint"]

RULES: tuple[Rule, ...] = (
    *portability.RULES,
    *quantisation.RULES,
    *dtypes.RULES,
    *operators.RULES,
    *shapes.RULES,
)


def lint(model: onnx.ModelProto, targets: Sequence[str] = ALL, folder: Path | None = None) -> tuple[Finding, ...]:
    """All findings about a graph, errors first. Whatever is wrong with the graph is a finding, never an exception.

    targets: names among ALL; the only exception is ExportError for another name.
    folder: where its external data is. Without it external weights are not looked at.
    """
    targets = checked_targets(targets)
    graph = typed_graph(model, folder)
    found = [finding for rule in RULES for finding in rule.findings(graph, targets)]
    if not any(finding.severity == "error" for finding in found):
        found += [finding for rule in portability.LAST_RESORT for finding in rule.findings(graph, targets)]
    return tuple(sorted(found, key=lambda finding: finding.severity != "error"))


def checked_targets(targets: Sequence[str]) -> tuple[str, ...]:
    """The same, once each. ExportError for a name that is not among ALL."""
    unknown = [target for target in targets if target not in ALL]
    if unknown or not targets:
        raise ExportError(
            "lint target",
            got=repr(unknown[0]) if unknown else "none",
            expected=f"one of {', '.join(ALL)}",
            remedy="Name a target, or leave it out for all.",
        )
    return tuple(dict.fromkeys(targets))
