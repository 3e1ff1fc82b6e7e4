"""Tensor files: read back by posekit and by the safetensors library, equal bytes for equal input, aligned."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from posekit.export.tensor_file import ALIGNMENT, CODES, tensor_file_bytes
from posekit.runtime.tensors import tensors_from_bytes

dtypes = st.sampled_from(sorted(CODES, key=str))
any_array = dtypes.flatmap(lambda dtype: arrays(dtype, array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)))


@given(st.dictionaries(st.text(max_size=5), any_array, max_size=4), st.dictionaries(st.text(), st.text(), max_size=4))
def test_what_is_written_is_read_back(named: dict[str, npt.NDArray[np.generic]], metadata: dict[str, str]) -> None:
    named.pop("__metadata__", None)
    file = tensor_file_bytes(named, metadata)
    read = tensors_from_bytes(file, "file")
    library = safetensors.numpy.load(file)
    assert read.metadata == metadata
    assert set(read.arrays) == set(library) == set(named)
    for name, array in named.items():
        assert read.arrays[name].shape == array.shape
        assert read.arrays[name].dtype == array.dtype
        assert read.arrays[name].tobytes() == library[name].tobytes() == array.tobytes()


def test_order_changes_nothing_and_tensors_are_aligned() -> None:
    named: dict[str, npt.NDArray[np.generic]] = {
        "a": np.ones(3, np.uint8),
        "b": np.zeros((2, 3), np.float32),
        "c": np.ones(5, np.float16),
    }
    metadata = {"x": "1", "y": "2"}
    file = tensor_file_bytes(named, metadata)
    assert file == tensor_file_bytes(dict(reversed(named.items())), dict(reversed(metadata.items())))
    assert (8 + int.from_bytes(file[:8], "little")) % ALIGNMENT == 0
    assert all(array.flags.aligned for array in tensors_from_bytes(file, "file").arrays.values())


def test_a_strided_view_is_written_as_it_looks() -> None:
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 1, 0)
    np.testing.assert_array_equal(tensors_from_bytes(tensor_file_bytes({"a": array}), "file").arrays["a"], array)
