"""What a lint rule is, and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from posekit.export.lint.typed_graph import Node, TypedGraph

Severity = Literal["error", "warning"]

# tensorrt-10.3: JetPack 6.1 and 6.2.  tensorrt-10: 10.13 to 10.16, JetPack 7.0 to 7.2.  tensorrt-11: JetPack 7.2.2 on.
TENSORRT = ("tensorrt-10.3", "tensorrt-10", "tensorrt-11")
RTX = ("tensorrt-rtx",)
NVIDIA = TENSORRT + RTX
ONNXRUNTIME = ("onnxruntime-cpu",)
ALL = NVIDIA + ONNXRUNTIME + ("openvino",)


@dataclass(frozen=True)
class Finding:
    """One place in a graph that breaks one rule.

    rule: stable id.  targets: those concerned, among the ones asked for.  node: its name, or the tensor's, or "" for
    the whole graph.  An error makes the target refuse the graph or give other numbers; a warning costs speed, memory
    or digits, or is a promise that nobody makes.
    """

    rule: str
    severity: Severity
    targets: tuple[str, ...]
    node: str
    op_type: str
    what: str
    got: str
    expected: str
    remedy: str


@dataclass(frozen=True)
class Fault:
    """What a rule's check reports.  at: the node, a tensor's name, or "".  targets: where fewer than the rule's."""

    at: Node | str
    got: str
    expected: str | None = None
    targets: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Rule:
    """One row: what is looked at, what it should be, what to do, and the function that finds where it is not so."""

    id: str
    severity: Severity
    targets: tuple[str, ...]
    what: str
    expected: str
    remedy: str
    check: Callable[[TypedGraph], Iterable[Fault]]

    def findings(self, graph: TypedGraph, targets: Iterable[str]) -> Iterable[Finding]:
        """Of this rule, for these targets."""
        for fault in self.check(graph):
            concerned = tuple(t for t in fault.targets or self.targets if t in targets)
            if concerned:
                node, op_type = (fault.at, "") if isinstance(fault.at, str) else (fault.at.name, fault.at.op_type)
                expected = fault.expected or self.expected
                yield Finding(
                    self.id, self.severity, concerned, node, op_type, self.what, fault.got, expected, self.remedy
                )
