"""The pose algebra of posekit.runtime.pose and posekit.runtime.decode in torch: batched, differentiable, exportable.

What a network's heads say becomes R, t here, also at the end of a network of the user's own (posekit.export.networks.own):
a rotation from `rotation_from_6d` or `rotation_from_quaternion`, through `ego_from_allo` where the head was trained on what
the crop shows; a translation from `translation_from_site`, `translation_from_centre` or `translation_from_log_depth`.
Frames and units: cam_from_obj in OpenCV's camera frame, metres; pixels of the full image, centres at integers.

Half-precision arguments are promoted: geometry is float32 in every graph. No branches, no inverses, no trigonometry.
"""

from __future__ import annotations

import torch
from torch import Tensor


def unit(x: Tensor, dim: int = 1) -> Tensor:
    """x / |x| along dim; zeros stay zeros. Broadcasts, where the library's normalize expands in the exported graph."""
    out: Tensor = x / torch.linalg.vector_norm(x, dim=dim, keepdim=True).clamp(min=1e-12)
    return out


def rotation_from_6d(r6: Tensor) -> Tensor:
    """Gram-Schmidt of two 3-vectors (Zhou et al. 2019; GDR-Net order), (B, 6) -> (B, 3, 3), columns c1, c2, c3.

    c1 = a/|a|, c3 = (c1 x b)/|c1 x b|, c2 = c3 x c1.
    """
    r = _promoted(r6)
    c1 = unit(r[:, :3])
    c3 = unit(_cross(c1, r[:, 3:]))
    return torch.stack([c1, _cross(c3, c1), c3], dim=2)


def rotation_from_quaternion(q: Tensor, scalar_last: bool = False) -> Tensor:
    """Quaternions of any length, (B, 4) -> (B, 3, 3). Order w, x, y, z, or x, y, z, w with `scalar_last`.

    Hamilton's convention: q and -q are one rotation, and R v is q v q*. The zero quaternion becomes a matrix of zeros,
    which is no rotation and is not taken for one.
    """
    u = unit(_promoted(q))
    w, x, y, z = (u[:, i] for i in ((3, 0, 1, 2) if scalar_last else (0, 1, 2, 3)))
    ww, xx, yy, zz = w * w, x * x, y * y, z * z
    rows = [
        torch.stack([ww + xx - yy - zz, 2 * (x * y - w * z), 2 * (x * z + w * y)], dim=1),
        torch.stack([2 * (x * y + w * z), ww - xx + yy - zz, 2 * (y * z - w * x)], dim=1),
        torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), ww - xx - yy + zz], dim=1),
    ]
    return torch.stack(rows, dim=1)


def rotation_about_ray(t: Tensor) -> Tensor:
    """The shortest rotation that takes the optical axis e_z to the viewing ray t/|t|, (B, 3) -> (B, 3, 3).

    Closed form of Rodrigues' formula for axis e_z x ray (systems P3); smooth on the optical axis, undefined only for an
    object exactly behind the camera.
    """
    ray = unit(_promoted(t))
    p, z = ray[:, :2], ray[:, 2:]
    outer = p.unsqueeze(2) * (p / (1.0 + z).clamp(min=1e-6)).unsqueeze(1)
    upper = torch.cat([torch.eye(2, dtype=p.dtype, device=p.device) - outer, p.unsqueeze(2)], dim=2)
    return torch.cat([upper, torch.cat([-p, z], dim=1).unsqueeze(1)], dim=1)


def ego_from_allo(R_allo: Tensor, t: Tensor) -> Tensor:
    """Allocentric to egocentric rotation: what a crop shows -> what the camera frame says. (B, 3, 3), (B, 3)."""
    return rotation_about_ray(t) @ _promoted(R_allo)


def allo_from_ego(R_ego: Tensor, t: Tensor) -> Tensor:
    """Inverse of `ego_from_allo` for the same translation."""
    return rotation_about_ray(t).transpose(1, 2) @ _promoted(R_ego)


def translation_from_site(
    site: Tensor, box: Tensor, warp: Tensor, K: Tensor, crop_size_px: int, grid_px: int = 64
) -> Tensor:
    """Scale-invariant translation to metres, (B, 3) -> (B, 3) (Li et al., CDPN, ICCV 2019; GDR-Net; systems P5).

    box: (B, 4) raw detection box x0, y0, x1, y1.  warp: (B, 2, 3) crop_from_image, without rotation.
    K: (B, 3, 3) of the full image, upper triangular.  grid_px: side of the network's output grid. Of a crop that is no
    square, both are of the same side, whichever: their ratio alone counts.
    """
    site = _promoted(site)
    centre, size = _centre_and_size(box)
    return translation_from_centre(site[:, :2] * size + centre, site[:, 2:] * _zoom(warp, crop_size_px, grid_px), K)


def translation_from_centre(centre_px: Tensor, z: Tensor, K: Tensor) -> Tensor:
    """Where the object's origin is seen, (B, 2) pixels of the full image, and its depth, (B, 1) metres -> t (B, 3), metres.

    Of a centre in pixels of the crop: `image_from_crop` first.
    """
    o, z = _promoted(centre_px), _promoted(z)
    fx, skew, cx, fy, cy = _columns(K)
    y = (o[:, 1:] - cy) / fy
    x = (o[:, :1] - cx - skew * y) / fx
    return torch.cat([x * z, y * z, z], dim=1)


def image_from_crop(pixels: Tensor, warp: Tensor) -> Tensor:
    """Pixels of the crop, (B, 2) -> of the full image. warp: (B, 2, 3) crop_from_image: one scale, no rotation."""
    flat = _promoted(warp).flatten(1)
    return (_promoted(pixels) - torch.cat([flat[:, 2:3], flat[:, 5:6]], dim=1)) / flat[:, :1]


def translation_from_log_depth(
    centre_px: Tensor, log_depth: Tensor, K: Tensor, warp: Tensor | None = None, focal_px: float = 1.0
) -> Tensor:
    """As `translation_from_centre`, of the logarithm of a depth, (B, 1): z = exp(log_depth) metres.

    warp: the depth is that of an object which looks as large as the crop shows it, through a camera of `focal_px`:
    z = exp(log_depth) * fx * warp's scale / focal_px. So one number serves every distance and every camera.
    """
    z = torch.exp(_promoted(log_depth))
    if warp is not None:
        z = z * (_columns(K)[0] * _promoted(warp).flatten(1)[:, :1] / focal_px)
    return translation_from_centre(centre_px, z, K)


def site_from_translation(
    t: Tensor, box: Tensor, warp: Tensor, K: Tensor, crop_size_px: int, grid_px: int = 64
) -> Tensor:
    """Inverse of `translation_from_site`: the training target of an object centre at t, metres, z > 0."""
    t = _promoted(t)
    centre, size = _centre_and_size(box)
    fx, skew, cx, fy, cy = _columns(K)
    z = t[:, 2:]
    x, y = t[:, :1] / z, t[:, 1:2] / z
    o = torch.cat([fx * x + skew * y + cx, fy * y + cy], dim=1)
    return torch.cat([(o - centre) / size, z / _zoom(warp, crop_size_px, grid_px)], dim=1)


def _centre_and_size(box: Tensor) -> tuple[Tensor, Tensor]:
    """(B, 4) -> (B, 2), (B, 2)."""
    low, high = _promoted(box)[:, :2], _promoted(box)[:, 2:]
    return (low + high) * 0.5, high - low


def _columns(K: Tensor) -> tuple[Tensor, ...]:
    """fx, skew, cx, fy, cy, each (B, 1)."""
    flat = _promoted(K).flatten(1)
    return tuple(flat[:, i : i + 1] for i in (0, 1, 2, 4, 5))


def pose_from_site(
    r6: Tensor, site: Tensor, box: Tensor, warp: Tensor, K: Tensor, crop_size_px: int, grid_px: int = 64
) -> tuple[Tensor, Tensor]:
    """What a regressor says, r6 (B, 6) allocentric and site (B, 3) -> R (B, 3, 3) egocentric, t (B, 3), metres."""
    t = translation_from_site(site, box, warp, K, crop_size_px, grid_px)
    return ego_from_allo(rotation_from_6d(r6), t), t


def _zoom(warp: Tensor, crop_size_px: int, grid_px: int) -> Tensor:
    """r = grid / s with s = crop_size / scale, the crop's side in image pixels; (B, 1)."""
    return _promoted(warp).flatten(1)[:, :1] * (grid_px / crop_size_px)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    """Cross product of (B, 3); written out because exporters turn the library's into gathers."""
    return _turned(a * _turned(b) - _turned(a) * b)


def _turned(v: Tensor) -> Tensor:
    """x, y, z -> y, z, x."""
    return torch.cat([v[:, 1:], v[:, :1]], dim=1)


def _promoted(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
