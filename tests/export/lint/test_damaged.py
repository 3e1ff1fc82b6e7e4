"""Whatever a file holds: findings, or one error in three clauses; never a traceback, never a crash."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest
from google.protobuf.message import Message  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st
from lint_cases import CASES, graph
from onnx import ModelProto

from posekit.export.lint import lint
from posekit.export.lint.lint_file import lint_file, model_from_bytes
from posekit.runtime.errors import ExportError

CONTENTS = [model().SerializeToString() for case in CASES for model in (case.bad, case.good)]
NUMBERS = (-(2**31), -7, -1, 0, 1, 2, 3, 7, 10, 99, 2**31 - 1)
TEXTS = ("", "x", "y", "Relu", "QuantizeLinear", "Constant", "ai.onnx", "\u2028", "axis")


def messages(message: Any) -> list[Any]:
    """A message and all those inside it."""
    found = [message]
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for part in [value] if isinstance(value, Message) else value:
                found += messages(part)
    return found


def damage(model: ModelProto, random: Random) -> None:
    """One field somewhere: another value, none, or its elements repeated, dropped or in another order."""
    message = random.choice(messages(model))
    field = random.choice(message.DESCRIPTOR.fields)
    value = getattr(message, field.name)
    if random.random() < 0.3 or (field.type == field.TYPE_MESSAGE and isinstance(value, Message)):
        message.ClearField(field.name)
    elif hasattr(value, "append") or hasattr(value, "add"):
        _shuffle(value, random)
    elif field.type == field.TYPE_STRING:
        setattr(message, field.name, random.choice(TEXTS))
    elif field.type == field.TYPE_BYTES:
        setattr(message, field.name, random.randbytes(random.randrange(9)))
    elif field.type == field.TYPE_FLOAT:
        setattr(message, field.name, random.choice((float("nan"), float("inf"), -1.0, 0.0)))
    else:
        values = [v.number for v in field.enum_type.values] if field.enum_type else NUMBERS
        setattr(message, field.name, random.choice(values))


def _shuffle(repeated: Any, random: Random) -> None:
    parts = list(repeated)
    if parts:
        kept = [random.choice(parts) for _ in range(random.randrange(len(parts) + 2))]
        del repeated[:]
        repeated.extend(kept)


@given(st.sampled_from(CONTENTS), st.randoms(use_true_random=False), st.integers(1, 6))
@settings(max_examples=600)
def test_damaged_graphs_are_findings(content: bytes, random: Random, times: int) -> None:
    model = model_from_bytes(content, "x.onnx")
    for _ in range(times):
        damage(model, random)
    for finding in lint(model):
        assert finding.got
        assert finding.targets


@given(st.sampled_from(CONTENTS), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4))
@settings(max_examples=400)
def test_damaged_bytes_are_findings_or_one_error(content: bytes, changes: list[tuple[float, int]]) -> None:
    damaged = bytearray(content)
    for place, value in changes:
        damaged[int(place * (len(damaged) - 1))] = value
    _lint_or_refuse(bytes(damaged))


@given(st.binary(max_size=300))
def test_any_bytes_are_findings_or_one_error(content: bytes) -> None:
    _lint_or_refuse(content)


@given(st.sampled_from(CONTENTS), st.floats(0, 1))
def test_a_truncated_file_is_refused_or_linted(content: bytes, share: float) -> None:
    _lint_or_refuse(content[: int(share * len(content))])


def _lint_or_refuse(content: bytes) -> None:
    with suppress(ExportError):
        lint(model_from_bytes(content, "x.onnx"))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip", b"\x00" * 100, "Bären".encode("latin-1")])
def test_what_is_no_graph_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(content)
    with pytest.raises(ExportError, match=r"x\.onnx.*ONNX model"):
        lint_file(path)


def test_text_that_is_no_text_is_a_finding() -> None:
    content = graph("[odd] y = Relu(x)").SerializeToString().replace(b"odd", b"\xff\xfe\xfd")
    findings = lint(model_from_bytes(content, "x"))
    assert [(f.rule, f.got) for f in findings] == [("invalid-graph", "1 texts that are not UTF-8")]
