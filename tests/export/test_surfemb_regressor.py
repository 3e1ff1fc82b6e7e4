"""The query regressor: its decoder undoes the projection exactly, labels pick their own outputs, and it exports."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from posekit.export.example_feed import example_feed
from posekit.export.networks.geometry import pose_from_site
from posekit.export.onnx_from_network import onnx_from_network
from posekit.export.systems import system_named
from posekit.export.systems.surfemb_regressor import SITE_GRID_PX, SYSTEM, SurfEmbRegressor
from posekit.runtime.crop import CropPreset, crop_warp
from posekit.runtime.decode import site_from_translation
from posekit.runtime.errors import RecipeError
from posekit.runtime.pose import allo_from_ego, rotation_from_6d

SMALL = CropPreset("square", 32, pad=1.2)
WH = (640, 480)


def awake(net: SurfEmbRegressor) -> SurfEmbRegressor:
    """A new network says nearly the same for every crop, and no mask: let it say something."""
    torch.manual_seed(1)
    for part in (net.queries.decoder, net.pnp):
        for module in part.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
    for module, bias in ((net.queries.decoder.out, 0.5), (net.pnp.z[-1], 2.0)):
        nn.init.constant_(module.bias, bias)  # type: ignore[arg-type]
    return net


def toy(n_objects: int = 1) -> SurfEmbRegressor:
    torch.manual_seed(0)
    net = SurfEmbRegressor(
        "nano",
        crop_size_px=32,
        n_objects=n_objects,
        query_channels=4,
        decoder_widths=(16, 16, 8, 8, 8),
        pnp_widths=(8, 8, 8, 8, 8),
        pnp_hidden=(16, 16),
        z_hidden=8,
    )
    return awake(net)


def test_the_row_of_systems() -> None:
    system = system_named("surfemb-regressor")
    assert system is SYSTEM
    assert (system.crop.size_px, system.crop.pad) == (256, 1.2)
    assert system.paths["regressor"].graph == "pose"


@given(st.integers(0, 2**32 - 1))
def test_a_perfect_prediction_decodes_to_the_true_pose(seed: int) -> None:
    """Any rotation, off the axis by up to 35 degrees, boxes that are not centred on the object's origin."""
    rng = np.random.default_rng(seed)
    focal = rng.uniform(400, 1200)
    K = np.array([[focal, 0, WH[0] / 2], [0, focal * rng.uniform(0.9, 1.1), WH[1] / 2], [0, 0, 1]])
    z = rng.uniform(0.2, 2.0)
    t = np.array([*(rng.uniform(-0.7, 0.7, 2) * z), z])
    R = rotation_from_6d(rng.normal(size=6))
    half = focal * rng.uniform(0.02, 0.1, 2) / z
    centre = (K @ t / z)[:2] + rng.uniform(-0.3, 0.3, 2) * half
    box = np.concatenate([centre - half, centre + half])
    warp = crop_warp(box, SYSTEM.crop, WH)
    R_allo = allo_from_ego(R, t)
    r6 = np.concatenate([R_allo[:, 0] * rng.uniform(0.5, 2), R_allo[:, 1] + rng.uniform(-1, 1) * R_allo[:, 0]])
    site = site_from_translation(t, box, warp[0, 0], K, 256, SITE_GRID_PX)

    r6_, site_, box_, warp_, K_ = (torch.from_numpy(a).float()[None] for a in (r6, site, box, warp, K))
    got_R, got_t = pose_from_site(r6_, site_, box_, warp_, K_, 256, SITE_GRID_PX)
    np.testing.assert_allclose(got_R[0].numpy(), R, atol=1e-4)
    np.testing.assert_allclose(got_t[0].numpy(), t, atol=1e-4)


def test_contract_of_the_published_size() -> None:
    with torch.device("meta"):
        graphs = SYSTEM.graphs(SurfEmbRegressor(), SYSTEM.crop)
        labelled = SYSTEM.graphs(SurfEmbRegressor(n_objects=8), SYSTEM.crop)
    assert list(graphs) == ["pose"]
    assert [spec.name for spec in graphs["pose"].inputs] == ["crops", "box", "warp", "K", "image_wh"]
    assert graphs["pose"].inputs[0].shape == ("batch", 256, 256, 3)
    assert graphs["pose"].outputs == ("R", "t", "score")
    assert labelled["pose"].inputs[-1].name == "label"


def test_published_size() -> None:
    """SurfEmb's U-Net, and a regressor that is nearly all first layers of its three heads."""
    with torch.device("meta"):
        net = SurfEmbRegressor()
    head = 16384 * 1200 + 1200 + 1200 * 256 + 256
    ends = 257 * 6 + (2 * (1200 + 256) + 257 * 2) + (257 * 32 + 33)  # the middle one has BatchNorm
    parts = {
        net.queries.encoder: 11_176_512,
        net.queries.decoder: 6_548_493,
        net.pnp.stages: 404_172,
        net.pnp: 404_172 + 3 * head + ends,
    }
    for part, expected in parts.items():
        assert sum(p.numel() for p in part.parameters()) == expected


@pytest.mark.parametrize(("option", "crop"), [(32, 64), (64, 32)])
def test_another_crop_size_is_refused(option: int, crop: int) -> None:
    net = SurfEmbRegressor("nano", crop_size_px=option, pnp_hidden=(8, 8), decoder_widths=(8, 8, 8, 8, 8))
    with pytest.raises(RecipeError, match=f"crop size: got {crop}, expected {option}"):
        SYSTEM.graphs(net, CropPreset("square", crop))


def test_a_size_that_does_not_halve_five_times_is_refused() -> None:
    with pytest.raises(RecipeError, match="crop_size_px: got 250, expected a multiple of 32"):
        SurfEmbRegressor("nano", crop_size_px=250)


def test_labels_pick_their_own_pose() -> None:
    net = toy(n_objects=3).eval()
    pose = SYSTEM.graphs(net, SMALL)["pose"]
    feed = {k: torch.from_numpy(v) for k, v in example_feed(pose.inputs, {"batch": 2}).items()}
    with torch.no_grad():
        results = []
        for label in ([0, 2], [2, 0]):
            results.append(pose.module(*{**feed, "label": torch.tensor(label)}.values()))
        alone = pose.module(*{k: v[:1] for k, v in {**feed, "label": torch.tensor([0, 2])}.items()}.values())
    for first, second, single in zip(*results, alone, strict=True):
        assert not torch.allclose(first, second)
        torch.testing.assert_close(first[:1], single, atol=1e-5, rtol=1e-4)


def test_training_is_random_and_inference_is_not() -> None:
    net = toy()
    feed = example_feed(SYSTEM.graphs(net, SMALL)["pose"].inputs, {"batch": 2})
    x, warp, wh = torch.randn(2, 3, 32, 32), torch.from_numpy(feed["warp"]), torch.from_numpy(feed["image_wh"])
    net.train()
    assert not torch.equal(net(x, warp, wh)[3], net(x, warp, wh)[3])
    net.eval()
    assert torch.equal(net(x, warp, wh)[3], net(x, warp, wh)[3])


def test_a_half_precision_trunk_gives_nearly_the_same_pose() -> None:
    net = toy().eval()
    pose = SYSTEM.graphs(net, SMALL)["pose"]
    feed = [torch.from_numpy(v) for v in example_feed(pose.inputs, {"batch": 2}).values()]
    with torch.no_grad():
        full = pose.module(*feed)
        net.half()
        half = pose.module(*feed)
    for one, other in zip(full, half, strict=True):
        assert other.dtype == torch.float32
        torch.testing.assert_close(one, other, atol=0.02, rtol=0.02)


def test_the_pose_graph_exports(tmp_path: Path) -> None:
    source = SYSTEM.graphs(toy(n_objects=2), SMALL)["pose"]
    graph = onnx_from_network(source, tmp_path / "pose.onnx", simplify=False)
    assert [spec.shape for spec in graph.outputs] == [("batch", 3, 3), ("batch", 3), ("batch",)]


@pytest.mark.slow
def test_the_published_size_exports(tmp_path: Path) -> None:
    torch.manual_seed(0)
    onnx_from_network(SYSTEM.graphs(awake(SurfEmbRegressor()), SYSTEM.crop)["pose"], tmp_path / "pose.onnx")
