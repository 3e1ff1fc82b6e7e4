"""A range table serves exactly one graph, data set, preparation and method, and never when damaged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from full_disk import full_disk
from hypothesis import given, settings
from hypothesis import strategies as st

from posekit.calibration.ranges import RangeTable, TensorRange
from posekit.calibration.table import TableKey, cached_table, json_from_table, table_key
from posekit.runtime.errors import PrecisionError

KEY = table_key(b"graph", "d" * 64, "{}", "percentile")
TABLE = RangeTable("percentile", 4, {"a": TensorRange(1.1, -0.3, 1.25, 1e-5), "b": TensorRange(1 / 3, 0.0, 0.5, 0.0)})


def never() -> RangeTable:
    raise AssertionError("made again")


def test_what_was_kept_is_read_back_equal(tmp_path: Path) -> None:
    first = cached_table(tmp_path / "new" / "folder", KEY, lambda: TABLE)
    assert first.table == TABLE
    assert first.origin.startswith("calibrated: no table for this graph and data yet; kept as")
    again = cached_table(tmp_path / "new" / "folder", KEY, never)
    assert (again.table, again.path) == (TABLE, first.path)
    assert "read from" in again.origin
    assert os.listdir(tmp_path / "new" / "folder") == [f"{KEY.sha256}.ranges.json"]


@pytest.mark.parametrize(
    "other",
    [
        table_key(b"Graph", "d" * 64, "{}", "percentile"),
        table_key(b"graph", "e" * 64, "{}", "percentile"),
        table_key(b"graph", "d" * 64, '{"pad":1.2}', "percentile"),
        table_key(b"graph", "d" * 64, "{}", "entropy"),
        replace(KEY, options={"percentile": 99.9}),
        replace(KEY, onnxruntime="0.1"),
        replace(KEY, code="c" * 64),
        replace(KEY, format=0),
    ],
)
def test_any_difference_makes_a_new_table(tmp_path: Path, other: TableKey) -> None:
    kept = cached_table(tmp_path, KEY, lambda: TABLE)
    assert kept.path is not None
    assert cached_table(tmp_path, other, lambda: replace(TABLE, batches=9)).table.batches == 9
    assert cached_table(tmp_path, KEY, never).table == TABLE
    (tmp_path / f"{other.sha256}.ranges.json").write_bytes(kept.path.read_bytes())  # renamed by hand
    found = cached_table(tmp_path, other, lambda: replace(TABLE, batches=10))
    assert found.table.batches == 10
    assert "made for something else" in found.origin


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_damaged_byte_is_never_used(tmp_path_factory: pytest.TempPathFactory, place: int, change: int) -> None:
    folder = tmp_path_factory.mktemp("cache")
    kept = cached_table(folder, KEY, lambda: TABLE)
    assert kept.path is not None
    content = bytearray(kept.path.read_bytes())
    content[place % len(content)] ^= change
    kept.path.write_bytes(content)
    found = cached_table(folder, KEY, lambda: TABLE)
    assert found.table == TABLE  # made again, or the byte was white space


@pytest.mark.parametrize(
    "damage", [lambda b: b[:100], lambda b: b"", lambda b: b.replace(b": 1.1,", b": 2.1,"), lambda b: b"[]"]
)
def test_damage_is_said_and_repaired(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    kept = cached_table(tmp_path, KEY, lambda: TABLE)
    assert kept.path is not None
    kept.path.write_bytes(damage(kept.path.read_bytes()))
    again = cached_table(tmp_path, KEY, lambda: TABLE)
    assert "damaged" in again.origin
    assert "read from" in cached_table(tmp_path, KEY, never).origin


def test_a_folder_that_cannot_be_written_costs_the_cache_alone(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    found = cached_table(blocked / "folder", KEY, lambda: TABLE)
    assert (found.table, found.path) == (TABLE, None)
    assert "not kept" in found.origin
    with full_disk(10):
        found = cached_table(tmp_path, KEY, lambda: TABLE)
    assert (found.table, found.path) == (TABLE, None)
    assert "not kept" in found.origin
    assert os.listdir(tmp_path) == ["file"]


def test_a_table_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="made again"):
        cached_table(tmp_path, KEY, never)
    assert os.listdir(tmp_path) == []


def test_two_processes_may_share_a_folder(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from posekit.calibration.ranges import RangeTable, TensorRange\n"
        "from posekit.calibration.table import cached_table, table_key\n"
        "table = RangeTable('minmax', 1, {str(i): TensorRange(i / 7, 0.0, i / 7, 0.0) for i in range(2000)})\n"
        "for turn in range(12):\n"
        "    key = table_key(bytes([turn]), 'd', '{}', 'minmax')\n"
        "    found = cached_table(Path(sys.argv[1]), key, lambda: table)\n"
        "    assert found.table == table and 'damaged' not in found.origin and found.path, found.origin\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path)]) for _ in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    assert len(os.listdir(tmp_path)) == 12


def test_the_file_is_reproducible_and_the_method_must_exist() -> None:
    backwards = replace(TABLE, ranges=dict(reversed(TABLE.ranges.items())))
    assert json_from_table(KEY, TABLE) == json_from_table(KEY, backwards)
    assert json.loads(json_from_table(KEY, TABLE))["key"]["onnxruntime"]
    with pytest.raises(PrecisionError, match="one of minmax"):
        table_key(b"", "", "", "kl")
