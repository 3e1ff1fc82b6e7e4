"""Frozen dataclasses from plain JSON or TOML values, and back. Unknown keys are refused, nothing is converted silently."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
import typing
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Literal, TypeVar, Union

R = TypeVar("R")


class RecordProblem(ValueError):
    """Terse: where, got, expected. The caller knows the file and says what to do."""

    def __init__(self, where: str, got: object, expected: str) -> None:
        self.where, self.got, self.expected = where, got, expected
        super().__init__(f"{where}: got {got}, expected {expected}")


def record_from(kind: type[R], value: object, where: str = "") -> R:
    """Build the dataclass `kind` from a mapping, recursively. RecordProblem names the key path that does not fit."""
    result = _convert(kind, value, where or kind.__name__)
    return typing.cast(R, result)


def plain_from(value: Any) -> Any:
    """The inverse: dataclasses, tuples and mappings to dicts, lists and scalars; None fields are left out."""
    if dataclasses.is_dataclass(value):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {name: plain_from(v) for name, v in fields.items() if v is not None}
    if isinstance(value, Mapping):
        return {k: plain_from(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_from(v) for v in value]
    return value


@cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _convert(kind: Any, value: object, where: str) -> Any:
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind):
        return _dataclass(typing.cast(type, kind), value, where)
    if origin in CONVERTERS:
        return CONVERTERS[origin](typing.get_args(kind), value, where)
    return _scalar(kind, value, where)


def _dataclass(kind: type, value: object, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise RecordProblem(where, repr(value)[:60], "a table")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    unknown = sorted(set(value) - set(fields))
    if unknown:
        raise RecordProblem(where, f"unknown key {unknown[0]!r}", f"only {', '.join(fields)}")
    hints = _hints(kind)
    bare = {n for n, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING}
    absent = {
        n: None for n in bare - set(value) if types.NoneType in typing.get_args(hints[n])
    }  # left out by plain_from
    required = bare - set(absent)
    missing = sorted(required - set(value))
    if missing:
        raise RecordProblem(where, f"no key {missing[0]!r}", f"the keys {', '.join(sorted(required))}")
    return kind(**absent, **{name: _convert(hints[name], v, f"{where}.{name}") for name, v in value.items()})


def _tuple(args: tuple[Any, ...], value: object, where: str) -> Any:
    if not isinstance(value, (list, tuple)):
        raise RecordProblem(where, repr(value)[:60], "a list")
    kinds = (args[0],) * len(value) if len(args) == 2 and args[1] is Ellipsis else args
    if len(kinds) != len(value):
        raise RecordProblem(where, f"{len(value)} values", f"{len(kinds)}")
    return tuple(_convert(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))


def _mapping(args: tuple[Any, ...], value: object, where: str) -> Any:
    if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in value):
        raise RecordProblem(where, repr(value)[:60], "a table")
    return {_convert(args[0], k, where): _convert(args[1], v, f"{where}.{k}") for k, v in value.items()}


def _union(args: tuple[Any, ...], value: object, where: str) -> Any:
    if value is None and types.NoneType in args:
        return None
    problems = []
    for kind in args:
        if kind is types.NoneType:
            continue
        try:
            return _convert(kind, value, where)
        except RecordProblem as problem:
            problems.append(problem)
    raise problems[-1]


def _literal(args: tuple[Any, ...], value: object, where: str) -> Any:
    if not any(value == a and type(value) is type(a) for a in args):
        raise RecordProblem(where, repr(value)[:60], f"one of {', '.join(map(str, args))}")
    return value


def _scalar(kind: Any, value: object, where: str) -> Any:
    if kind is float and type(value) in (int, float):  # TOML and JSON write whole floats as integers
        return _finite(typing.cast(float, value), where)
    if kind is not Any and type(value) is not kind:
        raise RecordProblem(where, repr(value)[:60], getattr(kind, "__name__", str(kind)))
    return value


def _finite(value: float, where: str) -> float:
    if not -sys.float_info.max <= value <= sys.float_info.max:  # NaN too; both formats can write it
        raise RecordProblem(where, repr(value)[:60], "a finite number")
    return float(value)


CONVERTERS: dict[Any, Callable[[tuple[Any, ...], object, str], Any]] = {
    tuple: _tuple,
    dict: _mapping,
    Union: _union,
    types.UnionType: _union,
    Literal: _literal,
}


def distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a table of a JSON text's pairs (`object_pairs_hook`). ValueError for a key twice: which one counts is a guess."""
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"a key twice: {next(n for n in names if names.count(n) > 1)!r}")
    return table


def json_from_record(value: Any) -> str:
    """One line of JSON, the same for equal records: a name for comparing."""
    return json.dumps(plain_from(value), sort_keys=True, separators=(",", ":"))
