"""Lint of files, of what lies beside them, of bodies and functions inside graphs, and of bundles."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from lint_cases import QDQ, S, edited, good_qdq, graph, half_conv, with_constant
from onnx import numpy_helper
from toy_bundles import write_toy_bundle

from posekit.export.lint import ALL, RULES, lint
from posekit.export.lint.lint_file import lint_file
from posekit.runtime.bundle import Bundle
from posekit.runtime.errors import BundleError, ExportError


def rules(model: onnx.ModelProto, folder: Path | None = None) -> list[str]:
    return [finding.rule for finding in lint(model, folder=folder)]


def external(tmp_path: Path, values: np.ndarray[tuple[int], np.dtype[np.float32]]) -> Path:
    """A model whose weights are in a file beside it."""
    path = tmp_path / "x.onnx"
    model = with_constant("w", values)
    onnx.save_model(model, path, save_as_external_data=True, location="x.data", size_threshold=0)
    return path


def test_weights_beside_the_model_are_read(tmp_path: Path) -> None:
    path = external(tmp_path, np.array([1, np.nan, 2], np.float32))
    (linted,) = lint_file(path)
    assert [f.rule for f in linted.findings] == ["nan-constant", "external-data"]


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_weights_that_are_not_there_are_a_finding(tmp_path: Path, damage: str) -> None:
    path = external(tmp_path, np.ones(300, np.float32))
    (tmp_path / "x.data").unlink() if damage == "missing" else (tmp_path / "x.data").write_bytes(b"123")
    (linted,) = lint_file(path)
    assert [f.rule for f in linted.findings] == ["external-data-missing", "external-data"]
    assert "x.data" in linted.findings[0].got


def test_weights_outside_the_folder_are_not_read(tmp_path: Path) -> None:
    path = external(tmp_path, np.array([np.nan], np.float32))
    inner = tmp_path / "inner"
    inner.mkdir()
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "../x.data"
    assert rules(model, inner) == ["external-data-missing", "external-data"]


def test_bodies_are_part_of_the_graph() -> None:
    """A zero point of 3 inside a branch, whose constants and types come from outside."""
    branches = (
        "then_branch = t () => (float[N,4] u) { [q] q = QuantizeLinear(x, s, z) [d] u = DequantizeLinear(q, s, z) }, "
        "else_branch = e () => (float[N,4] v) { [n] v = Neg(x) }"
    )
    model = graph(f"[i] y = If (c) <{branches}>", "float[N,4] x, bool c", constants=f"{S}, int8 z = {{3}}")
    assert rules(model) == ["nonzero-zero-point", "control-flow"]


def test_local_functions_are_unfolded() -> None:
    text = f"""<ir_version: 9, opset_import: ["": 19, "mine": 1]>
    g (float[N,4] x) => (float[N,4] y) <{S}, int8 z = {{3}}> {{ [f] y = mine.fake(x, s, z) }}
    <opset_import: ["": 19], domain: "mine">
    fake (x, s, z) => (y) {{ [q] q = QuantizeLinear(x, s, z) [d] y = DequantizeLinear(q, s, z) }}"""
    model = onnx.parser.parse_model(text)
    assert "nonzero-zero-point" in rules(model)
    assert "custom-operator" not in rules(model)


def test_functions_that_call_each_other_in_a_circle_are_a_finding() -> None:
    text = """<ir_version: 9, opset_import: ["": 19, "mine": 1]>
    g (float[N,4] x) => (float[N,4] y) { [f] y = mine.a(x) }
    <opset_import: ["": 19, "mine": 1], domain: "mine"> a (x) => (y) { [b] y = mine.b(x) }
    <opset_import: ["": 19, "mine": 1], domain: "mine"> b (x) => (y) { [a] y = mine.a(x) }"""
    (found,) = (f for f in lint(onnx.parser.parse_model(text)) if f.rule == "invalid-graph")
    assert re.search("circle|[Cc]ycle", found.got)


def test_a_deep_graph_needs_no_recursion() -> None:
    body = "".join(f"[n{i}] t{i} = Relu({f't{i - 1}' if i else 'x'}) " for i in range(3000))
    assert rules(graph(f"{body} [last] y = Neg(t2999)")) == []


def test_big_weights_are_looked_at() -> None:
    """They are kept out of onnx's own copies, not out of the rules."""
    weights = np.ones((64, 64), np.float32)
    model = graph("[m] y = MatMul(x, w)", "float[N,64] x", "float[N,64] y")
    model.graph.initializer.append(numpy_helper.from_array(weights, "w"))
    assert rules(model) == []
    weights[3, 4] = np.nan
    model.graph.initializer[0].raw_data = weights.tobytes()
    assert rules(model) == ["nan-constant"]
    model.graph.initializer[0].raw_data = weights.tobytes()[:-4]
    assert rules(model) == ["damaged-tensor"]


def test_strict_inference_speaks_only_where_no_rule_does() -> None:
    model = graph("[m] y = MatMul(x, w)", "float[2,3] x, float[4,5] w", "float[2,5] y")
    (finding,) = lint(model)
    assert finding.rule == "untyped-graph"
    broken = graph(f"{QDQ.replace('y =', 'h =')} [m] y = MatMul(h, w)", "float[2,3] x, float[4,5] w", "float[2,5] y",
                   f"{S}, int8 z = {{3}}")  # fmt: skip
    assert rules(broken) == ["nonzero-zero-point"]


def test_targets_choose_the_findings() -> None:
    model = graph(QDQ, constants=f"{S}, int8 z = {{3}}", opset=21)
    assert [f.rule for f in lint(model, ["onnxruntime-cpu"])] == []
    assert [f.rule for f in lint(model, ["tensorrt-11"])] == ["nonzero-zero-point"]
    assert [f.rule for f in lint(model, ["tensorrt-10.3"])] == ["opset-range", "nonzero-zero-point"]
    for targets in ([], ["tensorrt-9"]):
        with pytest.raises(ExportError, match="lint target"):
            lint(model, targets)
    assert all(set(rule.targets) <= set(ALL) for rule in RULES)


def test_lint_leaves_the_model_as_it_was() -> None:
    model = graph("[m] y = MatMul(x, w)", "float[N,64] x", "float[N,64] y")
    model.graph.initializer.append(numpy_helper.from_array(np.ones((64, 64), np.float32), "w"))
    before = model.SerializeToString()
    lint(model)
    assert model.SerializeToString() == before


def test_a_bundle_is_linted_graph_by_graph(tmp_path: Path) -> None:
    path = write_toy_bundle(tmp_path / "toy.posekit")
    linted = lint_file(path)
    assert [graph.name for graph in linted] == ["embedder.onnx", "maps.onnx", "matcher.onnx", "pose.onnx"]
    assert all(graph.nodes for graph in linted)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(BundleError):
        lint_file(path)


def test_in_a_bundle_the_runtime_holds_onnx_runtime_back(tmp_path: Path) -> None:
    """Its session switches the optimiser off; outside a bundle somebody else's session may not."""
    onnx.save(half_conv(True), tmp_path / "half.onnx")
    assert "onnxruntime-fp16-scales" in [f.rule for f in lint_file(tmp_path / "half.onnx")[0].findings]
    path = write_toy_bundle(tmp_path / "toy.posekit")
    with Bundle(path) as bundle:
        entry = bundle.manifest.graphs["embedder"]
    replaced = {"embedder": (half_conv(True).SerializeToString(), entry)}
    linted = lint_file(write_toy_bundle(tmp_path / "half.posekit", replaced=replaced))
    assert all(f.rule != "onnxruntime-fp16-scales" for graph in linted for f in graph.findings)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"none\.onnx.*FileNotFoundError"):
        lint_file(tmp_path / "none.onnx")


def test_the_zero_point_is_found_in_a_graph_without_names() -> None:
    model = edited(good_qdq(), lambda m: [node.ClearField("name") for node in m.graph.node])
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.array(5, np.int8), "z"))
    found = {f.rule: f.node for f in lint(model)}
    assert found == {"nonzero-zero-point": "q", "unnamed-node": ""}
