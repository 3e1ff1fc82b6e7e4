"""Records from plain values: everything that does not fit is refused by its key path, nothing is converted."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posekit.runtime.errors import BundleError
from posekit.runtime.manifest import json_from_manifest, manifest_from_json
from posekit.runtime.records import RecordProblem, plain_from, record_from


@dataclass(frozen=True)
class Leaf:
    size: int
    ratio: float = 0.5


@dataclass(frozen=True)
class Tree:
    name: str
    kind: Literal["oak", "fir"]
    leaf: Leaf
    leaves: tuple[Leaf, ...] = ()
    corner: tuple[float, float] = (0.0, 0.0)
    by_name: dict[str, Leaf] = field(default_factory=dict)
    by_kind: dict[Literal["oak", "fir"], int] = field(default_factory=dict)
    shape: tuple[int | str, ...] = ()
    note: str | None = None
    free: dict[str, Any] = field(default_factory=dict)


PLAIN: dict[str, Any] = {"name": "a", "kind": "oak", "leaf": {"size": 1}}


@pytest.mark.parametrize(
    ("change", "where", "got"),
    [
        ({"colour": 1}, "Tree", "colour"),
        ({"leaf": {"size": 1, "sise": 2}}, "Tree.leaf", "sise"),
        ({"leaf": {}}, "Tree.leaf", "size"),
        ({"leaf": 3}, "Tree.leaf", "3"),
        ({"name": 3}, "Tree.name", "3"),
        ({"kind": "elm"}, "Tree.kind", "elm"),
        ({"leaf": {"size": True}}, "Tree.leaf.size", "True"),
        ({"leaf": {"size": 1.0}}, "Tree.leaf.size", "1.0"),
        ({"leaf": {"size": "1"}}, "Tree.leaf.size", "'1'"),
        ({"leaf": {"size": 1, "ratio": True}}, "Tree.leaf.ratio", "True"),
        ({"leaf": {"size": 1, "ratio": float("nan")}}, "Tree.leaf.ratio", "nan"),
        ({"leaf": {"size": 1, "ratio": float("inf")}}, "Tree.leaf.ratio", "inf"),
        ({"leaf": {"size": 1, "ratio": 10**400}}, "Tree.leaf.ratio", "1000"),
        ({"leaves": [{"size": 1}, {}]}, r"Tree.leaves\[1\]", "size"),
        ({"leaves": {"size": 1}}, "Tree.leaves", "size"),
        ({"leaves": "ab"}, "Tree.leaves", "ab"),
        ({"corner": [1, 2, 3]}, "Tree.corner", "3 values"),
        ({"by_name": {"x": 1}}, "Tree.by_name.x", "1"),
        ({"by_name": [1]}, "Tree.by_name", "1"),
        ({"by_kind": {"elm": 1}}, "Tree.by_kind", "elm"),
        ({"shape": [1, 2.0]}, r"Tree.shape\[1\]", "2.0"),
        ({"note": 5}, "Tree.note", "5"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], where: str, got: str) -> None:
    with pytest.raises(RecordProblem, match=where) as caught:
        record_from(Tree, {**PLAIN, **change})
    assert got in str(caught.value.got)


def test_whole_numbers_are_floats_where_floats_are_wanted() -> None:
    leaf = record_from(Leaf, {"size": 1, "ratio": 2})
    assert type(leaf.ratio) is float
    assert leaf == Leaf(1, 2.0)


leaves = st.builds(Leaf, st.integers(), st.floats(allow_nan=False, allow_infinity=False))
kinds = st.sampled_from(["oak", "fir"])
trees = st.builds(
    Tree,
    st.text(),
    kinds,
    leaves,
    st.lists(leaves).map(tuple),
    st.tuples(st.floats(-1e9, 1e9), st.floats(-1e9, 1e9)),
    st.dictionaries(st.text(), leaves),
    st.dictionaries(kinds, st.integers()),
    st.lists(st.integers() | st.text()).map(tuple),
    st.none() | st.text(),
)


@given(trees)
def test_plain_and_back_is_identity(tree: Tree) -> None:
    assert record_from(Tree, json.loads(json.dumps(plain_from(tree)))) == tree


@dataclass(frozen=True)
class Bare:
    """Nothing has a default, and one may be absent all the same: `plain_from` leaves None out."""

    there: int
    perhaps: int | None


def test_what_is_none_need_not_be_there() -> None:
    for record in (Bare(1, None), Bare(1, 2)):
        assert record_from(Bare, plain_from(record)) == record
    with pytest.raises(RecordProblem, match="there"):
        record_from(Bare, {"perhaps": 2})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*PLAIN, "size"]), inner, max_size=4),
    max_leaves=8,
)


@given(json_values)
def test_anything_else_is_a_record_problem(value: Any) -> None:
    for candidate in (value, {**PLAIN, "leaf": value}, {**PLAIN, "leaves": value}, {**PLAIN, "shape": value}):
        try:
            record = record_from(Tree, candidate)
        except RecordProblem:
            continue
        assert record_from(Tree, plain_from(record)) == record


MANIFEST: dict[str, Any] = {
    "format": 1,
    "name": "toy",
    "system": "own",
    "provenance": {},
    "graphs": {
        "embedder": {
            "role": "embedder",
            "variants": {"fp32": "e.onnx"},
            "inputs": [{"name": "crops", "dtype": "uint8", "shape": ["batch", 32, 32, 3]}],
            "outputs": [{"name": "descriptors", "dtype": "float32", "shape": ["batch", 4, 8]}],
        }
    },
    "objects": [
        {"id": 1, "name": "a", "diameter_m": 0.1, "bbox_min_m": [0, 0, 0], "bbox_max_m": [1, 1, 1], "model": "a.st"}
    ],
    "paths": {
        "main": {
            "kind": "regressor",
            "graph": "embedder",
            "crop": {"rule": "square", "size_px": 32},
            "object_ids": [1],
        }
    },
    "default_path": "main",
    "files": {"e.onnx": {"size": 1, "sha256": "0"}, "a.st": {"size": 1, "sha256": "0"}},
}


DETECTOR = {
    "graph": "embedder", "family": "posekit", "input_wh_px": [64, 64], "letterbox_value": 114,
    "class_object_ids": [1], "score_threshold": 0.3, "iou_threshold": 0.5,
}  # fmt: skip


def changed(path: tuple[Any, ...], value: Any) -> str:
    manifest = json.loads(json.dumps(MANIFEST))
    place = manifest
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return json.dumps(manifest)


def test_a_manifest_survives_its_own_text() -> None:
    manifest = manifest_from_json(json.dumps(MANIFEST))
    assert manifest_from_json(json_from_manifest(manifest)) == manifest


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("format",), 2, "format"),
        (("format",), True, "format"),
        (("extra",), 1, "extra"),
        (("default_path",), "other", "default_path"),
        (("graphs", "embedder", "variants"), {}, "variants"),
        (("graphs", "embedder", "variants"), {"fp8": "e.onnx"}, "fp8"),
        (("graphs", "embedder", "variants"), {"fp32": "gone.onnx"}, "gone.onnx"),
        (("graphs", "embedder", "role"), "oracle", "oracle"),
        (("graphs", "embedder", "crops_per_pass"), [1, 8, 4], "crops_per_pass"),
        (("graphs", "embedder", "crops_per_pass"), [0, 1, 4], "crops_per_pass"),
        (("graphs", "embedder", "views"), 0, "views"),
        (("graphs", "embedder", "inputs", 0, "dtype"), "object", "object"),
        (("graphs", "embedder", "inputs", 0, "shape"), [0, 3], r"\(0, 3\)"),
        (("objects", 0, "model"), "gone", "gone"),
        (("objects", 0, "diameter_m"), -1, "diameter_m"),
        (("objects", 0, "diameter_m"), float("nan"), "diameter_m"),
        (("objects", 0, "symmetries_discrete"), [[1.0, 2.0]], "symmetries_discrete"),
        (("objects",), MANIFEST["objects"] * 2, "twice"),
        (("paths", "main", "graph"), "gone", "gone"),
        (("paths", "main", "object_ids"), [7], "object_ids"),
        (("paths", "main", "kind"), "bank", "bank"),
        (("paths", "main", "kind"), "correspondence", "solver"),
        (("paths", "main", "crop", "rule"), "hexagon", "hexagon"),
        (("paths", "main", "crop", "size_px"), -4, "size_px"),
        (("reports",), {"parity": "gone"}, "gone"),
        (("paths", "main", "solver"), {"method": "p3p-ransac", "iterations": 0, "reprojection_px": 1}, "iterations"),
        (("detector",), DETECTOR | {"class_object_ids": [7]}, "class_object_ids"),
        (("detector",), DETECTOR | {"letterbox_value": 300}, "letterbox_value"),
        (("detector",), DETECTOR | {"score_threshold": -1}, "score_threshold"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(path: tuple[Any, ...], value: Any, named: str) -> None:
    with pytest.raises(BundleError, match=named):
        manifest_from_json(changed(path, value))


def test_a_bank_needs_the_graph_that_it_is_bound_to() -> None:
    manifest = json.loads(json.dumps(MANIFEST))
    manifest["graphs"]["embedder"]["variants"] = {"int8": "e.onnx"}
    manifest["paths"]["main"] |= {"kind": "bank", "matcher": "embedder", "banks": {"1": "a.st"}}
    with pytest.raises(BundleError, match="no fp32"):
        manifest_from_json(json.dumps(manifest))


@pytest.mark.parametrize(
    "text", ["", "[]", "nul", "{" * 100_000, "[" * 100_000, '{"format": 1, "format": 1}', "\xff", b"\xff\xfe"]
)
def test_text_that_is_no_manifest_is_refused(text: str | bytes) -> None:
    with pytest.raises(BundleError, match="manifest"):
        manifest_from_json(text)
