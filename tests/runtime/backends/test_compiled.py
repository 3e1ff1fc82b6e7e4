"""What was compiled comes back whole, or not at all with the reason why; the folder stays bounded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from posekit.runtime.backends.compiled import DIGEST_BYTES, CompiledCache, Unusable, user_cache

MADE_OF = {"graph_sha256": "ab", "version": "1", "properties": {"b": 1, "a": [True, "x"]}}


def test_what_was_kept_is_found(tmp_path: Path) -> None:
    cache = CompiledCache(tmp_path / "new" / "folder")
    path = cache.path(MADE_OF)
    with pytest.raises(Unusable, match="nothing is kept as"):
        cache.found(path)
    assert cache.keep(path, b"compiled") == f"Kept as {path}."
    assert CompiledCache(cache.folder).found(path) == b"compiled"
    assert [file.name for file in cache.folder.iterdir()] == [path.name]


def test_every_part_of_the_key_counts_and_its_order_does_not(tmp_path: Path) -> None:
    cache = CompiledCache(tmp_path)
    assert cache.path(MADE_OF) == cache.path(dict(reversed(MADE_OF.items())))
    others = [MADE_OF | {name: "other"} for name in MADE_OF] + [{**MADE_OF, "more": 1}]
    assert len({cache.path(made_of) for made_of in [MADE_OF, *others]}) == 1 + len(others)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(content=st.binary(min_size=1, max_size=99), at=st.integers(0, 10_000), flip=st.integers(1, 255))
def test_a_damaged_or_cut_file_is_never_given_out(tmp_path: Path, content: bytes, at: int, flip: int) -> None:
    cache = CompiledCache(tmp_path)
    path = cache.path(MADE_OF)
    cache.keep(path, content)
    whole = path.read_bytes()
    place = at % len(whole)
    for damaged in (whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :], whole[:place], whole + b"\0"):
        path.write_bytes(damaged)
        with pytest.raises(Unusable, match="was damaged"):
            cache.found(path)


def test_what_cannot_be_read_or_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = CompiledCache(tmp_path / "file")
    path = cache.path(MADE_OF)
    with pytest.raises(Unusable, match="cannot be read"):
        cache.found(path)
    assert cache.keep(path, b"compiled").startswith("Not kept: ")


def test_the_folder_is_bounded_and_the_oldest_goes_first(tmp_path: Path) -> None:
    size = 100
    cache = CompiledCache(tmp_path, max_bytes=3 * (size + DIGEST_BYTES))
    paths = [cache.path({"n": n}) for n in range(4)]
    for age, path in enumerate(paths[:3]):
        cache.keep(path, bytes(size))
        os.utime(path, (1000 + age, 1000 + age))
    (tmp_path / f".{paths[0].name}.abcd.part").write_bytes(b"cut short")
    os.utime(tmp_path / f".{paths[0].name}.abcd.part", (999, 999))
    (tmp_path / "note.txt").write_bytes(bytes(10 * size))
    cache.found(paths[0])  # used now
    cache.keep(paths[3], bytes(size))
    assert {file.name for file in tmp_path.iterdir()} == {"note.txt", *(paths[n].name for n in (0, 2, 3))}
    assert "more than the cache's" in cache.keep(paths[1], bytes(1000))
    assert not paths[1].exists()


def test_a_user_without_a_home_has_no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("POSEKIT_CACHE", str(tmp_path))
    cache = user_cache("kind")
    assert cache is not None
    assert cache.folder == tmp_path / "kind"
    for name in ("POSEKIT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    assert user_cache("kind") is None
