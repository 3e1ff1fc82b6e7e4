"""What a bundle carries per object: a thinned triangle mesh for overlays, and all vertices for error figures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from posekit.runtime.bundle import Bundle
from posekit.runtime.errors import BundleError, InputError
from posekit.runtime.manifest import ObjectEntry
from posekit.runtime.pose import Array
from posekit.runtime.symmetry import Symmetries
from posekit.runtime.tensors import tensors_from_bytes


@dataclass(frozen=True, eq=False)
class ObjectModel:
    """vertices_m: (V, 3) float64, object frame.   faces: (F, 3) int32 indices into the vertices."""

    vertices_m: Array
    faces: npt.NDArray[np.int32]

    def __post_init__(self) -> None:
        vertices, faces = np.asarray(self.vertices_m, dtype=np.float64), np.asarray(self.faces, dtype=np.int32)
        fits = vertices.ndim == faces.ndim == 2 and vertices.shape[1] == faces.shape[1] == 3 and len(vertices) >= 3
        if (
            not fits
            or not np.isfinite(vertices).all()
            or (faces.size and not 0 <= faces.min() <= faces.max() < len(vertices))
        ):
            raise InputError(
                "object model",
                got=f"vertices {vertices.shape}, faces {faces.shape}",
                expected="finite vertices (V, 3), V >= 3, and faces (F, 3) that index them",
                remedy="Export the object again.",
            )
        object.__setattr__(self, "vertices_m", vertices)
        object.__setattr__(self, "faces", faces)


def object_model(bundle: Bundle, entry: ObjectEntry) -> ObjectModel:
    """Read an object's mesh. BundleError when the member is not one."""
    tensors = tensors_from_bytes(bundle.read(entry.model), entry.model)
    try:
        return ObjectModel(tensors.arrays["vertices_m"], tensors.arrays["faces"])
    except (KeyError, InputError) as error:
        raise BundleError(
            f"bundle {bundle.path}, {entry.model}",
            got=str(error),
            expected="arrays vertices_m and faces",
            remedy="Export the bundle again.",
        ) from error


def object_points_m(bundle: Bundle, entry: ObjectEntry) -> Array:
    """(P, 3) float64: all vertices of an object's mesh, as its file has them. BundleError when the member has none."""
    tensors = tensors_from_bytes(bundle.read(entry.model), entry.model)
    points_m = np.asarray(tensors.arrays.get("points_m", ()), dtype=np.float64)
    if points_m.ndim != 2 or points_m.shape[1] != 3 or not len(points_m) or not np.isfinite(points_m).all():
        raise BundleError(
            f"bundle {bundle.path}, {entry.model}",
            got=f"points_m {points_m.shape}" if "points_m" in tensors.arrays else "no array points_m",
            expected="points_m (P, 3), all vertices of the mesh: errors over a thinned one are another measure",
            remedy="Export the bundle again.",
        )
    return points_m


def symmetries_from_entry(entry: ObjectEntry) -> Symmetries:
    """The symmetries that the manifest states for an object."""
    discrete = tuple(np.array(m, dtype=np.float64).reshape(4, 4) for m in entry.symmetries_discrete)
    continuous = tuple((np.array(s.axis), np.array(s.offset_m)) for s in entry.symmetries_continuous)
    return Symmetries(discrete, continuous)
