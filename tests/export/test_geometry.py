"""The torch geometry is the runtime's geometry: same numbers, invertible, differentiable."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

from posekit.export.example_feed import example_feed
from posekit.export.networks import geometry
from posekit.export.networks.entrance import Entrance
from posekit.export.networks.own import regressor_graphs
from posekit.export.onnx_from_network import onnx_from_network
from posekit.export.parity import network_outputs
from posekit.export.precision.half import half_source
from posekit.runtime import decode, pose
from posekit.runtime.backends.ort import OrtSession

torch.set_num_threads(1)
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


@given(seeds)
def test_rotation_from_quaternion_is_scipys_in_either_order_and_length(seed: int) -> None:
    rng = np.random.default_rng(seed)
    q = rng.normal(size=(4, 4)) * rng.uniform(1e-3, 1e3, (4, 1))
    wanted = Rotation.from_quat(q[:, [1, 2, 3, 0]]).as_matrix()
    first, last = torch.from_numpy(q), torch.from_numpy(q[:, [1, 2, 3, 0]].copy())
    np.testing.assert_allclose(geometry.rotation_from_quaternion(first).numpy(), wanted, atol=1e-12)
    np.testing.assert_allclose(geometry.rotation_from_quaternion(last, scalar_last=True).numpy(), wanted, atol=1e-12)
    np.testing.assert_allclose(geometry.rotation_from_quaternion(-first).numpy(), wanted, atol=1e-12)


def test_the_zero_quaternion_is_no_rotation() -> None:
    """Not the identity, which would be an invented pose."""
    R = geometry.rotation_from_quaternion(torch.zeros(1, 4))
    assert not R.any()
    assert pose.rotation_near(R[0].tolist()) is None


@given(seeds)
def test_translation_from_centre_and_log_depth_undo_the_projection(seed: int) -> None:
    rng = np.random.default_rng(seed)
    t = random_translations(rng, 3)
    _, warp, K = random_cameras(rng, 3)
    K[:, 0, 1] = rng.uniform(-5, 5, 3)
    seen = np.einsum("bij,bj->bi", K, t)
    centre = seen[:, :2] / seen[:, 2:]
    in_crop = np.einsum("bij,bj->bi", warp[:, :, :2], centre) + warp[:, :, 2]
    c, crop_px, z, K_, W = (torch.from_numpy(a) for a in (centre, in_crop, t[:, 2:], K, warp))
    for found in (
        geometry.translation_from_centre(c, z, K_),
        geometry.translation_from_centre(geometry.image_from_crop(crop_px, W), z, K_),
        geometry.translation_from_log_depth(c, z.log(), K_),
    ):
        np.testing.assert_allclose(found.numpy(), t, rtol=1e-9, atol=1e-9)


def test_a_log_depth_of_the_crop_serves_every_distance_and_camera() -> None:
    """An object of 0.1 m that fills the crop: one number, whatever its distance and the focal length."""
    side_px, size_m, crop_focal = 128.0, 0.1, 600.0
    log_depth = torch.tensor([[np.log(crop_focal * size_m / side_px)]], dtype=torch.float64)  # as that camera sees it
    for z, focal in ((0.3, 500.0), (1.7, 500.0), (0.3, 1400.0)):
        scale = side_px / (focal * size_m / z)
        warp = torch.tensor([[[scale, 0, 3.0], [0, scale, -2.0]]], dtype=torch.float64)
        K = torch.tensor([[[focal, 0, 320.0], [0, focal, 240], [0, 0, 1]]], dtype=torch.float64)
        t = geometry.translation_from_log_depth(torch.tensor([[320.0, 240]]).double(), log_depth, K, warp, crop_focal)
        torch.testing.assert_close(t, torch.tensor([[0.0, 0.0, z]], dtype=torch.float64))


class Heads(nn.Module):
    """A small own network with one of the helpers at its end."""

    def __init__(self, head: str) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.head, self.body = (
            head,
            nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        )
        self.out = nn.Linear(8, 9)

    def forward(self, crops: Tensor, box: Tensor, warp: Tensor, K: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        numbers = self.out(self.body(crops))
        first, rest = numbers[:, :6], 0.1 * numbers[:, 6:]
        if self.head == "site":
            R, t = geometry.pose_from_site(first, rest + torch.tensor([0.0, 0.0, 1.0]), box, warp, K, 32, 8)
        else:
            last = self.head == "scalar last"
            centre = geometry.image_from_crop(rest[:, :2] * 32 + 16, warp)
            t = geometry.translation_from_log_depth(centre, rest[:, 2:], K, warp if last else None, 600.0)
            R = geometry.ego_from_allo(geometry.rotation_from_quaternion(first[:, :4], scalar_last=last), t)
        return R, t, torch.sigmoid(numbers[:, 0])


@pytest.mark.parametrize(
    ("head", "half"),
    [
        ("site", False),
        ("scalar first", False),
        ("scalar last", True),
        pytest.param("site", True, marks=pytest.mark.slow),
    ],
)
def test_heads_go_into_the_graph_and_run_in_onnx_runtime(head: str, half: bool, tmp_path: Path) -> None:
    feeds = ("crops", "box", "warp", "K")
    source = regressor_graphs("pose", Heads(head).eval(), Entrance(), (32, 32), feeds, ("body",))["pose"]
    graph = onnx_from_network(half_source(source) if half else source, tmp_path / "pose.onnx")
    assert graph.parity.worst < (5e-2 if half else 1e-4)
    feed = example_feed(source.inputs, {"batch": 4}, seed=9)
    ran = OrtSession(tmp_path / "pose.onnx", threads=1).run(feed)
    out = {name: np.asarray(array, np.float64) for name, array in ran.items()}
    np.testing.assert_allclose(out["R"] @ out["R"].transpose(0, 2, 1), np.broadcast_to(np.eye(3), (4, 3, 3)), atol=1e-5)
    np.testing.assert_allclose(np.linalg.det(out["R"]), 1, atol=1e-5)
    assert (out["t"][:, 2] > 0).all()
    wanted = network_outputs(source, source.module, feed)
    np.testing.assert_allclose(out["R"], wanted["R"], atol=2e-2 if half else 1e-5)
    np.testing.assert_allclose(out["t"], wanted["t"], atol=2e-2 if half else 1e-5)
