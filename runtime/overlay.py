"""Poses drawn on frames: the object's silhouette, its sharp edges, its axes, its box and a label.

Everything is projected through the camera's distortion and drawn anti-aliased at fractions of a pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from posekit.runtime.crop import Image, check_frame
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.object_model import ObjectModel
from posekit.runtime.pose import Array, Pose

Colour = tuple[int, int, int]  # RGB
Ints = npt.NDArray[np.int64]

TRUTH_COLOUR: Colour = (64, 224, 96)
MUTED_COLOUR: Colour = (110, 116, 124)
LARGE, SMALL = 0.45, 0.35  # of labels, as OpenCV scales its font
PALETTE: tuple[Colour, ...] = (
    (255, 92, 64), (64, 160, 255), (255, 190, 40), (200, 110, 255), (40, 210, 220), (255, 110, 180), (170, 140, 90),
)  # fmt: skip
AXIS_COLOURS: tuple[Colour, ...] = ((230, 50, 50), (50, 200, 50), (60, 100, 255))  # x, y, z

SHIFT = 4  # OpenCV draws at 1 / 2**SHIFT px
SHARP_RAD = np.deg2rad(50.0)  # faces that meet at more than this show an edge
MAX_EDGES = 500  # beyond this a model is a rough scan and its edges say nothing
FINE_PX = 1200  # side of the enlarged silhouette; larger ones gain nothing
NEAR_M = 1e-3
AXIS_SHARE = 0.4  # of the model's size
FACE_SHARE = 0.04  # of the model's size: faces are cut smaller than this, and what is deeper than this is hidden
LINE_STEPS = 12  # points on a line, so that distortion bends it and hidden parts drop out


@dataclass(frozen=True, eq=False)
class Outline:
    """A model made ready for drawing, once per object; all in the object frame.

    triangles_m: (F, 3, 3) its faces, cut small.   edges_m: (E, 2, 3) sharp edges.   size_m: diagonal of its box.
    """

    triangles_m: Array
    edges_m: Array
    size_m: float


@dataclass(frozen=True, eq=False)
class Drawing:
    """One pose to draw. colour: of silhouette, box and label.   fill: opacity of the silhouette, 0 to 1."""

    outline: Outline
    cam_from_obj: Pose
    colour: Colour
    label: str | None = None
    box_xyxy_px: Array | None = None
    axes: bool = True
    fill: float = 0.25


@dataclass(frozen=True, eq=False)
class MarkedBox:
    """A detection without a pose, to be drawn small and muted. label: what it is and why it has none."""

    box_xyxy_px: Array
    label: str


def outline_from(model: ObjectModel) -> Outline:
    """Find a mesh's sharp edges: where two faces meet at an angle, or where a single face ends."""
    vertices, faces = _welded(model)
    corners = vertices[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-20)
    pairs = np.sort(faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
    edges, edge_of, n_faces = np.unique(pairs, axis=0, return_inverse=True, return_counts=True)
    sums = np.zeros((len(edges), 3))
    np.add.at(sums, edge_of.ravel(), np.repeat(normals, 3, axis=0))
    # |n1 + n2| = 2 cos(angle / 2) for two unit normals
    sharp = (n_faces != 2) | (np.linalg.norm(sums, axis=1) < 2 * np.cos(SHARP_RAD / 2))
    kept = edges[sharp] if np.count_nonzero(sharp) <= MAX_EDGES else edges[:0]
    size_m = float(np.linalg.norm(np.ptp(vertices, axis=0)))
    return Outline(_cut_small(corners, FACE_SHARE * size_m), vertices[kept], size_m)


def draw_poses(
    image_rgb_u8: Image, intrinsics: Intrinsics, drawings: Sequence[Drawing], marked: Sequence[MarkedBox] = ()
) -> Image:
    """A copy of the frame with poses drawn on it, far ones first, over the boxes that have none.

    InputError when frame and camera do not fit.
    """
    check_frame(image_rgb_u8, intrinsics)
    image = np.ascontiguousarray(image_rgb_u8).copy()
    for one in marked:
        _draw_box(image, one.box_xyxy_px, MUTED_COLOUR)
    for drawing in sorted(drawings, key=lambda d: -float(d.cam_from_obj.t_m[2])):
        _draw(image, intrinsics, drawing)
    for one in marked:
        _draw_label(image, one.label, one.box_xyxy_px[:2], MUTED_COLOUR, SMALL)
    for drawing in drawings:
        anchor_px = _origin_px(intrinsics, drawing) if drawing.box_xyxy_px is None else drawing.box_xyxy_px[:2]
        if drawing.label and anchor_px is not None:
            _draw_label(image, drawing.label, anchor_px, drawing.colour, LARGE)
    return image


def _welded(model: ObjectModel) -> tuple[Array, Ints]:
    """Vertices that lie on each other become one (meshes split them at texture seams); collapsed faces go."""
    grid = np.round(model.vertices_m, 7)
    vertices, index = np.unique(grid, axis=0, return_inverse=True)
    faces = index.ravel()[model.faces].astype(np.int64)
    distinct = (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])
    return vertices, faces[distinct]


def _cut_small(triangles_m: Array, longest_m: float) -> Array:
    """Quarter triangles (F, 3, 3) until no side is longer, so that one depth per face is true enough."""
    sides = np.linalg.norm(triangles_m - np.roll(triangles_m, -1, axis=1), axis=2).max(axis=1, initial=0)
    large, small = triangles_m[sides > longest_m], triangles_m[sides <= longest_m]
    if len(large) == 0:
        return np.asarray(small)
    a, b, c = large[:, 0], large[:, 1], large[:, 2]
    ab, bc, ca = (a + b) / 2, (b + c) / 2, (c + a) / 2
    quarters = [np.stack(corners, axis=1) for corners in ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))]
    return np.asarray(np.concatenate([small, _cut_small(np.concatenate(quarters), longest_m)]))


def _draw(image: Image, intrinsics: Intrinsics, drawing: Drawing) -> None:
    import cv2

    surface = _surface(intrinsics, drawing)
    if surface is not None:
        _draw_silhouette(image, surface, drawing)
        edges = _visible_segments(intrinsics, drawing, surface)
        cv2.polylines(image, edges, False, drawing.colour, 1, cv2.LINE_AA, SHIFT)
    if drawing.box_xyxy_px is not None:
        _draw_box(image, drawing.box_xyxy_px, drawing.colour)
    if drawing.axes:
        _draw_axes(image, intrinsics, drawing)


def _draw_box(image: Image, box_xyxy_px: Array, colour: Colour) -> None:
    import cv2

    reach = 2.0 * max(image.shape)  # OpenCV counts in 32 bits, boxes may leave the picture by far
    x0, y0, x1, y1 = np.clip(box_xyxy_px, -reach, reach)
    corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
    cv2.polylines(image, [_fixed(corners)], True, colour, 1, cv2.LINE_AA, SHIFT)


@dataclass(frozen=True, eq=False)
class _Surface:
    """A rasterised object. depth_m: (h, w) float32, 0 outside.  Pixel p of the image is at (p - origin_px) * scale."""

    depth_m: npt.NDArray[np.float32]
    origin_px: Array
    scale: float

    def at(self, pixels: Array) -> npt.NDArray[np.float32]:
        """Depth at image pixels (..., 2); 0 outside."""
        uv = np.rint((pixels - self.origin_px) * self.scale).astype(np.int64)
        h, w = self.depth_m.shape
        inside = (uv >= 0).all(axis=-1) & (uv[..., 0] < w) & (uv[..., 1] < h)
        return np.where(inside, self.depth_m[np.clip(uv[..., 1], 0, h - 1), np.clip(uv[..., 0], 0, w - 1)], 0)


def _surface(intrinsics: Intrinsics, drawing: Drawing) -> _Surface | None:
    """Paint the faces from far to near, enlarged; None when nothing of the object is in the picture."""
    import cv2

    triangles = drawing.cam_from_obj.apply(drawing.outline.triangles_m)
    triangles = triangles[_drawable(triangles, intrinsics).all(axis=1)]
    if len(triangles) == 0:
        return None
    pixels = intrinsics.project(triangles)
    size = np.array([intrinsics.width_px, intrinsics.height_px])
    low = np.clip(np.floor(pixels.min(axis=(0, 1))) - 2, -2, size + 1)
    high = np.clip(np.ceil(pixels.max(axis=(0, 1))) + 2, -2, size + 1)
    if (high - low < 5).any():
        return None
    scale = float(np.clip(FINE_PX / (high - low).max(), 1, 4))
    depth_m = np.zeros(np.ceil((high - low) * scale).astype(int)[::-1] + 1, np.float32)
    z = triangles[..., 2].mean(axis=1)
    order = np.argsort(-z)
    for triangle, z_face in zip(_fixed((pixels[order] - low) * scale), z[order].tolist(), strict=True):
        cv2.fillConvexPoly(depth_m, triangle, z_face, cv2.LINE_8, SHIFT)
    return _Surface(depth_m, low, scale)


def _drawable(points_m: Array, intrinsics: Intrinsics) -> npt.NDArray[np.bool_]:
    """Whether points have a pixel within one image size of the picture: OpenCV counts in 32 bits."""
    shown = intrinsics.shows(points_m, NEAR_M)
    pixels = intrinsics.project(np.where(shown[..., None], points_m, [0.0, 0.0, 1.0]))
    size = np.array([intrinsics.width_px, intrinsics.height_px])
    return np.asarray(shown & (pixels > -size).all(axis=-1) & (pixels < 2 * size).all(axis=-1))


def _draw_silhouette(image: Image, surface: _Surface, drawing: Drawing) -> None:
    import cv2

    mask = (surface.depth_m > 0).astype(np.uint8)
    contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    outlines = [_fixed(_smooth(c[:, 0, :]) / surface.scale + surface.origin_px) for c in contours if len(c) > 8]
    if drawing.fill > 0:
        tinted = image.copy()
        cv2.fillPoly(tinted, outlines, drawing.colour, cv2.LINE_AA, SHIFT)
        cv2.addWeighted(tinted, drawing.fill, image, 1 - drawing.fill, 0, dst=image)
    cv2.polylines(image, outlines, True, drawing.colour, 2, cv2.LINE_AA, SHIFT)


def _smooth(contour: npt.NDArray[Any]) -> Array:
    """Mean of three neighbours on a closed contour: takes the stairs out."""
    c = contour.astype(np.float64)
    return np.asarray((np.roll(c, 1, axis=0) + c + np.roll(c, -1, axis=0)) / 3)


def _visible_segments(intrinsics: Intrinsics, drawing: Drawing, surface: _Surface) -> list[npt.NDArray[np.int32]]:
    """The short pieces of the sharp edges that no face hides, ready for polylines."""
    ends = drawing.cam_from_obj.apply(drawing.outline.edges_m)
    share = np.linspace(0.0, 1.0, LINE_STEPS)[:, None]
    points = ends[:, :1] * (1 - share) + ends[:, 1:] * share
    points = points[_drawable(points, intrinsics).all(axis=1)]
    if len(points) == 0:
        return []
    pixels = intrinsics.project(points)
    depth_m = surface.at(pixels)
    seen = (depth_m == 0) | (points[..., 2] <= depth_m + FACE_SHARE * drawing.outline.size_m)
    pieces = np.stack([pixels[:, :-1], pixels[:, 1:]], axis=2)[seen[:, :-1] & seen[:, 1:]]
    return list(_fixed(pieces))


def _draw_axes(image: Image, intrinsics: Intrinsics, drawing: Drawing) -> None:
    import cv2

    share = np.linspace(0.0, AXIS_SHARE * drawing.outline.size_m, LINE_STEPS)[:, None]
    for axis, colour in zip(np.eye(3), AXIS_COLOURS, strict=True):
        points = drawing.cam_from_obj.apply(share * axis)
        if _drawable(points, intrinsics).all():
            line = intrinsics.project(points)
            cv2.polylines(image, [_fixed(line)], False, colour, 2, cv2.LINE_AA, SHIFT)
            cv2.circle(image, tuple(_fixed(line[-1]).tolist()), 3 << SHIFT, colour, cv2.FILLED, cv2.LINE_AA, SHIFT)


def _draw_label(image: Image, label: str, anchor_px: Array, colour: Colour, size: float) -> None:
    """Above the anchor, kept inside the picture. size: of OpenCV's font."""
    import cv2

    (width, height), below = cv2.getTextSize(label, cv2.FONT_HERSHEY_SIMPLEX, size, 1)
    x = int(np.clip(anchor_px[0], 0, max(0, image.shape[1] - width - 7)))
    y = int(np.clip(anchor_px[1] - 2, height + below + 5, image.shape[0] - 1))
    cv2.rectangle(image, (x, y - height - below - 4), (x + width + 6, y), colour, cv2.FILLED)
    dark_on_light = sum(colour) > 380
    text: Colour = (20, 20, 20) if dark_on_light else (255, 255, 255)
    cv2.putText(image, label, (x + 3, y - below), cv2.FONT_HERSHEY_SIMPLEX, size, text, 1, cv2.LINE_AA)


def _origin_px(intrinsics: Intrinsics, drawing: Drawing) -> Array | None:
    centre_m = drawing.cam_from_obj.apply(drawing.outline.triangles_m.mean(axis=(0, 1)))
    return intrinsics.project(centre_m) if bool(_drawable(centre_m, intrinsics)) else None


def _fixed(pixels: Array) -> npt.NDArray[np.int32]:
    """OpenCV's fixed-point coordinates; pixel centres at integers, as everywhere."""
    return np.asarray(np.rint(pixels * (1 << SHIFT)).astype(np.int32))
