"""Objects that are none of the reference objects: random shapes with random paint, to hide and to confuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import trimesh

from posekit.export.mesh import ObjectModel, model_from_arrays
from posekit.export.reference.objects import CREASE_RAD
from posekit.export.reference.textures import random_paint

FIRST_CLUTTER_ID = 1001
FINENESS = 28  # edges across the size of the object: enough for painted patterns
DIAMETER_M = (0.07, 0.22)

Mesh = Any


def _box(rng: np.random.Generator) -> Mesh:
    return trimesh.creation.box(extents=rng.uniform(0.2, 1.0, 3))


def _cylinder(rng: np.random.Generator) -> Mesh:
    return trimesh.creation.cylinder(radius=rng.uniform(0.15, 0.5), height=rng.uniform(0.1, 1.2), sections=32)


def _cone(rng: np.random.Generator) -> Mesh:
    return trimesh.creation.cone(radius=rng.uniform(0.2, 0.5), height=rng.uniform(0.4, 1.2), sections=32)


def _torus(rng: np.random.Generator) -> Mesh:
    return trimesh.creation.torus(0.5, rng.uniform(0.08, 0.22), major_sections=40, minor_sections=20)


def _hull(rng: np.random.Generator) -> Mesh:
    return trimesh.convex.convex_hull(rng.normal(size=(int(rng.integers(6, 30)), 3)) * rng.uniform(0.4, 1.0, 3))


def _ellipsoid(rng: np.random.Generator) -> Mesh:
    mesh = trimesh.creation.icosphere(subdivisions=4)
    mesh.vertices = mesh.vertices * rng.uniform(0.35, 1.0, 3)
    return mesh


def _lathed(rng: np.random.Generator) -> Mesh:
    heights = np.linspace(0, 1.2, 14)
    radii = np.interp(heights, np.linspace(0, 1.2, 6), rng.uniform(0.08, 0.4, 6))
    profile = np.stack([[0, *radii, 0], [0, *heights, heights[-1]]], axis=-1)
    return trimesh.creation.revolve(profile, sections=36)


def _angle(rng: np.random.Generator) -> Mesh:
    """Two boxes that share a corner."""
    long_, wide, tall, thick = (
        rng.uniform(0.5, 1.0),
        rng.uniform(0.2, 0.7),
        rng.uniform(0.3, 0.8),
        rng.uniform(0.06, 0.2),
    )
    flat = trimesh.creation.box(bounds=[[0.0, 0.0, 0.0], [long_, wide, thick]])
    upright = trimesh.creation.box(bounds=[[0.0, 0.0, thick], [thick, wide, tall]])
    return trimesh.util.concatenate([flat, upright])


SHAPES: tuple[Callable[[np.random.Generator], Mesh], ...] = (
    _box, _cylinder, _cone, _torus, _hull, _ellipsoid, _lathed, _angle,
)  # fmt: skip


def clutter_models(count: int, seed: int) -> dict[int, ObjectModel]:
    """`count` objects with ids from FIRST_CLUTTER_ID, shapes in turn; the same for the same seed."""
    return {
        FIRST_CLUTTER_ID + k: clutter_model(SHAPES[k % len(SHAPES)], np.random.default_rng([seed, k]))
        for k in range(count)
    }


def clutter_model(shape: Callable[[np.random.Generator], Mesh], rng: np.random.Generator) -> ObjectModel:
    """One random object of a shape, centred at its bounding box, up to a random diameter."""
    mesh = shape(rng)
    size = float(np.linalg.norm(mesh.extents))
    mesh = trimesh.graph.smooth_shade(mesh.subdivide_to_size(size / FINENESS), angle=CREASE_RAD, facet_minarea=None)
    diameter = float(rng.uniform(*DIAMETER_M))
    vertices = (np.asarray(mesh.vertices) - mesh.bounds.mean(axis=0)) * (diameter / size)
    paint = random_paint(rng, 3, diameter * float(rng.uniform(0.15, 0.8)))
    return model_from_arrays(vertices, mesh.faces, paint(vertices), mesh.vertex_normals, name="clutter")
