"""Nodes of an exported graph are called after the modules that they come from: `backbone.layer1.0.conv1/Conv`."""

from __future__ import annotations

import ast
from collections import Counter

from onnx import ModelProto, NodeProto

SCOPES = "pkg.torch.onnx.name_scopes"  # the exporter's trace: every module around the operation, then the operation
ROOT = "module"  # what wraps the network for export


def name_after_modules(model: ModelProto) -> None:
    """Rename nodes, in place: module/Operator, numbered where that is not the first. Needs the exporter's metadata.

    Nodes without it, which optimisers made, are called after the operator alone.
    """
    seen: Counter[str] = Counter()
    for node in model.graph.node:
        scope = module_of(node)
        name = f"{scope}/{node.op_type}" if scope else node.op_type
        seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}_{seen[name]}"


def module_of(node: NodeProto) -> str:
    """Dotted name of the module that a node computes, of a convolution the one that holds its weight; "" if unknown."""
    held = [name.rpartition(".")[0] for name in node.input if name.startswith(f"{ROOT}.") and name.endswith(".weight")]
    scopes = next((p.value for p in node.metadata_props if p.key == SCOPES), "[]")
    around = [scope for scope in ast.literal_eval(scopes)[:-1] if scope]
    return (held or around or [""])[-1].removeprefix(ROOT).removeprefix(".")
