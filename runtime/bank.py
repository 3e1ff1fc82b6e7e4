"""Template banks: descriptors of rendered views, bound to the embedder that made them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from posekit.runtime.errors import BankError, BundleError
from posekit.runtime.pose import ORTHONORMAL_TOLERANCE
from posekit.runtime.tensors import Tensors, tensors_from_bytes

FORMAT = "posekit-bank-1"
METADATA = ("format", "object_id", "embedder_sha256", "precision", "crop", "views")
ARRAYS = ("templates", "weights", "R", "t_m", "centre_m", "box_xyxy_px", "K")
OBJECT_ID = re.compile("[0-9]{1,10}")
MIN_VIEWS = 5  # the matcher returns its best five


@dataclass(frozen=True, eq=False)
class TemplateBank:
    """N views of one object, L places per view, C channels.

    templates: (L, C, N) float32 or float16, unit length along C.   weights: (L, N) float32, mask / |mask|.
    R: (N, 3, 3) as rendered.   centre_m: (3,) the point in the object frame that the template camera looks at.
    t_m: (N, 3) of that point in the camera: on the optical axis.
    box_xyxy_px: (N, 4) and K: (3, 3) of the template camera.
    """

    object_id: int
    embedder_sha256: str
    metadata: dict[str, str]
    templates: npt.NDArray[np.floating]
    weights: npt.NDArray[np.float32]
    R: npt.NDArray[np.float32]
    t_m: npt.NDArray[np.float32]
    centre_m: npt.NDArray[np.float32]
    box_xyxy_px: npt.NDArray[np.float32]
    K: npt.NDArray[np.float32]


def bank_from_bytes(view: memoryview | bytes, what: str) -> TemplateBank:
    """Read a bank; the arrays look into `view`. BankError if it is damaged or of another format."""
    try:
        tensors = tensors_from_bytes(view, what)
    except BundleError as error:
        raise BankError(what, got=error.got, expected=error.expected, remedy=error.remedy) from error
    problem = _problem(tensors)
    if problem:
        raise BankError(
            what,
            got=problem,
            expected=f"a bank of format {FORMAT} with {', '.join(ARRAYS)}",
            remedy="Build it again: posekit bank build.",
        )
    meta = tensors.metadata
    return TemplateBank(int(meta["object_id"]), meta["embedder_sha256"], meta, **{n: tensors.arrays[n] for n in ARRAYS})


def check_bank_fits(bank: TemplateBank, object_id: int, embedder_sha256: str, crop_json: str, what: str) -> None:
    """BankError unless this embedder, with this crop, made the bank, and of this object."""
    expected = {"embedder_sha256": embedder_sha256, "crop": crop_json, "object_id": str(object_id)}
    for key, value in expected.items():
        if bank.metadata[key] != value:
            raise BankError(
                f"{what}: {key.removesuffix('_sha256')}",
                got=bank.metadata[key][:80],
                expected=value[:80],
                remedy="The bank is of another embedder, crop or object. Build it again: posekit bank build.",
            )


def _problem(tensors: Tensors) -> str | None:
    missing = [k for k in METADATA if k not in tensors.metadata] + [a for a in ARRAYS if a not in tensors.arrays]
    if missing:
        return f"no {missing[0]}"
    if tensors.metadata["format"] != FORMAT:
        return f"format {tensors.metadata['format']!r}"
    if not OBJECT_ID.fullmatch(tensors.metadata["object_id"]):
        return f"object id {tensors.metadata['object_id'][:20]!r}"
    templates = tensors.arrays["templates"]
    if templates.ndim != 3 or templates.dtype not in (np.float32, np.float16):
        return f"templates {templates.dtype}{templates.shape}"
    places, _, views = templates.shape
    if views < MIN_VIEWS:
        return f"{views} views"
    per_view = {"weights": (places, views), "R": (views, 3, 3), "t_m": (views, 3), "box_xyxy_px": (views, 4)}
    shapes: dict[str, tuple[int, ...]] = {**per_view, "centre_m": (3,), "K": (3, 3)}
    for name, shape in shapes.items():
        array = tensors.arrays[name]
        if array.shape != shape or array.dtype != np.float32:
            return f"{name} {array.dtype}{array.shape}"
    odd = [name for name in ARRAYS if not np.isfinite(tensors.arrays[name]).all()]
    return f"{odd[0]} with NaN or infinity" if odd else _impossible(tensors.arrays)


def _impossible(arrays: Mapping[str, npt.NDArray[Any]]) -> str | None:
    """What no rendering could have given."""
    R, boxes, K = arrays["R"].astype(np.float64), arrays["box_xyxy_px"], arrays["K"]
    faults = {
        "weights below 0": (arrays["weights"] < 0).any(),
        "an R that is no rotation": (np.abs(R @ R.transpose(0, 2, 1) - np.eye(3)) > ORTHONORMAL_TOLERANCE).any()
        or (np.linalg.det(R) < 0).any(),
        "a t_m behind the camera": (arrays["t_m"][:, 2] <= 0).any(),
        "an empty box": (boxes[:, 2:] <= boxes[:, :2]).any(),
        "a K without focal lengths": K[0, 0] <= 0 or K[1, 1] <= 0 or (K[2] != [0, 0, 1]).any(),
    }
    return next((fault for fault, found in faults.items() if found), None)
