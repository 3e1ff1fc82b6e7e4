"""Named arrays in a safetensors file, looked into without copying. NumPy only; written by the export workshop.

Format: 8-byte little-endian header length, JSON header, bytes (safetensors README, "Format").
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from posekit.runtime.errors import BundleError

MAX_HEADER_BYTES = 1 << 24
DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Tensors:
    """arrays: name -> read-only array.  metadata: the strings of the header."""

    arrays: dict[str, npt.NDArray[Any]]
    metadata: dict[str, str]


def tensors_from_bytes(view: memoryview | bytes, what: str) -> Tensors:
    """Parse. BundleError (naming `what`) for anything but a well-formed file."""
    view = memoryview(view)
    try:
        header, body = _header_and_body(view)
        metadata = header.pop("__metadata__", {})
        if not all(isinstance(v, str) for v in metadata.values()):
            raise ValueError("metadata that is not text")
        arrays = {name: _array(body, entry) for name, entry in header.items()}
        spans = sorted(tuple(entry["data_offsets"]) for entry in header.values())
        if any(a[1] != b[0] for a, b in pairwise(spans)) or (spans and spans[0][0] != 0):
            raise ValueError("tensors with gaps or overlaps")
        if len(body) != (spans[-1][1] if spans else 0):
            raise ValueError("bytes after the last tensor")
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise BundleError(
            what,
            got=f"{type(error).__name__}: {error}",
            expected="a safetensors file",
            remedy="Build or copy the file again.",
        ) from error
    return Tensors(arrays, dict(metadata))


def _header_and_body(view: memoryview) -> tuple[dict[str, Any], memoryview]:
    length = int.from_bytes(view[:8], "little")
    if len(view) < 8 or length > MAX_HEADER_BYTES or 8 + length > len(view):
        raise ValueError(f"a header of {length} bytes in a file of {len(view)}")
    header = json.loads(bytes(view[8 : 8 + length]))
    if not isinstance(header, dict):
        raise TypeError("a header that is no table")
    return header, view[8 + length :]


def _array(body: memoryview, entry: dict[str, Any]) -> npt.NDArray[Any]:
    dtype, shape = np.dtype(DTYPES[entry["dtype"]]), tuple(entry["shape"])
    start, end = entry["data_offsets"]
    if any(type(n) is not int or n < 0 for n in (*shape, start, end)):
        raise ValueError(f"shape {shape}, offsets {start}, {end}")
    count = int(np.prod(shape, dtype=object)) if shape else 1
    if end - start != count * dtype.itemsize or end > len(body):
        raise ValueError(f"{end - start} bytes for {dtype}{shape}")
    array = np.frombuffer(body[start:end], dtype=dtype).reshape(shape)
    array.flags.writeable = False
    return array
