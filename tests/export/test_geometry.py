"""The torch geometry is the runtime's geometry: same numbers, invertible, differentiable."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from posekit.export.networks import geometry
from posekit.runtime import decode, pose

seeds = st.integers(0, 2**32 - 1)


def random_rotations(rng: np.random.Generator, n: int) -> pose.Array:
    return pose.rotation_from_6d(rng.normal(size=(n, 6)))


def random_translations(rng: np.random.Generator, n: int) -> pose.Array:
    z = rng.uniform(0.2, 3.0, n)
    return np.stack([rng.uniform(-0.7, 0.7, n) * z, rng.uniform(-0.7, 0.7, n) * z, z], axis=1)


def random_cameras(rng: np.random.Generator, n: int) -> tuple[pose.Array, pose.Array, pose.Array]:
    """box (n, 4), warp (n, 2, 3), K (n, 3, 3)."""
    low, wh = rng.uniform(-50, 500, (n, 2)), rng.uniform(10, 300, (n, 2))
    box = np.concatenate([low, low + wh], axis=1)
    scale = 256 / (1.5 * wh.max(axis=1))
    warp = np.zeros((n, 2, 3))
    warp[:, 0, 0] = warp[:, 1, 1] = scale
    warp[:, :, 2] = 127.5 - scale[:, None] * (low + wh / 2)
    K = np.zeros((n, 3, 3))
    K[:, 0, 0], K[:, 1, 1], K[:, 2, 2] = rng.uniform(300, 1500, n), rng.uniform(300, 1500, n), 1
    K[:, :2, 2] = rng.uniform(100, 600, (n, 2))
    return box, warp, K


def single(*arrays: pose.Array) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(a).float() for a in arrays)


@given(seeds)
def test_rotation_from_6d_is_the_runtimes(seed: int) -> None:
    r6 = np.random.default_rng(seed).normal(size=(4, 6))
    ours = geometry.rotation_from_6d(torch.from_numpy(r6)).numpy()
    np.testing.assert_allclose(ours, pose.rotation_from_6d(r6), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(ours), 1.0, atol=1e-12)


@given(seeds)
def test_allocentric_is_the_runtimes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    R, t = random_rotations(rng, 3), random_translations(rng, 3)
    ego = geometry.ego_from_allo(torch.from_numpy(R), torch.from_numpy(t)).numpy()
    allo = geometry.allo_from_ego(torch.from_numpy(R), torch.from_numpy(t)).numpy()
    for i in range(3):
        np.testing.assert_allclose(ego[i], pose.ego_from_allo(R[i], t[i]), atol=1e-12)
        np.testing.assert_allclose(allo[i], pose.allo_from_ego(R[i], t[i]), atol=1e-12)


@given(seeds)
def test_allocentric_there_and_back(seed: int) -> None:
    rng = np.random.default_rng(seed)
    R, t = single(random_rotations(rng, 2), random_translations(rng, 2))
    back = geometry.allo_from_ego(geometry.ego_from_allo(R, t), t)
    torch.testing.assert_close(back, R, atol=1e-5, rtol=0)


def test_on_the_optical_axis_nothing_turns() -> None:
    eye = torch.eye(3)[None]
    torch.testing.assert_close(geometry.rotation_about_ray(torch.tensor([[0.0, 0.0, 0.7]])), eye)


def test_the_ray_is_the_turned_axis() -> None:
    t = torch.tensor([[0.4, -0.3, 0.6], [-1.0, 0.1, -0.2]])
    axis = geometry.rotation_about_ray(t)[:, :, 2]
    torch.testing.assert_close(axis, t / t.norm(dim=1, keepdim=True))


@given(seeds)
def test_site_is_the_runtimes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    box, warp, K = random_cameras(rng, 3)
    t = random_translations(rng, 3)
    t_, box_, warp_, K_ = (torch.from_numpy(a) for a in (t, box, warp, K))
    site = geometry.site_from_translation(t_, box_, warp_, K_, 256, 64).numpy()
    for i in range(3):
        expected = decode.site_from_translation(t[i], box[i], warp[i, 0, 0], K[i], 256, 64)
        np.testing.assert_allclose(site[i], expected, rtol=1e-9, atol=1e-12)


@given(seeds, st.sampled_from([8, 32, 64]))
def test_site_there_and_back(seed: int, grid: int) -> None:
    rng = np.random.default_rng(seed)
    box, warp, K = random_cameras(rng, 3)
    K[:, 0, 1] = rng.uniform(-5, 5, 3)  # skew
    t, box_, warp_, K_ = single(random_translations(rng, 3), box, warp, K)
    site = geometry.site_from_translation(t, box_, warp_, K_, 256, grid)
    back = geometry.translation_from_site(site, box_, warp_, K_, 256, grid)
    torch.testing.assert_close(back, t, atol=1e-5, rtol=1e-5)


def test_gradients_are_right() -> None:
    rng = np.random.default_rng(0)
    box, warp, K = (torch.from_numpy(a) for a in random_cameras(rng, 2))
    r6 = torch.from_numpy(rng.normal(size=(2, 6))).requires_grad_()
    site = torch.tensor([[0.1, -0.2, 1.5], [0.0, 0.3, 0.8]], dtype=torch.float64, requires_grad=True)

    def decoded(r6: Tensor, site: Tensor) -> tuple[Tensor, Tensor]:
        t = geometry.translation_from_site(site, box, warp, K, 256)
        return geometry.ego_from_allo(geometry.rotation_from_6d(r6), t), t

    assert torch.autograd.gradcheck(decoded, (r6, site))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_promoted(dtype: torch.dtype) -> None:
    r6 = torch.tensor([[1.0, 0.2, 0.0, 0.0, 1.0, 0.3]], dtype=dtype)
    R = geometry.rotation_from_6d(r6)
    assert R.dtype == torch.float32
    torch.testing.assert_close(R @ R.transpose(1, 2), torch.eye(3)[None], atol=1e-6, rtol=0)
    assert geometry.ego_from_allo(R, torch.tensor([[0.1, 0.0, 1.0]], dtype=dtype)).dtype == torch.float32


def test_no_prediction_is_nan() -> None:
    zero, behind = torch.zeros(1, 6), torch.tensor([[0.0, 0.0, -1.0]])
    assert torch.isfinite(geometry.rotation_from_6d(zero)).all()
    assert torch.isfinite(geometry.rotation_about_ray(behind)).all()
