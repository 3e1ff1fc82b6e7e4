"""Which views a template bank holds, as a recipe says it and a bank's own metadata repeat it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

import numpy as np

from posekit.export.viewsphere import view_rotations, viewsphere
from posekit.runtime.bank import BUILD_AGAIN, MIN_VIEWS, Search, TemplateBank
from posekit.runtime.errors import BankError, ExportError
from posekit.runtime.pose import Array
from posekit.runtime.records import record_from


@dataclass(frozen=True)
class BankRecipe:
    """Which views a template bank holds. sphere: directions, 42, 162, 642 or 2562.  in_plane_steps: turns of each.

    in_plane: "render" draws every turn, "rotate" turns the upright picture in the image (the T-LESS protocol).
    max_angle_deg: from the object's +z to the direction; 90 leaves the upper half, the equator excluded.
    distance_m: of the template camera; none: the object fills it.  precision: in which templates are kept.
    search: "flat" compares a crop with every view; "coarse" with sketches of all and then with the most alike, which is
    faster from some thousand views on.
    """

    sphere: int = 642
    in_plane_steps: int = 36
    in_plane: Literal["render", "rotate"] = "rotate"
    max_angle_deg: float = 180.0
    distance_m: float | None = None
    precision: Literal["fp32", "fp16"] = "fp16"
    supersample: int = 2
    search: Search = "coarse"


def recipe_of_bank(bank: TemplateBank) -> BankRecipe:
    """How a bank was made, as its metadata say. BankError where they do not."""
    try:
        return record_from(BankRecipe, json.loads(bank.metadata["views"]), "views")
    except ValueError as error:  # RecordProblem is one
        raise BankError(
            f"bank of object {bank.object_id}, metadata", got=error, expected="a recipe of views", remedy=BUILD_AGAIN
        ) from error


def bank_rotations(recipe: BankRecipe) -> Array:
    """(N, 3, 3) of all views, the turns of one direction adjacent. ExportError for fewer than a matcher can rank."""
    every = view_rotations(recipe.sphere, recipe.in_plane_steps)
    height = viewsphere(recipe.sphere)[:, 2]
    lowest = np.cos(np.deg2rad(recipe.max_angle_deg))
    chosen = height > lowest + 1e-9 if recipe.max_angle_deg < 180 else np.ones(len(height), bool)
    rotations = every[np.repeat(chosen, recipe.in_plane_steps)]
    fewest = MIN_VIEWS[recipe.search]
    if len(rotations) < fewest:
        raise ExportError(
            f"views of a {recipe.search} bank",
            got=len(rotations),
            expected=f"at least {fewest}",
            remedy='Widen max_angle_deg, take a denser sphere or more in_plane_steps, or search = "flat".',
        )
    return np.asarray(rotations)
