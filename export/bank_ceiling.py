"""How good a bank's poses can be at best: retrieval is taken as perfect, on poses between the views.

What is left is the spacing of the views, what the box rule makes of perspective, and boxes of which a part is hidden.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from posekit.benchmarks.pose_error import ScoredObject, add_m, adds_m, rotation_translation_errors, scored_object_from
from posekit.export.bank_recipe import recipe_of_bank
from posekit.export.mesh import ObjectModel
from posekit.export.render import random_rotation
from posekit.runtime.bank import CANDIDATES, TemplateBank
from posekit.runtime.detection import Hypothesis
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.paths import template_pose
from posekit.runtime.pose import Array, Pose, allo_from_ego, ego_from_allo

POSES = 200
SURFACE_POINTS = 1000
DISTANCE_DIAMETERS = (3.0, 7.0)
MOST_HIDDEN = 0.3  # of the silhouette, across, behind a straight edge
SYMMETRIC_COPIES = 24  # of the truth that retrieval may find: more copies of a turning object are nearly the same
CORRECT_ADD = 0.1  # of the diameter (Hinterstoisser et al. 2012)
CAMERA = Intrinsics(np.array([[600.0, 0, 319.5], [0, 600, 239.5], [0, 0, 1]]), 640, 480)
MM_PER_M, HALF_TURN_RAD = 1e3, math.pi


@dataclass(frozen=True)
class CeilingFigures:
    """recall_add: share within 0.1 diameters, by ADD, or ADD-S of a symmetric object.  Medians over all poses."""

    recall_add: float
    rotation_p50_deg: float
    translation_p50_mm: float


@dataclass(frozen=True)
class Ceiling:
    """What perfect retrieval would give on n random poses, 3 to 7 diameters away.

    amodal: with true boxes of the whole object.  visible: of what a straight edge leaves, which hides up to 30 % of its width.
    nearest_amodal, nearest_visible: the same with the nearest view alone, without its neighbours.
    """

    n: int
    amodal: CeilingFigures
    visible: CeilingFigures
    nearest_amodal: CeilingFigures
    nearest_visible: CeilingFigures


def bank_ceiling(bank: TemplateBank, model: ObjectModel) -> Ceiling:
    """From geometry alone: no picture is rendered and no network runs. Equal input gives equal figures."""
    rng = np.random.default_rng(0)
    points_m = np.concatenate([model.vertices_m, model.surface_points(SURFACE_POINTS, seed=0)[0]]).astype(np.float64)
    some = points_m[-SURFACE_POINTS:]
    scored = scored_object_from(bank.object_id, "", model.diameter_m, some, bank.symmetries)
    max_angle_deg = recipe_of_bank(bank).max_angle_deg
    rows: dict[tuple[str, int], list[tuple[bool, float, float]]] = {}
    for _ in range(POSES):
        true = _random_pose(bank, model.diameter_m, max_angle_deg, rng)
        uv = CAMERA.project(true.apply(points_m))
        index, angles_rad = nearest_views(bank, true, scored.transforms)
        scores = 1 + HALF_TURN_RAD - angles_rad  # any that fall with the angle and stay above 0
        for boxes, box in (("amodal", _box(uv)), ("visible", _box(_uncovered(uv, rng)))):
            for k in (1, CANDIDATES):
                found = template_pose(bank, index[:k], scores[:k], box, CAMERA.K)
                assert isinstance(found, Hypothesis)  # the scores of perfect retrieval are above 0
                rows.setdefault((boxes, k), []).append(_errors(found.cam_from_obj, true, scored))
    figures = {key: _figures(found) for key, found in rows.items()}
    return Ceiling(
        POSES,
        figures["amodal", CANDIDATES],
        figures["visible", CANDIDATES],
        figures["amodal", 1],
        figures["visible", 1],
    )


def nearest_views(bank: TemplateBank, true: Pose, transforms: Array) -> tuple[npt.NDArray[np.intp], Array]:
    """(index (k,), angles_rad (k,)) of the views nearest to a pose or to a symmetric copy of it, nearest first.

    transforms: (S, 4, 4), identity first.
    """
    R_allo = allo_from_ego(true.R, true.apply(bank.centre_m)) @ _thinned(transforms)[:, :3, :3]
    traces = (bank.R.reshape(-1, 9) @ R_allo.reshape(-1, 9).T.astype(np.float32)).max(axis=1)
    best = np.argpartition(-traces, CANDIDATES)[:CANDIDATES] if len(traces) > CANDIDATES else np.arange(len(traces))
    angles_rad = np.arccos(np.clip((traces[best].astype(np.float64) - 1) / 2, -1, 1))
    order = np.argsort(angles_rad, kind="stable")
    return best[order], angles_rad[order]


def _thinned(transforms: Array) -> Array:
    return transforms[:: math.ceil(len(transforms) / SYMMETRIC_COPIES)]


def _random_pose(bank: TemplateBank, diameter_m: float, max_angle_deg: float, rng: np.random.Generator) -> Pose:
    """An object somewhere in the image, turned anyhow as far as the bank's directions go."""
    lowest = math.cos(math.radians(max_angle_deg))
    while True:
        R_allo = random_rotation(rng)
        if -R_allo[2, 2] >= lowest:  # the camera's direction in the object frame is minus the last row
            break
    z = rng.uniform(*DISTANCE_DIAMETERS) * diameter_m
    pixel = rng.uniform(0.2, 0.8, 2) * (CAMERA.width_px, CAMERA.height_px)
    centre_m = np.linalg.solve(CAMERA.K, np.array([*pixel, 1.0])) * z
    R = ego_from_allo(R_allo, centre_m)
    return Pose(R, centre_m - R @ bank.centre_m.astype(np.float64))


def _uncovered(uv: Array, rng: np.random.Generator) -> Array:
    """The points (N, 2) that an edge in a random direction leaves."""
    angle = rng.uniform(0, 2 * math.pi)
    along = uv @ np.array([math.cos(angle), math.sin(angle)])
    low, high = float(along.min()), float(along.max())
    return np.asarray(uv[along <= high - rng.uniform(0, MOST_HIDDEN) * (high - low)])


def _box(uv: Array) -> Array:
    return np.concatenate([uv.min(axis=0), uv.max(axis=0)])


def _errors(found: Pose, true: Pose, scored: ScoredObject) -> tuple[bool, float, float]:
    """(correct by ADD, rotation error in degrees, translation error in mm)."""
    rotation_rad, translation_m = rotation_translation_errors(found, true, scored.transforms)
    off_m = adds_m(found, true, scored) if scored.is_symmetric else add_m(found, true, scored.vertices_m)
    return off_m < CORRECT_ADD * scored.diameter_m, math.degrees(rotation_rad), translation_m * MM_PER_M


def _figures(rows: list[tuple[bool, float, float]]) -> CeilingFigures:
    correct, rotations_deg, translations_mm = np.array(rows, np.float64).T
    return CeilingFigures(float(correct.mean()), float(np.median(rotations_deg)), float(np.median(translations_mm)))
