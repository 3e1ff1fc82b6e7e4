"""Steps of an export are made once per content, whatever happened to the process or the disk in between."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posekit.export.steps import ABANDONED_S, Anew, StepCacheWarning, Steps


@dataclass(frozen=True)
class Told:
    words: str
    parts: tuple[float, ...] = ()
    none: int | None = None


def making(out: Path | None, content: bytes, calls: list[str], told: Told | None = None) -> Callable[[], Told]:
    def make() -> Told:
        calls.append("made")
        if out is not None:
            out.write_bytes(content)
        return told or Told("done")

    return make


INPUTS = {"graph": "aa", "crops": "bb"}


def test_a_step_is_made_once(tmp_path: Path) -> None:
    calls: list[str] = []
    told = Told("x", (0.5, 1.0))
    for turn in range(3):
        out, steps = tmp_path / f"out{turn}", Steps(tmp_path / "cache")
        assert steps.result(Told, "graph a", INPUTS, making(out, b"content", calls, told), out) == told
        assert out.read_bytes() == b"content"
        assert (steps.found, steps.made) == (([], ["graph a"]) if turn == 0 else (["graph a"], []))
    assert calls == ["made"]
    kept = Steps(tmp_path / "cache").kept("graph a", INPUTS)
    assert kept is not None
    assert (kept.size, kept.result) == (7, {"words": "x", "parts": [0.5, 1.0]})


@given(
    changed=st.dictionaries(st.sampled_from(["graph", "crops", "more"]), st.text(max_size=3)), name=st.text(max_size=3)
)
def test_another_input_or_name_is_another_step(changed: dict[str, str], name: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        calls: list[str] = []
        steps = Steps(Path(folder))
        steps.result(Told, "a", INPUTS, making(None, b"", calls))
        steps.result(Told, name, INPUTS | changed, making(None, b"", calls))
        assert len(calls) == (1 if name == "a" and INPUTS | changed == INPUTS else 2)


def place(cache: Path) -> Path:
    (found,) = (p for p in cache.iterdir() if not p.name.startswith("."))
    return found


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def swap(path: Path) -> None:
    path.unlink()
    path.write_bytes(b"another")


def rewrite(path: Path) -> None:
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"inputs": {"graph": "cc"}}))


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("record.json", shorten),
        ("record.json", rewrite),
        ("file", swap),
        ("file", Path.unlink),
        ("record.json", Path.unlink),
    ],
)
def test_what_is_damaged_is_made_again(file: str, damage: Callable[[Path], None], tmp_path: Path) -> None:
    calls: list[str] = []
    out, cache = tmp_path / "out", tmp_path / "cache"
    Steps(cache).result(Told, "a", INPUTS, making(out, b"content", calls), out)
    damage(place(cache) / file)
    again, steps = tmp_path / "again", Steps(cache)
    with pytest.warns(StepCacheWarning, match="damaged"):
        steps.result(Told, "a", INPUTS, making(again, b"content", calls), again)
    assert len(calls) == 2
    assert again.read_bytes() == b"content"
    last = tmp_path / "last"
    Steps(cache).result(Told, "a", INPUTS, making(last, b"content", calls), last)
    assert len(calls) == 2


def test_a_failed_step_is_not_kept(tmp_path: Path) -> None:
    def fail() -> Told:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        Steps(tmp_path / "cache").result(Told, "a", INPUTS, fail)
    assert Steps(tmp_path / "cache").kept("a", INPUTS) is None


def test_a_result_that_no_file_can_hold_is_made_each_time(tmp_path: Path) -> None:
    calls: list[str] = []
    endless = Told("x", (float("inf"),))
    for _ in range(2):
        assert Steps(tmp_path).result(Told, "a", {}, making(None, b"", calls, endless)) == endless
    assert len(calls) == 2


def test_two_processes_at_once(tmp_path: Path) -> None:
    """The second finds the first one's step when it comes to keep its own."""
    calls: list[str] = []
    first, second = tmp_path / "first", tmp_path / "second"

    def slow() -> Told:
        Steps(tmp_path / "cache").result(Told, "a", INPUTS, making(first, b"content", calls), first)
        return making(second, b"content", calls)()

    assert Steps(tmp_path / "cache").result(Told, "a", INPUTS, slow, second) == Told("done")
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_cache_that_cannot_be_written_costs_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")
    steps, calls = Steps(tmp_path / "cache"), list[str]()
    with pytest.warns(StepCacheWarning, match="not kept"):
        steps.result(Told, "a", {}, making(None, b"", calls))
    steps.result(Told, "b", {}, making(None, b"", calls))  # said once
    assert len(calls) == 2


def test_the_cache_is_bounded_and_the_oldest_go_first(tmp_path: Path) -> None:
    steps = Steps(tmp_path / "cache", max_bytes=2500)
    for number in range(3):
        out = tmp_path / f"out{number}"
        steps.result(Told, f"step {number}", {}, making(out, bytes(1000), []), out)
        os.utime(max((tmp_path / "cache").iterdir(), key=lambda p: p.stat().st_mtime), (number, number))
    assert [steps.kept(f"step {number}", {}) is not None for number in range(3)] == [False, False, True] or [
        steps.kept(f"step {number}", {}) is not None for number in range(3)
    ] == [False, True, True]


def test_what_was_cut_short_is_never_picked_up_and_goes_after_a_day(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    old, young = (cache / f".{'a' * 64}.{n}.part" for n in ("01", "02"))
    for part in (old, young):
        part.mkdir(parents=True)
        (part / "record.json").write_text("{")
    os.utime(old, (time.time() - ABANDONED_S - 9,) * 2)
    (cache / "mine.txt").write_text("not posekit's")
    Steps(cache).result(Told, "a", {}, making(None, b"", []))
    assert not old.exists()
    assert young.exists()
    assert (cache / "mine.txt").exists()


def test_without_a_cache_everything_is_made() -> None:
    calls: list[str] = []
    for _ in range(2):
        Anew().result(Told, "a", INPUTS, making(None, b"", calls))
    assert len(calls) == 2
