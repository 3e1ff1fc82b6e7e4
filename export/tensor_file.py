"""Write safetensors files reproducibly and in pieces; posekit.runtime.tensors reads them.

The safetensors library orders metadata differently in every process and needs the whole file in memory.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from posekit.runtime.tensors import DTYPES

ALIGNMENT = 64  # of the first tensor: arrays can be used where they lie
CODES = {np.dtype(dtype): code for code, dtype in DTYPES.items()}


def write_tensor_file(
    file: BinaryIO, arrays: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str] | None = None
) -> None:
    """Equal input gives equal bytes, whatever the order of the mappings. Strided arrays are copied slice by slice."""
    names = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))  # wide types first: all stay aligned
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name in names:
        start, end = end, end + arrays[name].nbytes
        header[name] = {
            "dtype": CODES[arrays[name].dtype.newbyteorder("<")],
            "shape": list(arrays[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in names:
        little = arrays[name].astype(arrays[name].dtype.newbyteorder("<"), copy=False)
        file.writelines(np.ascontiguousarray(part).tobytes() for part in (little if little.ndim > 1 else (little,)))


def tensor_file_bytes(arrays: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str] | None = None) -> bytes:
    """The same, as bytes."""
    buffer = io.BytesIO()
    write_tensor_file(buffer, arrays, metadata)
    return buffer.getvalue()
