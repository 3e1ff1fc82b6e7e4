"""Safetensors files: what safetensors writes is read back unchanged, every malformed file is a BundleError."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from posekit.runtime.errors import BundleError
from posekit.runtime.tensors import DTYPES, MAX_HEADER_BYTES, tensors_from_bytes


def file_of(header: Any, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize("dtype", sorted(set(DTYPES.values())))
def test_what_safetensors_writes_is_read_back(dtype: str) -> None:
    arrays = {
        "matrix": np.arange(6).reshape(2, 3).astype(dtype),
        "scalar": np.array(1).astype(dtype),
        "empty": np.zeros((0, 4), dtype),
    }
    read = tensors_from_bytes(safetensors.numpy.save(arrays, {"made by": "test"}), "file")
    assert read.metadata == {"made by": "test"}
    assert set(read.arrays) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(read.arrays[name], array, strict=True)


def test_arrays_look_into_the_file_and_cannot_be_written() -> None:
    file = safetensors.numpy.save({"a": np.zeros(4, np.float32)})
    array = tensors_from_bytes(memoryview(file), "file").arrays["a"]
    assert np.shares_memory(array, np.frombuffer(file, np.uint8))
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


BAD_FILES = {
    "nothing": b"",
    "no header": b"\0\0\0",
    "no JSON": file_of(b"{"),
    "not text": file_of(b"\xff\xff"),
    "no table": file_of([1]),
    "header past the end": (99).to_bytes(8, "little") + b"{}",
    "header too long": (MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b" " * (MAX_HEADER_BYTES + 1),
    "nested bomb": file_of(b'{"a":' + b"[" * 100_000),
    "entry that is no table": file_of({"a": 3}),
    "no offsets": file_of({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)),
    "unknown dtype": file_of({"a": entry(dtype="F1")}, bytes(8)),
    "dtype that is a list": file_of({"a": entry(dtype=[])}, bytes(8)),
    "negative size": file_of({"a": entry(shape=(-1, -2))}, bytes(8)),
    "size that is a float": file_of({"a": entry(shape=(2.0,))}, bytes(8)),
    "size that is a truth value": file_of({"a": entry(shape=(True, 2))}, bytes(8)),
    "shape that is text": file_of({"a": entry(shape="2")}, bytes(8)),
    "other size than bytes": file_of({"a": entry(shape=(3,))}, bytes(8)),
    "huge shape": file_of({"a": entry(shape=(2**62, 2**62))}, bytes(8)),
    "huge empty shape": file_of({"a": entry(shape=(0, 2**70), offsets=(0, 0))}),
    "too many axes": file_of({"a": entry(shape=(1,) * 99 + (2,))}, bytes(8)),
    "past the end": file_of({"a": entry()}, bytes(4)),
    "reversed offsets": file_of({"a": entry(offsets=(8, 0))}, bytes(8)),
    "negative offsets": file_of({"a": entry(offsets=(-8, 0))}, bytes(8)),
    "three offsets": file_of({"a": entry(offsets=(0, 4, 8))}, bytes(8)),
    "gap": file_of({"a": entry(), "b": entry(offsets=(12, 20))}, bytes(20)),
    "gap at the start": file_of({"a": entry(offsets=(4, 12))}, bytes(12)),
    "overlap": file_of({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)),
    "bytes left over": file_of({"a": entry()}, bytes(9)),
    "metadata that is no table": file_of({"__metadata__": [], "a": entry()}, bytes(8)),
    "metadata that is null": file_of({"__metadata__": None, "a": entry()}, bytes(8)),
    "metadata that is no text": file_of({"__metadata__": {"a": 1}, "a": entry()}, bytes(8)),
}


@pytest.mark.parametrize("file", BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_malformed_file_is_a_bundle_error(file: bytes) -> None:
    with pytest.raises(BundleError, match=r"bank 7.*safetensors"):
        tensors_from_bytes(file, "bank 7")


GOOD = safetensors.numpy.save({"a": np.arange(4.0), "b": np.zeros((2, 0, 3), np.float16)}, {"k": "v"})


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255))
def test_a_changed_byte_gives_a_file_or_a_bundle_error(at: int, value: int) -> None:
    file = bytearray(GOOD)
    file[at] = value
    with suppress(BundleError):
        tensors_from_bytes(bytes(file), "file")


@given(st.integers(0, len(GOOD) - 1))
def test_a_truncated_file_is_a_bundle_error(length: int) -> None:
    with pytest.raises(BundleError):
        tensors_from_bytes(GOOD[:length], "file")


@given(st.binary(max_size=200))
def test_noise_gives_nothing_or_a_bundle_error(noise: bytes) -> None:
    for file in (noise, file_of(noise)):
        with suppress(BundleError):
            assert not tensors_from_bytes(file, "file").arrays
