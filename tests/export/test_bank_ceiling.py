"""What perfect retrieval would give follows from the spacing of the views and from the boxes, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh

from posekit.export.bank import outermost_points, template_camera
from posekit.export.bank_ceiling import Ceiling, bank_ceiling, nearest_views
from posekit.export.bank_recipe import BankRecipe, bank_rotations
from posekit.export.mesh import ObjectModel, model_from_arrays
from posekit.runtime.bank import TemplateBank
from posekit.runtime.crop import CropPreset
from posekit.runtime.pose import Pose, rotation_angle_rad
from posekit.runtime.records import json_from_record


@pytest.fixture(scope="module")
def model() -> ObjectModel:
    box = trimesh.creation.box((0.06, 0.10, 0.16)).subdivide().subdivide()
    return model_from_arrays(box.vertices, box.faces)


def bank_of(model: ObjectModel, recipe: BankRecipe) -> TemplateBank:
    """Its geometry, with the boxes of the projected vertices and without descriptors."""
    R = bank_rotations(recipe)
    camera, distance_m = template_camera(model, CropPreset("square", 96), None)
    seen = model.vertices_m.astype(np.float64) @ R.transpose(0, 2, 1) + (0, 0, distance_m)
    uv = np.stack([camera.project(view) for view in seen])
    return TemplateBank(
        1, "", {"views": json_from_record(recipe)}, recipe.search, {}, R.astype(np.float32),
        np.tile(np.array([0, 0, distance_m], np.float32), (len(R), 1)), np.zeros(3, np.float32),
        outermost_points(model).astype(np.float32),
        np.concatenate([uv.min(axis=1), uv.max(axis=1)], axis=1).astype(np.float32), camera.K.astype(np.float32),
    )  # fmt: skip


@pytest.fixture(scope="module")
def usual(model: ObjectModel) -> TemplateBank:
    return bank_of(model, BankRecipe())


@pytest.fixture(scope="module")
def ceiling(model: ObjectModel, usual: TemplateBank) -> Ceiling:
    return bank_ceiling(usual, model)


def test_between_the_usual_views_the_neighbours_help(ceiling: Ceiling) -> None:
    """Views are up to 5.4 degrees apart in direction and 5 in the image: 4 to 5 to the nearest on average."""
    assert 3.5 < ceiling.nearest_amodal.rotation_p50_deg < 5
    assert ceiling.amodal.rotation_p50_deg < 1
    assert ceiling.amodal.recall_add > ceiling.nearest_amodal.recall_add
    assert ceiling.amodal.translation_p50_mm < ceiling.nearest_amodal.translation_p50_mm


def test_hidden_parts_and_wider_spacing_cost(model: ObjectModel, ceiling: Ceiling) -> None:
    assert ceiling.visible.recall_add < ceiling.amodal.recall_add
    wide = bank_ceiling(bank_of(model, BankRecipe(42, 12, search="flat")), model)
    assert wide.nearest_amodal.rotation_p50_deg > 2 * ceiling.nearest_amodal.rotation_p50_deg
    assert wide.nearest_amodal.recall_add < ceiling.nearest_amodal.recall_add


def test_equal_input_gives_equal_figures(model: ObjectModel, usual: TemplateBank, ceiling: Ceiling) -> None:
    assert bank_ceiling(usual, model) == ceiling


def test_a_view_is_nearest_to_itself_and_to_its_symmetric_copies(usual: TemplateBank) -> None:
    half_turn = np.diag([-1.0, -1, 1, 1])
    there = Pose(usual.R[777].astype(np.float64) @ half_turn[:3, :3], np.array([0.0, 0, 0.7]))
    index, angles_rad = nearest_views(usual, there, np.stack([np.eye(4), half_turn]))
    best = min(rotation_angle_rad(usual.R[index[0]], there.R @ S[:3, :3]) for S in (np.eye(4), half_turn))
    assert best < 1e-3
    assert angles_rad[0] < 1e-3
    assert (np.diff(angles_rad) >= 0).all()
