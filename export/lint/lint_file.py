"""Lint of files: one ONNX graph, or every graph of a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto

from posekit.export.lint import ALL, Finding, checked_targets, lint
from posekit.export.onnx_graph import MAX_BYTES
from posekit.runtime.bundle import Bundle
from posekit.runtime.errors import ExportError, PrecisionError

# posekit's own session switches the optimiser off that this rule is about (runtime/backends/ort.py).
HELD_BY_RUNTIME = "onnxruntime-fp16-scales"


@dataclass(frozen=True)
class LintedGraph:
    """name: the file, or the bundle's member.  findings: errors first."""

    name: str
    nodes: int
    findings: tuple[Finding, ...]

    def count(self, severity: str) -> int:
        return sum(finding.severity == severity for finding in self.findings)


def lint_file(path: Path, targets: Sequence[str] = ALL) -> tuple[LintedGraph, ...]:
    """The findings about X.onnx, or about each graph of X.posekit, by name.

    Raises ExportError for a file that is no ONNX graph or an unknown target, BundleError for a damaged bundle.
    """
    targets = checked_targets(targets)
    if path.suffix == ".posekit" or path.is_dir():
        return _lint_bundle(path, targets)
    model = _model_from_file(path)
    return (LintedGraph(path.name, len(model.graph.node), lint(model, targets, path.parent)),)


def _lint_bundle(path: Path, targets: tuple[str, ...]) -> tuple[LintedGraph, ...]:
    with Bundle(path) as bundle:
        members = sorted({name for entry in bundle.manifest.graphs.values() for name in entry.variants.values()})
        models = ((name, model_from_bytes(bytes(bundle.read(name)), f"{path}: {name}")) for name in members)
        return tuple(LintedGraph(name, len(model.graph.node), _held(lint(model, targets))) for name, model in models)


def check_lint(path: Path) -> None:
    """PrecisionError for a graph of posekit's own that something refuses or computes wrongly."""
    errors = lint_errors(_model_from_file(path))
    if errors:
        first = errors[0]
        raise PrecisionError(
            f"{path.name}: {first.rule} at {first.node or 'the graph'}"
            + f", and {len(errors) - 1} more" * (len(errors) > 1),
            got=f"{first.what}: {first.got}",
            expected=first.expected,
            remedy=f"{first.remedy} Or keep that layer out of the trunk.",
        )


def lint_errors(model: ModelProto) -> tuple[Finding, ...]:
    """What any target refuses or computes wrongly in posekit's hands."""
    return tuple(finding for finding in _held(lint(model)) if finding.severity == "error")


def _held(findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    return tuple(finding for finding in findings if finding.rule != HELD_BY_RUNTIME)


def _model_from_file(path: Path) -> ModelProto:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise _unreadable(path, f"{size / 1e9:.1f} GB", f"at most {MAX_BYTES / 1e9:.1f} GB in one file")
        return model_from_bytes(path.read_bytes(), str(path))
    except (OSError, ValueError) as error:
        raise _unreadable(path, f"{type(error).__name__}: {error}", "an ONNX file") from error


def model_from_bytes(content: bytes, name: str) -> ModelProto:
    """An ONNX model as it is, valid or not. ExportError for bytes that are none."""
    model = ModelProto()
    try:
        model.ParseFromString(content)
    except (DecodeError, ValueError) as error:
        raise _unreadable(name, f"{len(content)} bytes: {error}", "an ONNX model") from error
    if not (model.graph.node or model.graph.output):
        raise _unreadable(name, f"{len(content)} bytes without a graph", "an ONNX model")
    return model


def _unreadable(where: object, got: str, expected: str) -> ExportError:
    return ExportError(str(where), got=got, expected=expected, remedy="Copy or export the file again.")
