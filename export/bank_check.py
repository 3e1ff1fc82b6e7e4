"""Is a bank of the object that it says, and does its embedder tell the object's views apart?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from posekit.benchmarks.pose_error import rotation_translation_errors
from posekit.export.bank_ceiling import nearest_views
from posekit.export.mesh import ObjectModel
from posekit.export.render import Renderer, headlight, random_rotation, shade
from posekit.runtime.bank import bank_from_bytes
from posekit.runtime.bundle import Bundle
from posekit.runtime.detection import Detection, PoseEstimate, box_from_mask
from posekit.runtime.errors import ExportError, MeshError
from posekit.runtime.estimator import PoseEstimator
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.object_model import symmetries_from_entry
from posekit.runtime.pose import Array, Pose
from posekit.runtime.symmetry import Symmetries

CHECKED_VIEWS = 48
FOUND_WITHIN_DEG = 15.0
FEWEST_FOUND = 0.6
DISTANCE_DIAMETERS = (3.5, 6.0)
CAMERA = Intrinsics(np.array([[450.0, 0, 239.5], [0, 450, 179.5], [0, 0, 1]]), 480, 360)
SAME_WITHIN = 0.02  # of the diameter: how far two meshes of one object may be apart, 95 of 100 points
SURFACE_POINTS = 20_000


@dataclass(frozen=True)
class SelfCheck:
    """n: views rendered anew, none of them in the bank.  found: share whose rotation came back, to 15 degrees beyond the
    nearest view of the bank.  rotation_p50_deg: of all.
    """

    n: int
    found: float
    rotation_p50_deg: float


def self_check(bundle: Bundle, path: str, object_id: int, model: ObjectModel) -> SelfCheck:
    """Render the object at unseen rotations and distances and estimate its pose, as a device would.

    ExportError where fewer than FEWEST_FOUND of the views are found again.
    """
    entry = next(entry for entry in bundle.manifest.objects if entry.id == object_id)
    transforms, renderer = symmetries_from_entry(entry).transforms(), Renderer({object_id: model})
    rng = np.random.default_rng(1)
    bank = bank_from_bytes(bundle.read(bundle.manifest.paths[path].banks[str(object_id)]), "bank")
    errors_deg, beyond_deg = [], []
    with PoseEstimator(bundle, path=path, backend="onnxruntime", precision="fp32") as estimator:
        for _ in range(CHECKED_VIEWS):
            true = _random_pose(model, rng)
            rendering = renderer.render([(object_id, true)], CAMERA, supersample=2)
            detection = Detection(object_id, 1.0, box_from_mask(rendering.mask))
            (outcome,) = estimator.outcomes(shade(rendering, headlight()), CAMERA, [detection])
            rotation_rad = math.pi
            if isinstance(outcome, PoseEstimate):
                rotation_rad, _ = rotation_translation_errors(outcome.cam_from_obj, true, transforms)
            nearest_rad = nearest_views(bank, true, transforms)[1][0]
            errors_deg.append(math.degrees(rotation_rad))
            beyond_deg.append(math.degrees(rotation_rad - nearest_rad))
    share = float(np.mean(np.array(beyond_deg) < FOUND_WITHIN_DEG))
    check = SelfCheck(CHECKED_VIEWS, share, float(np.median(errors_deg)))
    if check.found < FEWEST_FOUND:
        raise ExportError(
            f"self-check of object {object_id} for path {path}",
            got=f"{check.found:.0%} of {check.n} views found again within {FOUND_WITHIN_DEG:g} degrees",
            expected=f"at least {FEWEST_FOUND:.0%}; nothing was written",
            remedy="State the object's symmetry; check the mesh's colours and unit; or train the embedder on such objects.",
        )
    return check


def check_same_object(mesh: str, model: ObjectModel, object_id: int, diameter_m: float, vertices_m: Array) -> None:
    """MeshError unless a mesh is that of a bundle's object, whose vertices (V, 3) may be of a simpler one.

    Compared are size, place in the object frame, and the distance between the surfaces.
    """
    tolerance_m = SAME_WITHIN * diameter_m
    low, high = vertices_m.min(axis=0), vertices_m.max(axis=0)
    off_m = float(np.abs(np.concatenate([model.bbox_min_m - low, model.bbox_max_m - high])).max())
    if abs(model.diameter_m - diameter_m) > tolerance_m:
        raise _other(mesh, object_id, f"diameter {model.diameter_m:.4g} m", f"{diameter_m:.4g} m within 2 %")
    if off_m > tolerance_m:
        raise _other(mesh, object_id, f"a bounding box {off_m:.4g} m off", f"at most {tolerance_m:.2g} m")
    apart_m = _apart_m(vertices_m, model)
    if apart_m > tolerance_m:
        raise _other(mesh, object_id, f"a surface {apart_m:.4g} m off", f"at most {tolerance_m:.2g} m")


def check_symmetries(model: ObjectModel, symmetries: Symmetries) -> None:
    """MeshError where a stated symmetry moves the surface."""
    for transform in symmetries.transforms(n_steps=12)[1:]:
        moved = model.vertices_m @ transform[:3, :3].T + transform[:3, 3]
        apart_m = _apart_m(moved, model)
        if apart_m > SAME_WITHIN * model.diameter_m:
            raise MeshError(
                "stated symmetry",
                got=f"a surface that it moves by {apart_m:.3g} m",
                expected=f"at most {SAME_WITHIN * model.diameter_m:.2g} m, 2 % of the diameter",
                remedy="State another axis or fold; none is right for an object that looks different from all sides.",
            )


def is_colourless(model: ObjectModel) -> bool:
    """Whether the mesh has one colour all over, as one without any is read."""
    return model.texture is None and bool((model.colours_rgb_u8 == model.colours_rgb_u8[0]).all())


def _apart_m(vertices_m: Array, model: ObjectModel) -> float:
    """The 95th percentile of the vertices' distances from the surface, which is sampled densely."""
    import trimesh
    from scipy.spatial import cKDTree

    sampled, _ = trimesh.sample.sample_surface(model.as_trimesh, SURFACE_POINTS, seed=0)
    tree = cKDTree(np.concatenate([model.vertices_m, sampled]))
    return float(np.quantile(tree.query(vertices_m)[0], 0.95))


def _other(mesh: str, object_id: int, got: str, expected: str) -> MeshError:
    return MeshError(
        f"{mesh}, for object {object_id}",
        got=got,
        expected=f"that of the bundle's own model: {expected}",
        remedy="Check mesh, unit and id; --replace-model replaces the object's model, box, diameter and symmetry too.",
    )


def _random_pose(model: ObjectModel, rng: np.random.Generator) -> Pose:
    R = random_rotation(rng)
    z = rng.uniform(*DISTANCE_DIAMETERS) * model.diameter_m
    centre_m = np.array([*rng.uniform(-0.15, 0.15, 2) * z, z])
    return Pose(R, centre_m - R @ model.bbox_centre_m)
