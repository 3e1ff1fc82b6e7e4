"""Equal values have equal fingerprints, different ones different."""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posekit.export.fingerprint import code, fingerprint, user_code
from posekit.runtime.file_hash import file_sha256

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=3), each, max_size=3),
    max_leaves=6,
)


@dataclass(frozen=True)
class Pair:
    a: object
    b: object


@given(plain, plain)
def test_a_fingerprint_is_as_good_as_the_value(a: object, b: object) -> None:
    assert fingerprint(a) == fingerprint(copy.deepcopy(a))
    assert fingerprint(a) != fingerprint(b) or a == b


def test_the_order_of_a_table_does_not_count() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    empty: list[object] = [{}, [], "", b"", None, 0, False, Pair(None, None)]
    assert len({fingerprint(value) for value in empty}) == 8


@given(st.text(max_size=3), st.text(max_size=3))
def test_what_lies_side_by_side_does_not_run_together(a: str, b: str) -> None:
    assert fingerprint(a, b) != fingerprint(a + b, "") or b == ""
    assert fingerprint([a], b) != fingerprint(a, [b])
    assert fingerprint(Pair(a, b)) == fingerprint(Pair(a, b))


def test_arrays_count_by_type_shape_and_content() -> None:
    array = np.arange(6, dtype=np.float32)
    others = [array.astype(np.float64), array.reshape(2, 3), array[::-1], array + 1]
    assert len({fingerprint(each) for each in (array, *others)}) == 5
    assert fingerprint(array.reshape(2, 3).T) == fingerprint(np.ascontiguousarray(array.reshape(2, 3).T))


def test_no_guess_is_made() -> None:
    with pytest.raises(TypeError, match="object"):
        fingerprint([object()])


def test_the_users_own_modules_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fingerprinted_net.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = user_code()
    import fingerprinted_net  # type: ignore[import-not-found]

    assert fingerprinted_net.x == 1
    loaded = user_code()
    (tmp_path / "fingerprinted_net.py").write_text("x = 2\n")
    assert len({before, loaded, user_code()}) == 3
    del sys.modules["fingerprinted_net"]
    assert user_code() == before
    assert code() == code()


def test_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    assert file_sha256(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
