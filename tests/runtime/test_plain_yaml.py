"""The plain YAML that cameras are written in: what JSON says it says, and what is not plain is refused by line."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posekit.runtime.plain_yaml import plain_from_yaml

words = st.text("abcz /_.:,[]{}#-'", max_size=8)
leaves = (
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False) | words
)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4), max_leaves=12
)


@settings(max_examples=60)
@given(st.dictionaries(words, values, min_size=1), st.sampled_from([None, 2]))
def test_json_is_yaml(value: Any, indent: int | None) -> None:
    assert plain_from_yaml(json.dumps(value, indent=indent)) == value


def block(value: Any, indent: int, dash: int) -> str:
    """Block style; dash: how far list items are indented below their key."""
    if isinstance(value, dict) and value:
        return "\n" + "".join(f"{' ' * indent}{key}:{block(v, indent + 2, dash)}" for key, v in value.items())
    if isinstance(value, list) and value and not any(isinstance(v, (list, dict)) for v in value):
        return "\n" + "".join(f"{' ' * (indent - 2 + dash)}- {json.dumps(v)}\n" for v in value)
    return f" {json.dumps(value)}  # a comment\n"


names = st.text("abc_0", min_size=1, max_size=6)
lists = st.lists(leaves | st.lists(leaves, max_size=3), max_size=4)
tables = st.dictionaries(names, leaves | lists | st.dictionaries(names, leaves | lists, min_size=1), min_size=1)


@settings(max_examples=60)
@given(tables, st.sampled_from([0, 2]))
def test_blocks_say_the_same(value: dict[str, Any], dash: int) -> None:
    assert plain_from_yaml(f"%YAML:1.0\n---{block(value, 0, dash)}---\nanother: document\n") == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("# nothing\n", None),
        (
            "a: !!opencv-matrix\n   rows: 1\n   data: [ 1., 2.e-01,\n       -3 ]\n",
            {"a": {"rows": 1, "data": [1.0, 0.2, -3]}},
        ),
        ("- - 1\n  - 2\n- a: 1\n  b: 2\n", [[1, 2], {"a": 1, "b": 2}]),
        (
            "t: Sat Nov 28 10:00:01 2026\nu: /cam0/image#raw\n",
            {"t": "Sat Nov 28 10:00:01 2026", "u": "/cam0/image#raw"},
        ),
        (
            "a: 1e-3\nb: .5\nc: 1.\nd: +2\ne: 1.2.3\nf:\n",
            {"a": 1e-3, "b": 0.5, "c": 1.0, "d": 2, "e": "1.2.3", "f": None},
        ),
    ],
)
def test_what_camera_files_write(text: str, value: Any) -> None:
    assert plain_from_yaml(text) == value


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("a: &x 1", "line 1: no plain YAML"),
        ("a: 1\nb: *x", "line 2: no plain YAML"),
        ("a: |\n  text", "no plain YAML"),
        ("a:\tb", "no plain YAML"),
        ("a: 1\na: 2", "line 2: the key 'a' again"),
        ("a: {b: 1, b: 2}", "each once"),
        ("a: 1\n  b: 2", "line 2: an indent"),
        ("a: [1, 2", "a bracket that is not closed"),
        ("a: [1, 2]]", "more than one value"),
        ("a: [1 [2]]", "comma"),
        ("a: [1,, 2]", "a value that is missing"),
        ("just words", "no key"),
    ],
)
def test_what_is_not_plain_is_refused_by_line(text: str, cause: str) -> None:
    with pytest.raises(ValueError, match=cause):
        plain_from_yaml(text)


@given(st.text("ab:-[]{},#'\"\n  !&*0.", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(ValueError):
        plain_from_yaml(text)
