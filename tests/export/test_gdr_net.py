"""GDR-Net: the published size, exact decoding of perfect outputs, class-aware heads, export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from posekit.export.networks.gdr_heads import image_coordinates, of_label, score_of_mask
from posekit.export.onnx_from_network import onnx_from_network
from posekit.export.reference.objects import reference_objects
from posekit.export.render import Renderer
from posekit.export.systems import system_named
from posekit.export.systems.gdr_net import PNP, SYSTEM, GdrNet, GdrTarget, Maps, gdr_losses
from posekit.runtime.crop import CropPreset, crop_K, crop_warp
from posekit.runtime.decode import site_from_translation
from posekit.runtime.detection import Hypothesis
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.paths import solved
from posekit.runtime.pose import Pose, allo_from_ego, rotation_angle_rad

CROP = CropPreset("dzi", 64, pad=1.5)
CAMERA = Intrinsics(np.array([[600.0, 0, 319.5], [0, 600, 239.5], [0, 0, 1]]), 640, 480)


def toy(n_objects: int = 1, regions: int = 4) -> GdrNet:
    torch.manual_seed(0)
    return GdrNet("nano", 64, n_objects, regions, (16, 16, 16), True, 16, (32, 16)).eval()


def test_published_sizes() -> None:
    """ResNet-34 trunk 21.3 M, geometry head with 69 channels at 64 x 64, Patch-PnP on 8 x 8 x 128."""
    network = GdrNet()
    assert sum(p.numel() for p in network.backbone.parameters()) == 21_284_672
    assert network.grid == 64
    assert network.head.out.out_channels == 69
    assert network.pnp.fc1.in_features == 8192
    assert system_named("gdr-net") is SYSTEM
    assert (SYSTEM.crop.size_px, SYSTEM.crop.pad, SYSTEM.crop.rule) == (256, 1.5, "dzi")


class Oracle(GdrNet):
    """A network that says the truth."""

    def __init__(self, r6: np.ndarray, site: np.ndarray) -> None:
        super().__init__("nano", 64, 1, 0, (8, 8, 8), False, 8, (8, 8))
        self.r6, self.site = (torch.from_numpy(a).float()[None] for a in (r6, site))

    def regress(self, maps: Maps, coord2d: Tensor, extents_m: Tensor) -> tuple[Tensor, Tensor]:
        return self.r6, self.site


@settings(max_examples=10)
@given(st.integers(0, 2**32 - 1))
def test_perfect_regression_gives_the_pose_back(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = Pose.from_rotvec(rng.normal(size=3), [*rng.uniform(-0.3, 0.3, 2), rng.uniform(0.5, 1.5)])
    centre = CAMERA.project(truth.t_m) + rng.uniform(-10, 10, 2)
    half = rng.uniform(20, 90, 2)
    box = np.concatenate([centre - half, centre + half])
    warp = crop_warp(box, CROP, (640, 480))
    network = Oracle(
        allo_from_ego(truth.R, truth.t_m)[:, :2].T.ravel(),
        site_from_translation(truth.t_m, box, warp[0, 0], CAMERA.K, CROP.side_px, 16),
    )
    assert network.grid == 16
    pose = SYSTEM.graphs(network.eval(), CROP)["pose"].module
    geometry = (box, warp, CAMERA.K, np.array([640.0, 480]), np.array([[-1.0] * 3, [1.0] * 3]))
    with torch.no_grad():
        feeds = [torch.from_numpy(a).float()[None] for a in geometry]
        R, t, _ = pose(torch.zeros(1, 64, 64, 3, dtype=torch.uint8), *feeds)
    assert rotation_angle_rad(R[0].numpy(), truth.R) < 1e-4
    assert np.allclose(t[0].numpy(), truth.t_m, atol=1e-4)


@pytest.mark.parametrize("object_id", [1, 2, 3])
def test_rendered_coordinate_maps_give_the_pose_back(object_id: int) -> None:
    """What a perfect correspondence graph says, of real shapes off the axis, the symmetric bottle included."""
    thing = reference_objects()[object_id]
    truth = Pose.from_rotvec([1.9, 0.4, -0.7], [0.12, -0.08, 0.6])
    u = CAMERA.project(truth.apply(thing.model.vertices_m))
    box = np.concatenate([u.min(axis=0), u.max(axis=0)])
    warp = crop_warp(box, CROP, (640, 480))
    cells = Intrinsics(crop_K(cell_warp(32), crop_K(warp, CAMERA.K)), 32, 32)
    seen = Renderer({object_id: thing.model}).render([(object_id, truth)], cells)
    found = solved(
        seen.mask.astype(np.float32),
        seen.coords_obj_m,
        crop_K(warp, CAMERA.K),
        CROP.wh_px,
        PNP,
    )
    assert isinstance(found, Hypothesis)
    assert rotation_angle_rad(found.cam_from_obj.R, truth.R) < 1e-3
    assert np.allclose(found.cam_from_obj.t_m, truth.t_m, atol=1e-3)


def cell_warp(grid: int) -> np.ndarray:
    """cells_from_crop: cell j has crop coordinate (j + 0.5) S / grid - 0.5."""
    scale = grid / CROP.side_px
    return np.array([[scale, 0, 0.5 * scale - 0.5], [0, scale, 0.5 * scale - 0.5]])


def test_image_coordinates_are_those_of_the_cells() -> None:
    warp = crop_warp([100, 80, 300, 260], CROP, (640, 480))
    got = image_coordinates(torch.tensor(warp[None]).float(), torch.tensor([[640.0, 480.0]]), 64, 16)[0].numpy()
    for j, i in ((0, 0), (3, 11), (15, 15)):
        crop_xy = (np.array([j, i]) + 0.5) * 4 - 0.5
        expected = (crop_xy - warp[:, 2]) / np.diag(warp) / [640, 480]
        assert np.allclose(got[:, i, j], expected, atol=1e-6)


def test_every_label_has_its_own_maps() -> None:
    maps = torch.arange(2 * 6).view(2, 6, 1, 1).float()
    assert of_label(maps, torch.tensor([2, 0]), 3).flatten().tolist() == [4, 5, 6, 7]
    network = toy(n_objects=2)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        a, b = (network.maps(x, torch.tensor([label])).xyz for label in (0, 1))
    assert not torch.allclose(a, b)


def test_score_is_the_mean_of_what_the_mask_claims() -> None:
    mask = torch.tensor([[0.9, 0.7], [0.1, 0.2]]).view(1, 1, 2, 2)
    assert score_of_mask(mask).item() == pytest.approx(0.8)
    assert score_of_mask(mask * 0.1).item() == 0


def test_losses_vanish_at_the_truth_and_only_there() -> None:
    network = toy()
    rng = torch.Generator().manual_seed(0)
    R = torch.from_numpy(Pose.from_rotvec([0.2, 0.3, 0.4]).R).float()[None]
    mask = (torch.rand(1, 16, 16, generator=rng) > 0.5).float()
    xyz, points = torch.rand(1, 3, 16, 16, generator=rng), torch.randn(1, 50, 3, generator=rng)
    region = torch.randint(0, 5, (1, 16, 16), generator=rng)
    target = GdrTarget(R, torch.tensor([[0, 0, 1.0]]), mask, xyz, points, region)
    logits = torch.nn.functional.one_hot(region, network.regions + 1).permute(0, 3, 1, 2).float() * 100
    maps = Maps((mask[:, None] - 0.5) * 100, xyz, logits)
    site, extents = torch.tensor([[0.1, 0.2, 3.0]]), torch.ones(1, 3)
    perfect = gdr_losses(maps, R, site, target, R, site, extents)
    assert set(perfect) == {"xyz", "mask", "region", "rotation", "xy", "z"}
    assert all(v.item() < 1e-6 for v in perfect.values())
    worse = gdr_losses(
        Maps(-maps.mask_logit, xyz + 0.1, -logits), R.transpose(1, 2), site + 1, target, R, site, extents
    )
    assert all(v.item() > 0.05 for v in worse.values())


@pytest.mark.parametrize("n_objects", [1, 3])
def test_both_graphs_export(tmp_path: Path, n_objects: int) -> None:
    graphs = SYSTEM.graphs(toy(n_objects, regions=0 if n_objects > 1 else 4), CROP)
    for name, source in graphs.items():
        exported = onnx_from_network(source, tmp_path / f"{name}.onnx")
        assert ("label" in {spec.name for spec in exported.inputs}) == (n_objects > 1)


@pytest.mark.slow
def test_full_size_exports(tmp_path: Path) -> None:
    for name, source in SYSTEM.graphs(GdrNet().eval(), SYSTEM.crop).items():
        onnx_from_network(source, tmp_path / f"{name}.onnx")
