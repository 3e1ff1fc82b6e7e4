"""Objects of a recipe as a bundle keeps them: a manifest entry, a small mesh to draw, all vertices to measure on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from posekit.export.mesh import ObjectModel, read_mesh, simplified
from posekit.export.tensor_file import tensor_file_bytes
from posekit.runtime.errors import InputError, RecipeError
from posekit.runtime.manifest import ContinuousSymmetry, ObjectEntry
from posekit.runtime.object_model import symmetries_from_entry
from posekit.runtime.symmetry import Symmetries, symmetries_from_bop

if TYPE_CHECKING:  # a device that adds an object has no reader of TOML before Python 3.11
    from posekit.export.recipe import ExportRecipe, ObjectRecipe

MAX_FACES = 5000  # for overlays; banks are rendered from the whole mesh, and errors are over all of its vertices


@dataclass(frozen=True, eq=False)
class BundledObject:
    """model: the whole mesh.  entry: for the manifest.  member: content of the file that `entry.model` names."""

    model: ObjectModel
    entry: ObjectEntry
    member: bytes


def bundled_object(recipe: ExportRecipe, row: ObjectRecipe) -> BundledObject:
    """Read one object. Raises MeshError, and RecipeError for symmetries that are none."""
    model = read_mesh(recipe.resolve(row.mesh), row.unit)
    return object_from_model(model, simplified(model, MAX_FACES), row.id, row.name, _symmetries(recipe, row))


def object_from_model(
    model: ObjectModel, kept: ObjectModel, object_id: int, name: str, symmetries: Symmetries
) -> BundledObject:
    """kept: the mesh that the bundle carries, which may be a simpler one."""
    arrays: dict[str, npt.NDArray[Any]] = {
        "points_m": model.vertices_m,
        "vertices_m": kept.vertices_m,
        "faces": kept.faces,
        "colours": kept.colours_rgb_u8,
    }
    low, high = model.bbox_min_m.tolist(), model.bbox_max_m.tolist()
    entry = ObjectEntry(
        id=object_id,
        name=name,
        diameter_m=model.diameter_m,
        bbox_min_m=(low[0], low[1], low[2]),
        bbox_max_m=(high[0], high[1], high[2]),
        model=f"objects/{name}.safetensors",
        symmetries_discrete=tuple(tuple(matrix.ravel().tolist()) for matrix in symmetries.discrete),
        symmetries_continuous=tuple(
            ContinuousSymmetry((a[0], a[1], a[2]), (o[0], o[1], o[2]))
            for a, o in ((axis.tolist(), offset.tolist()) for axis, offset in symmetries.continuous)
        ),
    )
    return BundledObject(model, entry, tensor_file_bytes(arrays))


def _symmetries(recipe: ExportRecipe, row: ObjectRecipe) -> Symmetries:
    try:
        if row.models_info is not None:
            rows = json.loads(recipe.resolve(row.models_info).read_text(encoding="utf-8"))
            return symmetries_from_bop(rows[str(row.id)])
        stated = ObjectEntry(
            row.id,
            row.name,
            1.0,
            (0.0, 0.0, 0.0),
            (0.0, 0.0, 0.0),
            "",
            row.symmetries_discrete,
            row.symmetries_continuous,
        )
        return symmetries_from_entry(stated)
    except (OSError, ValueError, LookupError, TypeError, InputError) as error:
        raise RecipeError(
            f"symmetries of object {row.name!r}",
            got=f"{type(error).__name__}: {error}",
            expected=f"rigid transforms in metres, or a BOP models_info with object {row.id}",
            remedy="Correct the recipe, or the file that it names.",
        ) from error
