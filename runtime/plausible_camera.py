"""What K and the size of an image say against each other, when both are said to be one camera's.

`Intrinsics` takes any camera that can be, crops among them; these are the doubts where a camera comes from outside.
"""

from __future__ import annotations

import numpy as np

from posekit.runtime.pose import Array

MOST_UNEQUAL_FOCALS = 4.0  # halved rows and anamorphic lenses stay within 2
LONGEST_FOCAL = 100.0  # of the longer side: 0.6 degrees of view
FARTHEST_OFF_AXIS = np.tan(np.deg2rad(60.0))  # of the image's nearest pixel: no part of a picture is cut from beyond
OUTSIDE = 0.5  # of a side that the principal point may lie beyond it, where the size is stated beside K
RESIZED, ALIKE = 1.3, 1.1  # images so many times smaller or larger than K says, by about as much along both sides
OFTEN_RESIZED = 1.15  # from here on it is told, though it may be a part of an image
TURNED = 1.25  # sides that differ as much tell an image that lies on its side
ODD = 0.4  # of half a side, from the middle of the image; real sensors are within a tenth


class CameraWarning(UserWarning):
    """A camera that may be right but is unlike others."""


def contradiction(
    K: Array, image_wh_px: tuple[int, int], whole_wh_px: tuple[int, int] | None = None, *, size_is_stated: bool = True
) -> str | None:
    """What cannot be about K (3, 3) and an image, None if nothing.

    whole_wh_px: of the image that this one was cut from, where its camera's file says so; the principal point is held
    against that.   size_is_stated: beside K; otherwise it is merely that of the images found.
    """
    focals, longer = K[[0, 1], [0, 1]], max(image_wh_px)
    if focals.max() > MOST_UNEQUAL_FOCALS * focals.min():
        return f"focal lengths {focals[0]:g}, {focals[1]:g} that differ {focals.max() / focals.min():.3g} times"
    if focals.min() > LONGEST_FOCAL * longer:
        return (
            f"focal lengths {focals[0]:g}, {focals[1]:g} px, {focals.min() / longer:.0f} times an image of {longer} px"
        )
    where = f"the principal point ({K[0, 2]:.6g}, {K[1, 2]:.6g})"
    if whole_wh_px is not None and (np.less(whole_wh_px, image_wh_px)).any():
        return f"an image of {_size(image_wh_px)} cut from one of {_size(whole_wh_px)}"
    size = np.array(whole_wh_px or image_wh_px)
    beyond = np.maximum(np.maximum(-0.5 - K[:2, 2], K[:2, 2] - (size - 0.5)), 0.0)
    if np.hypot(*(beyond / focals)) > FARTHEST_OFF_AXIS:
        return f"{where} so far outside {_size(size)} that no pixel is within 60 degrees of the axis"
    times = _times(K, size)
    resized = _resized(times)
    if not 1 / RESIZED < resized < RESIZED:
        return f"{where} in the middle of an image {resized:.3g} times as large as {_size(size)}"
    turned = _times(K, size[::-1])
    if max(size) >= TURNED * min(size) and turned.min() > 1 / ALIKE and turned.max() < ALIKE:
        return f"{where} in the middle of {_size(size[::-1])}, the image turned by 90 degrees, not of {_size(size)}"
    if (beyond > (OUTSIDE if size_is_stated else 0.0) * size).any():
        return f"{where} outside {_size(size)}"
    return None


def oddity(K: Array, image_wh_px: tuple[int, int]) -> str | None:
    """What is merely unusual about K (3, 3) and an image, None if nothing."""
    times = _times(K, np.array(image_wh_px))
    where, size, resized = f"the principal point ({K[0, 2]:.6g}, {K[1, 2]:.6g}) is", _size(image_wh_px), _resized(times)
    if np.abs(times - 1).max() > ODD:
        return f"{where} far from the middle of {size}"
    if not 1 / OFTEN_RESIZED < resized < OFTEN_RESIZED:
        return f"{where} in the middle of an image {resized:.3g} times as large as {size}"
    return None


def _resized(times: Array) -> float:
    """How many times larger K's image is along both sides, by `_times` of each; 1 where they disagree."""
    return float(np.sqrt(times.prod())) if times.min() > 0 and times.max() < ALIKE * times.min() else 1.0


def _times(K: Array, size_px: Array) -> Array:
    """How many times as wide and high as this image one would be that has the principal point in its middle."""
    return np.asarray((2 * K[:2, 2] + 1) / size_px)


def _size(wh_px: tuple[int, int] | Array) -> str:
    return f"{wh_px[0]} x {wh_px[1]} px"
