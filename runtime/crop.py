"""The one function that cuts a crop: an affine warp of uint8 pixels, nothing more.

Casting, channel order and normalisation are the first nodes of the graph. Device, calibration, verification and
training all call `crop`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from posekit.runtime.detection import MIN_BOX_SIDE_PX, BoxError, Reason, checked_box, overlaps_image
from posekit.runtime.errors import InputError
from posekit.runtime.intrinsics import Intrinsics, pixels_from_rays
from posekit.runtime.lens import distort, fold_towards, within_fold
from posekit.runtime.pose import Array, Pose

Image = npt.NDArray[np.uint8]

WIDEST_RAY_DEG = 80.0  # off the axis: there the ideal image is stretched 33 times along the radius, 6 times across it
OUTLINED, VIEW_BORDER = 129, 512  # points on a side of a box of which not all is in view, and around the view
WITHIN = 1 - 1e-6  # of the fold: at it a lens is not one to one
NOWHERE_PX = -1e4  # where no image is, so that remap gives black
LAST_ROW = np.array([[0.0, 0.0, 1.0]])  # of a homogeneous affine matrix


@dataclass(frozen=True)
class CropPreset:
    """How a box becomes a crop. `rule` names a row of SIDES_PX.

    size_px: side of a square crop, or its width and height.  pad: factor on the box's sides.  border_px: crop pixels kept free around the box
    (rule "border").  blank_outside_box: zero what lies outside the box (systems P1 "aspect-pad").
    """

    rule: str
    size_px: int | tuple[int, int]
    pad: float = 1.0
    border_px: float = 0.0
    blank_outside_box: bool = False

    def __post_init__(self) -> None:
        if (
            self.rule not in SIDES_PX
            or min(self.wh_px) < 8
            or not self.pad > 0
            or not 0 <= 2 * self.border_px < min(self.wh_px)
        ):
            raise InputError(
                "crop preset",
                got=str(self),
                expected=f"rule in {sorted(SIDES_PX)}, size_px >= 8, pad > 0, 2 border_px < size_px",
                remedy="Correct the crop section of the recipe.",
            )
        if self.is_square:  # one way to write one crop: banks are bound to it as written
            object.__setattr__(self, "size_px", self.wh_px[0])

    @property
    def wh_px(self) -> tuple[int, int]:
        """Width and height of the crop."""
        return (self.size_px, self.size_px) if isinstance(self.size_px, int) else self.size_px

    @property
    def is_square(self) -> bool:
        return self.wh_px[0] == self.wh_px[1]

    @property
    def side_px(self) -> int:
        """Of a square crop; InputError for another."""
        if not self.is_square:
            raise InputError(
                "crop size",
                got=f"{self.wh_px[0]} x {self.wh_px[1]} px",
                expected="a square",
                remedy="Give size_px as one number: this network, or this use of a crop, is for squares.",
            )
        return self.wh_px[0]

    @property
    def written_size(self) -> str:
        """For people: "96 px" or "192 x 256 px"."""
        return " x ".join(str(side) for side in dict.fromkeys(self.wh_px)) + " px"


@dataclass(frozen=True, eq=False)
class Crop:
    """A crop and its geometry.

    pixels: (h, w, 3) uint8 RGB.   warp: (2, 3) crop_from_image on pixels of `Intrinsics.ideal`.
    K: (3, 3) of the crop, pixels.   box_xyxy_px: (4,) the box in that ideal image.
    """

    pixels: Image
    warp: Array
    K: Array
    box_xyxy_px: Array


Sides = tuple[float, float]


def _padded(box_wh_px: Sides, preset: CropPreset, image_wh_px: tuple[int, int]) -> Sides:
    return preset.pad * box_wh_px[0], preset.pad * box_wh_px[1]


def _clamped(box_wh_px: Sides, preset: CropPreset, image_wh_px: tuple[int, int]) -> Sides:
    width_px, height_px = _padded(box_wh_px, preset, image_wh_px)
    most = float(max(image_wh_px))
    return min(width_px, most), min(height_px, most)


def _bordered(box_wh_px: Sides, preset: CropPreset, image_wh_px: tuple[int, int]) -> Sides:
    (width_px, height_px), (crop_width, crop_height), border = box_wh_px, preset.wh_px, 2 * preset.border_px
    return width_px * crop_width / (crop_width - border), height_px * crop_height / (crop_height - border)


def _whole_image(box_wh_px: Sides, preset: CropPreset, image_wh_px: tuple[int, int]) -> Sides:
    return float(image_wh_px[0]), float(image_wh_px[1])


# Width and height, in image pixels, that the crop has to hold, about the box centre ("full": about the image centre).
# Pixels stay square, so a crop of another aspect ratio shows more on two sides. Systems P1.
SIDES_PX: dict[str, Callable[[Sides, CropPreset, tuple[int, int]], Sides]] = {
    "square": _padded,
    "dzi": _clamped,
    "border": _bordered,
    "full": _whole_image,
}

PRESETS: dict[str, CropPreset] = {
    "sq-pad-224": CropPreset("square", 224),
    "sq-pad-256": CropPreset("square", 256),
    "sq-pad-1.2-128": CropPreset("square", 128, pad=1.2),
    "aspect-pad-128": CropPreset("square", 128, blank_outside_box=True),
    "aspect-pad-224": CropPreset("square", 224, blank_outside_box=True),
    "1.2-max-224": CropPreset("square", 224, pad=1.2),
    "1.2-max-256": CropPreset("square", 256, pad=1.2),
    "dzi-1.5-256": CropPreset("dzi", 256, pad=1.5),
    "obb-256": CropPreset("border", 256, border_px=5.0),
    "full-512": CropPreset("full", 512),
}


def crop_warp(box_xyxy_px: npt.ArrayLike, preset: CropPreset, image_wh_px: tuple[int, int]) -> Array:
    """(2, 3) affine crop_from_image of a preset; pixel centres at integers on both sides."""
    return _box_warp(_with_sides(checked_box(box_xyxy_px)), preset, image_wh_px)


def _box_warp(box_xyxy_px: Array, preset: CropPreset, image_wh_px: tuple[int, int]) -> Array:
    x0, y0, x1, y1 = box_xyxy_px.tolist()  # Python's floats: NumPy's own take several times as long one by one
    centre_x, centre_y = (x0 + x1) / 2, (y0 + y1) / 2
    if preset.rule == "full":
        centre_x, centre_y = ((side_px - 1) / 2 for side_px in image_wh_px)
    width, height = preset.wh_px
    width_px, height_px = SIDES_PX[preset.rule]((x1 - x0, y1 - y0), preset, image_wh_px)
    scale = min(width / width_px, height / height_px)
    middle_x, middle_y = (width - 1) / 2, (height - 1) / 2
    return np.array([[scale, 0.0, middle_x - scale * centre_x], [0.0, scale, middle_y - scale * centre_y]])


def crop(
    image_rgb_u8: Image,
    box_xyxy_px: npt.ArrayLike,
    intrinsics: Intrinsics,
    preset: CropPreset,
    out: Image | None = None,
) -> Crop:
    """Cut one crop.

    image_rgb_u8: (H, W, 3).  box_xyxy_px: in pixels of that image.  out: (h, w, 3) uint8 buffer to write into.
    Outside the image, and beyond the lens's fold, is black. A distorted camera is undistorted here, and one whose pixels
    are not square is made so, once, for the pixels of the crop only.
    Raises InputError for a frame, box or camera that does not fit, among them BoxError for a box that shows nothing.
    """
    check_frame(image_rgb_u8, intrinsics)
    ideal = intrinsics.ideal
    box = _box_to_cut(checked_box(box_xyxy_px), intrinsics)
    warp = _box_warp(box, preset, (ideal.width_px, ideal.height_px))
    pixels = _warp_pixels(image_rgb_u8, warp, intrinsics, preset.wh_px, out)
    if preset.blank_outside_box:
        _blank_outside(pixels, warp, box)
    return Crop(pixels, warp, crop_K(warp, ideal.K), box)


def has_crop(box_xyxy_px: Array, intrinsics: Intrinsics) -> bool:
    """Whether `crop` takes such a box from an image of this camera."""
    try:
        _box_to_cut(box_xyxy_px, intrinsics)
    except BoxError:
        return False
    return True


def _box_to_cut(raw_box: Array, intrinsics: Intrinsics) -> Array:
    wh = (intrinsics.width_px, intrinsics.height_px)
    if not overlaps_image(raw_box, *wh):  # of the image as it is: undistorted, a corner may lie outside
        raise BoxError(
            Reason.BOX_OUTSIDE_IMAGE,
            got=f"{raw_box.round(1).tolist()}",
            expected=f"a box that overlaps the {wh[0]} x {wh[1]} image",
            remedy="Drop detections outside the image.",
        )
    return ideal_box(_with_sides(raw_box), intrinsics)


def crop_K(warp: Array, K: Array) -> Array:
    """Intrinsics matrix of the crop: [warp; 0 0 1] K."""
    return np.asarray(np.concatenate([warp, LAST_ROW]) @ K)


def check_frame(image_rgb_u8: npt.NDArray[np.generic], intrinsics: Intrinsics) -> None:
    """InputError unless the frame is an (H, W, 3) uint8 array of the camera's size."""
    if not isinstance(intrinsics, Intrinsics):
        raise InputError(
            "intrinsics",
            got=type(intrinsics).__name__,
            expected="posekit.Intrinsics",
            remedy="Make them: posekit.Intrinsics(K, width_px, height_px), or read a camera file.",
        )
    expected = (intrinsics.height_px, intrinsics.width_px, 3)
    if not isinstance(image_rgb_u8, np.ndarray) or image_rgb_u8.dtype != np.uint8 or image_rgb_u8.shape != expected:
        got = f"{getattr(image_rgb_u8, 'shape', type(image_rgb_u8))} {getattr(image_rgb_u8, 'dtype', '')}"
        raise InputError(
            "frame",
            got=got.strip(),
            expected=f"{expected} uint8 RGB",
            remedy="Pass the colour image at the size that the intrinsics are for.",
        )


def ideal_box(box_xyxy_px: Array, intrinsics: Intrinsics) -> Array:
    """The box in the ideal image around what a box of the real image shows.

    Of a box that is partly beyond the lens's reach, the part within it counts; BoxError where nothing is left.
    """
    if not intrinsics.is_distorted:
        return _seen_as_ideal(box_xyxy_px.reshape(2, 2), intrinsics).ravel()
    ideal = _seen_as_ideal(intrinsics.ideal_or_nan(_outline(box_xyxy_px, intrinsics)), intrinsics)
    if not _in_view(ideal, intrinsics).all():
        ideal = _partly_seen(box_xyxy_px, intrinsics)
    if len(ideal) == 0:
        raise BoxError(
            Reason.BOX_BEYOND_LENS,
            got=f"{box_xyxy_px.round(1).tolist()}",
            expected=f"a box that the lens model takes to rays within {WIDEST_RAY_DEG:g} degrees of the axis",
            remedy="Check the distortion coefficients, or drop detections so near the border.",
        )
    return _with_sides(np.concatenate([ideal.min(axis=0), ideal.max(axis=0)]))


def _outline(box_xyxy_px: Array, intrinsics: Intrinsics) -> Array:
    """(12, 2): corners, middles of the sides, and where the sides pass the principal point: extremes lie at one of them."""
    x0, y0, x1, y1 = box_xyxy_px.tolist()
    cx, cy = (
        float(min(max(c, low), high)) for c, low, high in zip(intrinsics.K[:2, 2], (x0, y0), (x1, y1), strict=True)
    )
    rows = [(x, y) for y in (y0, y1) for x in (x0, (x0 + x1) / 2, cx, x1)]
    return np.array(rows + [(x, y) for x in (x0, x1) for y in ((y0 + y1) / 2, cy)])


def _partly_seen(box_xyxy_px: Array, intrinsics: Intrinsics) -> Array:
    """(n, 2) ideal pixels around what is in view of a box: its outline there, and the border of the view inside it.

    None where that is less than a pixel.
    """
    x0, y0, x1, y1 = box_xyxy_px.tolist()
    across, down = np.linspace(x0, x1, OUTLINED), np.linspace(y0, y1, OUTLINED)
    outline = np.concatenate(
        [np.stack(np.broadcast_arrays(x, y), axis=-1) for x, y in ((across, y0), (across, y1), (x0, down), (x1, down))]
    )
    ideal = _seen_as_ideal(intrinsics.ideal_or_nan(outline), intrinsics)
    angles = np.linspace(-np.pi, np.pi, VIEW_BORDER, endpoint=False)
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    fold = fold_towards(directions, intrinsics.distortion, intrinsics.model)
    rays = directions * np.minimum(WITHIN * fold, np.tan(np.deg2rad(WIDEST_RAY_DEG)))[:, None]
    border = pixels_from_rays(distort(rays, intrinsics.distortion, intrinsics.model), intrinsics.K)
    inside = (border >= box_xyxy_px[:2]).all(axis=1) & (border <= box_xyxy_px[2:]).all(axis=1)
    seen_border = _seen_as_ideal(pixels_from_rays(rays[inside], intrinsics.K), intrinsics)
    around = np.concatenate([ideal[_in_view(ideal, intrinsics)], seen_border])
    return around if len(around) and np.ptp(around, axis=0).min() >= MIN_BOX_SIDE_PX else around[:0]


def _in_view(pixels: Array, intrinsics: Intrinsics) -> npt.NDArray[np.bool_]:
    """Whether ideal pixels (n, 2) exist and lie within `WIDEST_RAY_DEG`."""
    K = intrinsics.ideal.K
    off_axis = (pixels - K[:2, 2]) / K[[0, 1], [0, 1]]  # of a skewed K about right, which is enough here
    return np.asarray(np.hypot(off_axis[:, 0], off_axis[:, 1]) <= np.tan(np.deg2rad(WIDEST_RAY_DEG)))


def _seen_as_ideal(pixels: Array, intrinsics: Intrinsics) -> Array:
    """Pixels (n, 2) of the undistorted image -> of the ideal one."""
    ideal_from_image = _ideal_from_image(intrinsics)
    return pixels if ideal_from_image is None else pixels * ideal_from_image[0] + ideal_from_image[1]


def _ideal_from_image(intrinsics: Intrinsics) -> tuple[Array, Array] | None:
    """Scale and offset of x, y that make pixels square; None for square ones, whose bytes then stay as they were."""
    stretch = intrinsics.ideal.K[1, 1] / intrinsics.K[1, 1]
    return None if stretch == 1 else (np.array([1.0, stretch]), np.array([0.0, (stretch - 1) / 2]))


def _with_sides(box_xyxy_px: Array) -> Array:
    """The same box, or BoxError where it is thinner than a pixel."""
    x0, y0, x1, y1 = box_xyxy_px.tolist()
    if x1 - x0 < MIN_BOX_SIDE_PX or y1 - y0 < MIN_BOX_SIDE_PX:
        raise BoxError(
            Reason.BOX_TOO_THIN,
            got=f"{box_xyxy_px.round(1).tolist()} ({x1 - x0:.3g} x {y1 - y0:.3g} px)",
            expected=f"sides of at least {MIN_BOX_SIDE_PX:g} px",
            remedy="Drop detections that thin. Boxes are corners, not x, y, width, height.",
        )
    return box_xyxy_px


def _warp_pixels(image: Image, warp: Array, intrinsics: Intrinsics, wh_px: tuple[int, int], out: Image | None) -> Image:
    import cv2

    image = np.ascontiguousarray(image)
    if not intrinsics.is_distorted:
        ideal_from_image = _ideal_from_image(intrinsics)
        if ideal_from_image is not None:
            scale, offset = ideal_from_image
            warp = np.column_stack([warp[:, :2] * scale, warp[:, :2] @ offset + warp[:, 2]])
        return np.asarray(cv2.warpAffine(image, warp, wh_px, dst=out, flags=cv2.INTER_LINEAR), np.uint8)
    rays = intrinsics.ideal.rays((_pixel_grid(wh_px) - warp[:, 2]) / np.diag(warp))[..., :2]
    source = pixels_from_rays(distort(rays, intrinsics.distortion, intrinsics.model), intrinsics.K)
    shown = within_fold(rays, intrinsics.distortion, intrinsics.model)
    if not shown.all():  # beyond it the model folds back: a mirrored copy of what is within
        source[~shown] = NOWHERE_PX
    u, v = np.moveaxis(source.astype(np.float32), -1, 0)
    return np.asarray(cv2.remap(image, u, v, cv2.INTER_LINEAR, dst=out), np.uint8)


@cache
def _pixel_grid(wh_px: tuple[int, int]) -> Array:
    """(h, w, 2) float64: x, y of every pixel of a crop."""
    return np.stack(np.meshgrid(*map(np.arange, wh_px)), axis=-1).astype(np.float64)


def _blank_outside(pixels: Image, warp: Array, box_xyxy_px: Array) -> None:
    """Zero, in place, the pixels whose centres lie outside the box."""
    height, width = pixels.shape[:2]
    columns, rows = np.arange(width), np.arange(height)
    (x0, y0), (x1, y1) = (warp[:, :2] @ corner + warp[:, 2] for corner in (box_xyxy_px[:2], box_xyxy_px[2:]))
    pixels[:, (columns < x0) | (columns > x1)] = 0
    pixels[(rows < y0) | (rows > y1)] = 0


def virtual_box_homography(intrinsics: Intrinsics, cam_from_obj: Pose, side_m: float, size_px: int) -> Array:
    """(3, 3) crop_from_image of a virtual camera that looks at the object's centre (systems P1 "virtual-box").

    The square of metric side `side_m` at the object's distance fills the crop; the object's z axis points up in it.
    Needs the true pose: for the LINEMOD template-matching protocol only, never for estimation.
    """
    forward = cam_from_obj.t_m / np.linalg.norm(cam_from_obj.t_m)
    up = cam_from_obj.R[:, 2]
    right = np.cross(forward, up)
    if np.linalg.norm(right) < 1e-6:  # seen exactly along z: up is arbitrary, take the camera's
        right = np.cross(forward, [0.0, -1.0, 0.0])
    right = right / np.linalg.norm(right)
    virtual_from_cam = np.stack([right, np.cross(forward, right), forward])
    focal = size_px * float(np.linalg.norm(cam_from_obj.t_m)) / side_m
    centre = (size_px - 1) / 2
    K_virtual = np.array([[focal, 0.0, centre], [0.0, focal, centre], [0.0, 0.0, 1.0]])
    return np.asarray(K_virtual @ virtual_from_cam @ np.linalg.inv(intrinsics.K))


def rgb_from_bgr(image_bgr_u8: Image) -> Image:
    """Where a BGR frame enters: (H, W, 3) BGR -> contiguous RGB."""
    return np.ascontiguousarray(image_bgr_u8[..., ::-1])
