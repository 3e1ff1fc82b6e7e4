"""The YAML that cameras are written in: tables, lists, numbers and words. Nothing else of YAML is read, and nothing is guessed.

No library is needed on the device for it. Anchors, references, texts over several lines and tabs are refused by line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

KEY = re.compile(r"""("[^"]*"|'[^']*'|[^\s"'\[\]{},#&*!|>%@`-][^"'\[\]{}]*?)\s*:(?:\s+|$)""")
WORD = re.compile(
    r"""\s*("(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|[\[\]{},]|:(?=\s|$)|[^\s\[\]{},](?:[^\[\]{},:]|:(?!\s|$))*)"""
)
COMMENT = re.compile(r"""^((?:[^"'#]|"[^"]*"|'[^']*'|(?<=\S)#)*?)(?:(?:^|\s)#.*)?$""")
TAG = re.compile(r"!!?[\w./:-]*\s*")
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
CONSTANTS: dict[str, Any] = {
    "": None, "~": None, "null": None, "true": True, "True": True, "false": False, "False": False,
    ".nan": float("nan"), ".NaN": float("nan"), ".inf": float("inf"), "-.inf": float("-inf"),
}  # fmt: skip


@dataclass
class _Line:
    number: int
    indent: int
    text: str


def plain_from_yaml(text: str) -> Any:
    """The first document of a YAML text as dicts, lists, numbers, texts, booleans and None. ValueError names the line."""
    lines = list(_joined(_lines(text)))
    if not lines:
        return None
    value, rest = _block(lines, 0, lines[0].indent)
    if rest < len(lines):
        raise _problem(lines[rest], "an indent of its own")
    return value


def _problem(line: _Line, what: str) -> ValueError:
    return ValueError(f"line {line.number}: {what} ({line.text[:60]!r})")


def _lines(text: str) -> Iterator[_Line]:
    """Lines of the first document that say something, without comments."""
    started = False
    for number, raw in enumerate(text.splitlines(), 1):
        if raw.startswith("%"):
            continue
        if raw.startswith(("---", "...")):
            if started:
                return
            raw = raw[3:]
        indent = len(raw) - len(raw.lstrip(" "))
        found = COMMENT.match(raw[indent:])
        said = _Line(number, indent, (found.group(1) if found else raw[indent:]).rstrip())
        if "\t" in said.text or said.text.startswith(("&", "*", "|", ">", "? ")):
            raise _problem(said, "no plain YAML")
        if said.text:
            started = True
            yield said


def _joined(lines: Iterator[_Line]) -> Iterator[_Line]:
    """A list or table in brackets that goes on over several lines becomes one line."""
    for line in lines:
        depth = _depth(line)
        while depth > 0:
            more = next(lines, None)
            if more is None:
                raise _problem(line, "a bracket that is not closed")
            depth += _depth(more)
            line.text += " " + more.text
        yield line


def _depth(line: _Line) -> int:
    bare = re.sub(r""""[^"]*"|'[^']*'""", "", line.text)
    return sum(bare.count(c) for c in "[{") - sum(bare.count(c) for c in "]}")


def _block(lines: list[_Line], i: int, indent: int) -> tuple[Any, int]:
    """The table or list whose lines begin at this indent from line i on, and the line after it."""
    if lines[i].text[0] in "[{":
        return _flow(lines[i], lines[i].text), i + 1
    return _list(lines, i, indent) if _is_item(lines[i]) else _table(lines, i, indent)


def _is_item(line: _Line) -> bool:
    return line.text == "-" or line.text.startswith("- ")


def _list(lines: list[_Line], i: int, indent: int) -> tuple[list[Any], int]:
    items: list[Any] = []
    while i < len(lines) and lines[i].indent == indent and _is_item(lines[i]):
        line = lines[i]
        inner = line.text[1:].lstrip()
        if inner and (KEY.match(inner) or inner.startswith("- ")):  # a table or list that starts on this line
            lines[i] = _Line(line.number, indent + len(line.text) - len(inner), inner)
            value, i = _block(lines, i, lines[i].indent)
        else:
            value, i = _value(lines, i, inner, indent)
        items.append(value)
    return items, i


def _table(lines: list[_Line], i: int, indent: int) -> tuple[dict[str, Any], int]:
    table: dict[str, Any] = {}
    while i < len(lines) and lines[i].indent == indent and not _is_item(lines[i]):
        line = lines[i]
        found = KEY.match(line.text)
        if found is None:
            raise _problem(line, "no key with a colon and a space")
        key = found.group(1).strip("\"'")
        if key in table:
            raise _problem(line, f"the key {key!r} again")
        table[key], i = _value(lines, i, line.text[found.end() :], indent)
    return table, i


def _value(lines: list[_Line], i: int, text: str, indent: int) -> tuple[Any, int]:
    """What follows a key or a dash on line i: a value there, or a block below it."""
    line, text = lines[i], TAG.sub("", text, count=1) if text.startswith("!") else text
    if text:
        return _flow(line, text), i + 1
    below = lines[i + 1] if i + 1 < len(lines) else None
    is_list_of_key = below is not None and below.indent == indent and _is_item(below) and not _is_item(line)
    if below is None or not (below.indent > indent or is_list_of_key):
        return None, i + 1
    return _block(lines, i + 1, below.indent)


def _flow(line: _Line, text: str) -> Any:
    """A value that is written on one line."""
    if text[0] in "&*|>@`":
        raise _problem(line, "no plain YAML")
    if text[0] not in "[{\"'":
        return _scalar(text)
    words, at = [], 0
    while at < len(text.rstrip()):
        found = WORD.match(text, at)
        if found is None:
            raise _problem(line, "no plain YAML")
        words.append(found.group(1).rstrip())
        at = found.end()
    words.reverse()
    value = _inner(line, words)
    if words:
        raise _problem(line, "more than one value")
    return value


def _inner(line: _Line, words: list[str]) -> Any:
    """Take one value off the words, whose first is last."""
    word = words.pop() if words else ""
    if word not in ("[", "{"):
        if word in ("", "]", "}", ",", ":"):
            raise _problem(line, "a value that is missing")
        return _scalar(word)
    closing, items, table = ("]" if word == "[" else "}"), [], {}
    while words and words[-1] != closing:
        value = _inner(line, words)
        if closing == "}":
            if not isinstance(value, str) or not words or words.pop() != ":" or value in table:
                raise _problem(line, "no table of keys, each once")
            table[value] = _inner(line, words)
        else:
            items.append(value)
        if words and words[-1] == ",":
            words.pop()
        elif words and words[-1] != closing:
            raise _problem(line, "a comma that is missing")
    if not words:
        raise _problem(line, "a bracket that is not closed")
    words.pop()
    return table if closing == "}" else items


def _scalar(text: str) -> Any:
    if text[0] in "\"'":
        return text[1:-1]
    if text in CONSTANTS:
        return CONSTANTS[text]
    if not NUMBER.fullmatch(text):
        return text
    return float(text) if set(text) & set(".eE") else int(text)
