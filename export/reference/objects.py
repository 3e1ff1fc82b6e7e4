"""Three objects modelled in code: what the reference networks are trained on and every test can rebuild.

Parts are convex, coloured per vertex by small functions of position and normal (metres, object frame), and joined
without Boolean operations: faces inside another part are dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import trimesh
from scipy.spatial import ConvexHull

from posekit.export.mesh import ObjectModel, model_from_arrays, transformed
from posekit.runtime.pose import Array, rotation_from_rotvec
from posekit.runtime.symmetry import Symmetries

Paint = Callable[[Array, Array], Array]  # (points (N, 3), normals (N, 3)) -> (N, 3) colours 0..255
Mesh = Any  # trimesh.Trimesh

CREASE_RAD = np.radians(35)  # sharper edges stay sharp in the shading
BURIED_M = 2e-4

RED, ORANGE, YELLOW = (196, 30, 38), (236, 118, 22), (247, 206, 44)
GREEN, TEAL, BLUE = (46, 139, 60), (22, 130, 140), (35, 72, 170)
PURPLE, PINK, BROWN = (110, 44, 140), (226, 116, 160), (120, 72, 36)
WHITE, GREY, STEEL, BLACK = (235, 235, 228), (140, 144, 148), (104, 122, 142), (28, 28, 32)


@dataclass(frozen=True, eq=False)
class ReferenceObject:
    """A named model with its symmetries. The origin is the centre of the bounding box."""

    name: str
    model: ObjectModel
    symmetries: Symmetries


@cache
def reference_objects() -> dict[int, ReferenceObject]:
    """1 bracket and 2 duckling, without symmetry; 3 bottle, turning freely about z."""
    turning = Symmetries(continuous=((np.array([0.0, 0.0, 1.0]), np.zeros(3)),))
    return {
        1: ReferenceObject("bracket", _centred(_bracket()), Symmetries()),
        2: ReferenceObject("duckling", _centred(_duckling()), Symmetries()),
        3: ReferenceObject("bottle", _centred(_bottle()), turning),
    }


def joined(parts: Sequence[tuple[Mesh, Paint]]) -> ObjectModel:
    """One model of convex painted parts; faces buried in another part are left out."""
    hulls = [ConvexHull(mesh.vertices).equations for mesh, _ in parts]
    vertices, faces, normals, colours, start = [], [], [], [], 0
    for k, (mesh, paint) in enumerate(parts):
        smooth = trimesh.graph.smooth_shade(mesh, angle=CREASE_RAD, facet_minarea=None)
        points, unit = np.asarray(smooth.vertices), np.asarray(smooth.vertex_normals)
        buried = np.zeros(len(points), np.bool_)
        for other in (hull for j, hull in enumerate(hulls) if j != k):
            buried |= (points @ other[:, :3].T + other[:, 3] < -BURIED_M).all(axis=1)
        kept = smooth.faces[~buried[smooth.faces].all(axis=1)]
        used, renumbered = np.unique(kept, return_inverse=True)
        vertices.append(points[used])
        normals.append(unit[used])
        colours.append(paint(points[used], unit[used]))
        faces.append(renumbered.reshape(-1, 3) + start)
        start += len(used)
    rgb = np.clip(np.concatenate(colours), 0, 255).astype(np.uint8)
    return model_from_arrays(
        np.concatenate(vertices), np.concatenate(faces), rgb, np.concatenate(normals), name="parts"
    )


# Paints


def plain(colour: Sequence[float]) -> Paint:
    return lambda p, n: np.tile(np.asarray(colour, np.float64), (len(p), 1))


def where(condition: Callable[[Array, Array], npt.NDArray[np.bool_]], yes: Paint, no: Paint) -> Paint:
    """`yes` where the condition on (points, normals) holds, `no` elsewhere."""
    return lambda p, n: np.where(condition(p, n)[:, None], yes(p, n), no(p, n))


def stripes(direction: Sequence[float], period_m: float, first: Paint, second: Paint, phase: float = 0.0) -> Paint:
    d = np.asarray(direction, np.float64) / np.linalg.norm(direction)
    return where(lambda p, n: np.mod(p @ d / period_m + phase, 1.0) < 0.5, first, second)


def disc(centre: Sequence[float], radius_m: float, inside: Paint, outside: Paint) -> Paint:
    c = np.asarray(centre, np.float64)
    return where(lambda p, n: np.linalg.norm(p - c, axis=1) < radius_m, inside, outside)


def block(low: Sequence[float], high: Sequence[float], inside: Paint, outside: Paint) -> Paint:
    lo, hi = np.asarray(low, np.float64), np.asarray(high, np.float64)
    return where(lambda p, n: np.asarray(((p >= lo) & (p <= hi)).all(axis=1)), inside, outside)


def facing(direction: Sequence[float], towards: Paint, else_: Paint) -> Paint:
    d = np.asarray(direction, np.float64) / np.linalg.norm(direction)
    return where(lambda p, n: n @ d > 0.7, towards, else_)


# Shapes


def box(low: Sequence[float], high: Sequence[float], edge_m: float = 0.005) -> Mesh:
    mesh = trimesh.creation.box(bounds=[low, high])
    return mesh.subdivide_to_size(edge_m)


def cylinder(start: Sequence[float], end: Sequence[float], radius_m: float, edge_m: float = 0.006) -> Mesh:
    mesh = trimesh.creation.cylinder(radius=radius_m, segment=np.array([start, end], np.float64), sections=28)
    return mesh.subdivide_to_size(max(edge_m, 0.5 * radius_m))


def ellipsoid(
    centre: Sequence[float], radii_m: Sequence[float], subdivisions: int, rotvec: Sequence[float] = (0, 0, 0)
) -> Mesh:
    mesh = trimesh.creation.icosphere(subdivisions=subdivisions)
    mesh.vertices = (mesh.vertices * radii_m) @ rotation_from_rotvec(rotvec).T + centre
    return mesh


def cone(base: Sequence[float], tip: Sequence[float], radius_m: float) -> Mesh:
    axis = np.subtract(tip, base)
    mesh = trimesh.creation.cone(radius=radius_m, height=float(np.linalg.norm(axis)), sections=24)
    mesh = _subdivided(mesh, 0.5 * radius_m)
    mesh.apply_transform(trimesh.geometry.align_vectors([0, 0, 1], axis))  # type: ignore[no-untyped-call]
    mesh.vertices = mesh.vertices + base
    return mesh


def _subdivided(mesh: Mesh, edge_m: float) -> Mesh:
    return mesh.subdivide_to_size(edge_m)


# Objects


def _bracket() -> ObjectModel:
    """An L of two plates with a rib, two unequal bosses and a knob; every side has its own marks."""
    steel, dark = plain(STEEL), plain(BLACK)
    base = facing(
        (0, 0, -1),
        stripes((1, 0, 0), 0.036, plain(TEAL), block((0, -0.05, -1), (1, 0, 1), plain(PINK), plain(WHITE))),
        facing((0, 1, 0), stripes((1, 0, 0), 0.028, plain(RED), plain(WHITE)), steel),
    )
    base = facing((0, 0, 1), block((-0.005, -0.045, -1), (0.075, -0.012, 1), plain(ORANGE), steel), base)
    base = facing((1, 0, 0), plain(BLUE), facing((0, -1, 0), block((-1, -1, -1), (0, 1, 1), plain(GREEN), steel), base))
    hazard = stripes((0, 1, 1), 0.026, plain(YELLOW), dark)
    wall = facing((-1, 0, 0), hazard, facing((0, -1, 0), plain(PURPLE), plain(GREY)))
    wall = facing((1, 0, 0), block((-1, 0.0, 0.055), (1, 1, 1), plain(RED), plain(GREY)), wall)
    wall = facing((0, 0, 1), stripes((0, 1, 0), 0.03, plain(GREEN), plain(WHITE)), wall)
    rib = trimesh.Trimesh(
        [(x, y, z) for y in (0.018, 0.028) for x, z in ((-0.064, 0.008), (-0.005, 0.008), (-0.064, 0.070))],
        [(0, 2, 1), (3, 4, 5), (0, 1, 4), (0, 4, 3), (1, 2, 5), (1, 5, 4), (2, 0, 3), (2, 3, 5)],
    )
    rib.fix_normals()
    return joined(
        [
            (box((-0.070, -0.045, 0.0), (0.070, 0.035, 0.012), 0.006), base),
            (box((-0.0715, -0.030, 0.008), (-0.058, 0.0335, 0.095), 0.006), wall),
            (rib.subdivide_to_size(0.006), facing((0, 1, 0), plain(BLUE), plain(YELLOW))),
            (_bored((0.040, 0.008, 0.005), (0.040, 0.008, 0.036), 0.017), disc((0.040, 0.008, 0.036), 0.009, dark, steel)),
            (_bored((0.040, -0.028, 0.005), (0.040, -0.028, 0.024), 0.011), disc((0.04, -0.028, 0.024), 0.006, dark, plain(WHITE))),
            (_bored((-0.065, 0.010, 0.070), (-0.090, 0.010, 0.070), 0.013), disc((-0.09, 0.01, 0.07), 0.007, dark, plain(RED))),
            (ellipsoid((-0.030, -0.030, 0.014), (0.013, 0.011, 0.014), 3), stripes((0, 0, 1), 0.012, plain(GREEN), plain(BLACK))),
        ]
    )  # fmt: skip


def _bored(start: Sequence[float], end: Sequence[float], radius_m: float) -> Mesh:
    """A cylinder fine enough to carry a painted bore on its end."""
    mesh = trimesh.creation.cylinder(radius=radius_m, segment=np.array([start, end], np.float64), sections=32)
    return mesh.subdivide_to_size(0.005)


def _duckling() -> ObjectModel:
    """A toy bird: blended ellipsoids, different wings, a tilted hat and a scarf. Faces +x, left is +y."""
    body = disc((-0.020, 0.040, 0.035), 0.016, plain(BROWN), plain(YELLOW))
    body = disc((0.030, -0.030, 0.030), 0.012, plain(RED), disc((-0.02, -0.035, 0.01), 0.014, plain(TEAL), body))
    body = where(lambda p, n: p[:, 2] < 0.008, stripes((1, 1, 0), 0.034, plain(WHITE), plain(ORANGE)), body)
    head = disc((0.060, 0.020, 0.108), 0.009, plain(BLACK), plain(YELLOW))
    head = disc((0.060, -0.020, 0.108), 0.012, plain(BLUE), head)
    head = where(lambda p, n: p[:, 0] < 0.018, stripes((0, 1, 0.3), 0.026, plain(BROWN), plain(YELLOW)), head)
    brim = trimesh.creation.cylinder(
        radius=0.024, segment=[(0.030, -0.008, 0.122), (0.031, -0.011, 0.127)], sections=32
    )
    return joined(
        [
            (ellipsoid((0, 0, 0.032), (0.066, 0.044, 0.040), 4, (0, -0.15, 0)), body),
            (ellipsoid((0.036, 0, 0.098), (0.031, 0.029, 0.030), 4), head),
            (ellipsoid((0.028, 0, 0.070), (0.022, 0.022, 0.020), 3), plain(RED)),
            (ellipsoid((0.022, 0.018, 0.066), (0.012, 0.014, 0.009), 2, (0.5, 0, 0)), plain(RED)),
            (cone((0.058, 0, 0.094), (0.096, 0.002, 0.090), 0.015), plain(ORANGE)),
            (cone((-0.045, 0.004, 0.045), (-0.092, 0.010, 0.080), 0.022), stripes((1, 0, 0), 0.02, plain(WHITE), plain(YELLOW))),
            (ellipsoid((-0.008, 0.042, 0.042), (0.036, 0.010, 0.020), 3, (0, 0.35, 0)), stripes((1, 0, 0.2), 0.022, plain(BLUE), plain(WHITE))),
            (ellipsoid((-0.012, -0.042, 0.036), (0.030, 0.012, 0.024), 3, (0, -0.3, 0)), where(lambda p, n: p[:, 2] > 0.036, plain(GREEN), plain(PURPLE))),
            (ellipsoid((0.018, 0.022, -0.006), (0.022, 0.012, 0.008), 2), plain(ORANGE)),
            (ellipsoid((0.010, -0.022, -0.006), (0.022, 0.012, 0.008), 2), plain(PINK)),
            (brim.subdivide_to_size(0.010), plain(PURPLE)),
            (cylinder((0.030, -0.008, 0.124), (0.034, -0.020, 0.150), 0.015), where(lambda p, n: p[:, 2] < 0.134, plain(WHITE), plain(PURPLE))),
        ]
    )  # fmt: skip


BOTTLE_PROFILE_MM = [  # radius, height
    (0, 0), (27, 0), (30, 3), (30, 10), (29, 40), (30, 70), (30, 105), (27, 118), (19, 134), (13, 142),
    (12, 158), (14.5, 159), (15.5, 162), (15.5, 176), (14.5, 179), (0, 181),
]  # fmt: skip
BOTTLE_BANDS = [  # painted from a height in mm upwards
    (-1, BROWN), (12, GREEN), (34, WHITE), (42, RED), (62, WHITE), (70, BLUE), (78, WHITE), (88, GREEN),
    (112, YELLOW), (119, GREEN), (160, ORANGE), (170, RED),
]  # fmt: skip


def _bottle() -> ObjectModel:
    """A body of revolution about z; colour depends on height only, so it turns freely but has a top."""
    coarse = np.array(BOTTLE_PROFILE_MM, np.float64) / 1000
    along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(coarse, axis=0), axis=1))])
    even = np.union1d(np.linspace(0, along[-1], 80), along)
    profile = np.stack([np.interp(even, along, coarse[:, k]) for k in range(2)], axis=-1)
    profile[[0, -1], 0] = 0.0
    mesh = trimesh.graph.smooth_shade(
        trimesh.creation.revolve(profile, sections=60), angle=CREASE_RAD, facet_minarea=None
    )
    starts = np.array([height for height, _ in BOTTLE_BANDS]) / 1000
    palette = np.array([colour for _, colour in BOTTLE_BANDS], np.uint8)
    band = np.searchsorted(starts, mesh.vertices[:, 2], side="right") - 1
    return model_from_arrays(mesh.vertices, mesh.faces, palette[band], mesh.vertex_normals, name="bottle")


def _centred(model: ObjectModel) -> ObjectModel:
    return transformed(model, np.eye(3), -model.bbox_centre_m)
