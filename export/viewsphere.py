"""Evenly spread viewing directions: a subdivided icosahedron with a vertex at the pole. Nothing random."""

from __future__ import annotations

import numpy as np

from posekit.runtime.errors import InputError
from posekit.runtime.pose import Array

SUBDIVISIONS = {42: 1, 162: 2, 642: 3, 2562: 4}  # vertices -> times each edge was halved


def viewsphere(n: int) -> Array:
    """(n, 3) unit vectors for n in 42, 162, 642, 2562, in the object frame, first the pole +z.

    Covering (angle from any direction to the nearest vertex): 20.8, 10.8, 5.4, 2.7 degrees (systems P7).
    """
    if n not in SUBDIVISIONS:
        raise InputError(
            "viewsphere", got=f"{n} views", expected=f"one of {list(SUBDIVISIONS)}", remedy="Choose the next larger."
        )
    vertices, faces = _icosahedron()
    for _ in range(SUBDIVISIONS[n]):
        vertices, faces = _halved_edges(vertices, faces)
    return vertices


def view_rotations(n: int, in_plane_steps: int = 1) -> Array:
    """(n * in_plane_steps, 3, 3) rotations cam_from_obj: the object seen from each direction, turned in the image.

    The camera looks along minus the direction with the object's +z upwards in the image (+y at the two poles).
    Step k turns the image counter-clockwise, as seen, by 360 k / in_plane_steps degrees: R_k = Rz(-angle) R_0
    (systems P8); 360 itself is left out. Steps of one direction are adjacent.
    """
    if in_plane_steps < 1:
        raise InputError(
            "in-plane steps", got=in_plane_steps, expected="at least 1", remedy="Pass 1 for upright views."
        )
    angles = -2 * np.pi * np.arange(in_plane_steps) / in_plane_steps
    c, s, o, e = np.cos(angles), np.sin(angles), np.zeros(in_plane_steps), np.ones(in_plane_steps)
    turns = np.stack([c, -s, o, s, c, o, o, o, e], axis=-1).reshape(-1, 3, 3)
    upright = np.stack([upright_rotation(d) for d in viewsphere(n)])
    return np.asarray(np.einsum("kij,njl->nkil", turns, upright).reshape(-1, 3, 3))


def upright_rotation(direction: Array) -> Array:
    """cam_from_obj of a camera at `direction` (unit, from the object) that looks at the object, +z (else +y) up."""
    forward = -direction
    up = np.array([0.0, 0.0, 1.0]) if abs(direction[2]) < 1 - 1e-6 else np.array([0.0, 1.0, 0.0])
    right = np.cross(forward, up)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(forward, right), forward])


def _icosahedron() -> tuple[Array, list[tuple[int, int, int]]]:
    z, r = 1 / np.sqrt(5), 2 / np.sqrt(5)
    fifth = 2 * np.pi / 5
    rings = [
        [(r * np.cos(fifth * (k + turn)), r * np.sin(fifth * (k + turn)), height) for k in range(5)]
        for turn, height in ((0.0, z), (0.5, -z))
    ]
    faces = []
    for k in range(5):
        j = (k + 1) % 5
        faces += [(0, 1 + k, 1 + j), (1 + k, 6 + k, 1 + j), (1 + j, 6 + k, 6 + j), (11, 6 + j, 6 + k)]
    return np.array([(0.0, 0.0, 1.0), *rings[0], *rings[1], (0.0, 0.0, -1.0)]), faces


def _halved_edges(vertices: Array, faces: list[tuple[int, int, int]]) -> tuple[Array, list[tuple[int, int, int]]]:
    points = list(vertices)
    middle_of: dict[tuple[int, int], int] = {}

    def middle(a: int, b: int) -> int:
        edge = (min(a, b), max(a, b))
        if edge not in middle_of:
            middle_of[edge] = len(points)
            point = vertices[a] + vertices[b]
            points.append(point / np.linalg.norm(point))
        return middle_of[edge]

    finer = []
    for a, b, c in faces:
        ab, bc, ca = middle(a, b), middle(b, c), middle(c, a)
        finer += [(a, ab, ca), (b, bc, ab), (c, ca, bc), (ab, bc, ca)]
    return np.array(points), finer
