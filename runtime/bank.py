"""Template banks: descriptors of rendered views, bound to the embedder that made them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from posekit.runtime.blend import quaternions_from_rotations
from posekit.runtime.errors import BankError, BundleError
from posekit.runtime.pose import ORTHONORMAL_TOLERANCE, Array
from posekit.runtime.symmetry import Symmetries
from posekit.runtime.tensor import Shape, TensorSpec, shapes_fit, written
from posekit.runtime.tensors import Tensors, tensors_from_bytes

Search = Literal["flat", "coarse"]  # every view is compared; or first a sketch of every view, then a shortlist

FORMAT = "posekit-bank-3"
METADATA = ("format", "object_id", "embedder_sha256", "precision", "crop", "views", "search")
POSES = ("R", "t_m", "centre_m", "outermost_m", "box_xyxy_px", "K")
# What the matcher is given, with axes L places, C channels, N views, D = L C and S sketch channels. Each search has
# templates in the order in which it reads them.
MATCHED: dict[Search, dict[str, str]] = {
    "flat": {"templates": "LCN", "weights": "N"},
    "coarse": {"templates": "NLC", "weights": "N", "projection": "DS", "sketches": "SN"},
}
OBJECT_ID = re.compile("[0-9]{1,10}")
SHORTLIST = 128  # views that a coarse search compares in full
CANDIDATES = 16  # best views that a matcher returns, which the pose is blended from
MOST_SKETCH_CHANNELS = 64
BUILD_AGAIN = "Build it again: posekit bank build. A bundle of an older posekit has to be exported again."
MIN_VIEWS: dict[Search, int] = {"flat": CANDIDATES, "coarse": SHORTLIST}  # that a bank is built with


NO_SYMMETRIES = Symmetries()


@dataclass(frozen=True, eq=False)
class TemplateBank:
    """N views of one object, L places per view, C channels.

    matched: what the matcher takes, as MATCHED has it. templates, float32 or float16: unit length along C where the view
    shows the object, zero elsewhere.  weights: float32, 1 / places that show it.  projection: float32, from weighted
    templates and descriptors to sketches, float32.
    R: (N, 3, 3) as rendered.   centre_m: (3,) the point in the object frame that the template camera looks at.
    outermost_m: (P, 3) points of the object, which span its box from every side.
    t_m: (N, 3) of that point in the camera: on the optical axis.
    box_xyxy_px: (N, 4) and K: (3, 3) of the template camera.
    symmetries: of the object, as the bundle states them; no part of the file.
    """

    object_id: int
    embedder_sha256: str
    metadata: dict[str, str]
    search: Search
    matched: dict[str, npt.NDArray[np.floating]]
    R: npt.NDArray[np.float32]
    t_m: npt.NDArray[np.float32]
    centre_m: npt.NDArray[np.float32]
    outermost_m: npt.NDArray[np.float32]
    box_xyxy_px: npt.NDArray[np.float32]
    K: npt.NDArray[np.float32]
    symmetries: Symmetries = NO_SYMMETRIES

    @cached_property
    def flips(self) -> Array:
        """(D, 4) quaternions of the discrete symmetries, the identity first."""
        return quaternions_from_rotations(np.stack([np.eye(3), *(m[:3, :3] for m in self.symmetries.discrete)]))

    @cached_property
    def axes(self) -> Array:
        """(A, 3) of the continuous symmetries."""
        return np.array([axis for axis, _ in self.symmetries.continuous]).reshape(-1, 3)

    @cached_property
    def quaternions(self) -> Array:
        """(N, 4) of R, as blending views takes them."""
        return quaternions_from_rotations(self.R)

    @cached_property
    def offsets_m(self) -> Array:
        """(P, 3) from centre_m to outermost_m."""
        return self.outermost_m.astype(np.float64) - self.centre_m


def sketch_channels(channels: int) -> int:
    """S, of views with so many numbers (L C)."""
    return min(channels, MOST_SKETCH_CHANNELS)


def bank_from_bytes(view: memoryview | bytes, what: str, symmetries: Symmetries = NO_SYMMETRIES) -> TemplateBank:
    """Read a bank; the arrays look into `view`. BankError if it is damaged or of another format.

    symmetries: of its object, which the file does not say: whoever takes poses from the bank passes them.
    """
    try:
        tensors = tensors_from_bytes(view, what)
    except BundleError as error:
        raise BankError(what, got=error.got, expected=error.expected, remedy=error.remedy) from error
    problem = _problem(tensors)
    if problem:
        raise BankError(
            what,
            got=problem,
            expected=f"a bank of format {FORMAT}",
            remedy=BUILD_AGAIN,
        )
    meta = tensors.metadata
    search: Search = "coarse" if meta["search"] == "coarse" else "flat"
    matched = {name: tensors.arrays[name] for name in MATCHED[search]}
    poses: dict[str, Any] = {name: tensors.arrays[name] for name in POSES}
    object_id, sha256 = int(meta["object_id"]), meta["embedder_sha256"]
    return TemplateBank(object_id, sha256, meta, search, matched, symmetries=symmetries, **poses)


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


def search_of(inputs: Sequence[TensorSpec]) -> Search:
    """Which search a matcher graph with these inputs does."""
    names = {spec.name for spec in inputs}
    return "coarse" if MATCHED["coarse"].keys() <= names else "flat"


def check_bank_fits_matcher(bank: TemplateBank, inputs: Sequence[TensorSpec], what: str) -> None:
    """BankError unless a matcher graph with these inputs searches banks like this one."""
    wanted = {spec.name: spec.shape for spec in inputs if spec.name != "descriptors"}
    given = {name: array.shape for name, array in bank.matched.items()}
    fits = wanted.keys() == given.keys() and all(shapes_fit(given[name], wanted[name]) for name in wanted)
    if not fits:
        raise BankError(
            what,
            got=f"a {bank.search} bank: {_listed(given)}",
            expected=_listed(wanted),
            remedy=BUILD_AGAIN,
        )


def check_enough_views(bank: TemplateBank, outputs: Sequence[TensorSpec], what: str) -> None:
    """BankError where a matcher graph with these outputs returns more candidates than the bank has views."""
    candidates = next(spec.shape[1] for spec in outputs if spec.name == "index")
    if isinstance(candidates, int) and len(bank.R) < candidates:
        expected = f"at least {candidates}, as many as the matcher returns"
        raise BankError(f"{what}: views", got=len(bank.R), expected=expected, remedy=BUILD_AGAIN)


def _listed(shapes: Mapping[str, Shape]) -> str:
    return ", ".join(f"{name} {written(shape)}" for name, shape in shapes.items())


def _problem(tensors: Tensors) -> str | None:
    meta, arrays = tensors.metadata, tensors.arrays
    search = next((name for name in get_args(Search) if meta.get("search") == name), None)
    expected = (*(MATCHED[search] if search else ()), *POSES)
    missing = [k for k in METADATA if k not in meta] + [a for a in expected if a not in arrays]
    if meta.get("format", FORMAT) != FORMAT:
        return f"format {meta['format']!r}"
    if missing:
        return f"no {missing[0]}"
    if search is None:
        return f"search {meta['search'][:20]!r}"
    if not OBJECT_ID.fullmatch(meta["object_id"]):
        return f"object id {meta['object_id'][:20]!r}"
    return _misshapen(arrays, search) or _odd(arrays, expected)


def _misshapen(arrays: Mapping[str, npt.NDArray[Any]], search: Search) -> str | None:
    templates = arrays["templates"]
    if templates.ndim != 3 or templates.dtype not in (np.float32, np.float16):
        return f"templates {templates.dtype}{templates.shape}"
    sizes = dict(zip(MATCHED[search]["templates"], templates.shape, strict=True))
    sizes |= {"D": sizes["L"] * sizes["C"], "S": arrays["projection"].shape[-1] if "projection" in arrays else 0}
    views = sizes["N"]
    if views < (SHORTLIST if search == "coarse" else 1):
        return f"{views} views"
    per_view: dict[str, tuple[int, ...]] = {"R": (views, 3, 3), "t_m": (views, 3), "box_xyxy_px": (views, 4)}
    shapes = {name: tuple(sizes[axis] for axis in axes) for name, axes in MATCHED[search].items()}
    shapes |= {**per_view, "centre_m": (3,), "outermost_m": (len(arrays["outermost_m"]), 3), "K": (3, 3)}
    for name, shape in shapes.items():
        array = arrays[name]
        if array.shape != shape or (array.dtype != np.float32 and name != "templates"):
            return f"{name} {array.dtype}{array.shape}"
    return None


def _odd(arrays: Mapping[str, npt.NDArray[Any]], names: Iterable[str]) -> str | None:
    odd = [name for name in names if not np.isfinite(arrays[name]).all()]
    return f"{odd[0]} with NaN or infinity" if odd else _impossible(arrays)


def _impossible(arrays: Mapping[str, npt.NDArray[Any]]) -> str | None:
    """What no rendering could have given."""
    R, boxes, K = arrays["R"].astype(np.float64), arrays["box_xyxy_px"], arrays["K"]
    faults = {
        "no outermost_m": not len(arrays["outermost_m"]),
        "weights below 0": (arrays["weights"] < 0).any(),
        "an R that is no rotation": (np.abs(R @ R.transpose(0, 2, 1) - np.eye(3)) > ORTHONORMAL_TOLERANCE).any()
        or (np.linalg.det(R) < 0).any(),
        "a t_m behind the camera": (arrays["t_m"][:, 2] <= 0).any(),
        "an empty box": (boxes[:, 2:] <= boxes[:, :2]).any(),
        "a K without focal lengths": K[0, 0] <= 0 or K[1, 1] <= 0 or K[1, 0] != 0 or (K[2] != [0, 0, 1]).any(),
    }
    return next((fault for fault, found in faults.items() if found), None)
