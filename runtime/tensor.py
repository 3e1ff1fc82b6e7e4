"""What a graph expects and gives: names, types and shapes, and the check of a feed against them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from posekit.runtime.errors import SpecError

Feed = Mapping[str, npt.NDArray[np.generic]]
Shape = tuple[int | str, ...]


@dataclass(frozen=True)
class TensorSpec:
    """dtype: a NumPy name.  shape: a number, or the name of a dynamic axis, per dimension."""

    name: str
    dtype: str
    shape: Shape

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}{written(self.shape)}"


def check_feed(feed: Feed, specs: Sequence[TensorSpec]) -> None:
    """SpecError unless names, dtypes and shapes agree; a dynamic axis has one size throughout the feed."""
    wanted = {spec.name for spec in specs}
    if set(feed) != wanted:
        raise SpecError(
            "feed",
            got=sorted(feed),
            expected=sorted(wanted),
            remedy="Feed exactly the inputs that session.inputs lists.",
        )
    sizes: dict[str, int] = {}
    for spec in specs:
        array = feed[spec.name]
        fits = array.dtype == np.dtype(spec.dtype) and array.ndim == len(spec.shape)
        fits = fits and all(
            size == (sizes.setdefault(axis, size) if isinstance(axis, str) else axis)
            for axis, size in zip(spec.shape, array.shape, strict=True)
        )
        if not fits:
            known = {axis: size for axis, size in sizes.items() if axis in spec.shape}
            raise SpecError(
                f"input {spec.name!r}",
                got=f"{array.dtype}{array.shape}",
                expected=f"{spec.dtype}{written(spec.shape)}" + (f" with {known}" if known else ""),
                remedy="Crops come from posekit.runtime.crop, geometry from the estimator.",
            )


def check_shapes(what: str, expected: Mapping[str, Shape], got: Mapping[str, Shape], remedy: str) -> None:
    """SpecError unless every expected output of `what` is there with its shape; a string is an axis of any size."""
    for name, shape in expected.items():
        found = got.get(name)
        if found is None or not shapes_fit(found, shape):
            raise SpecError(
                f"output {name!r} of {what}",
                got="no such output" if found is None else written(found),
                expected=written(shape),
                remedy=remedy,
            )


def shapes_fit(got: Shape, expected: Shape) -> bool:
    """Whether two shapes can be the same; a string is an axis of any size."""
    return len(got) == len(expected) and all(
        isinstance(a, str) or isinstance(b, str) or a == b for a, b in zip(got, expected, strict=True)
    )


def written(shape: Shape) -> str:
    """For messages."""
    return f"({', '.join(map(str, shape))})"
