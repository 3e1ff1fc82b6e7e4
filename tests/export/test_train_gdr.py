"""Training of the reference GDR-Net: batches as its losses want them, gradients everywhere, and a loss that falls."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from posekit.export.networks.geometry import site_from_translation
from posekit.export.reference.compose import Views, training_crop
from posekit.export.reference.train_gdr import CROP, OPTIONS, WEIGHTS, Losses, batch_of
from posekit.export.reference.training import Batch
from posekit.export.systems.gdr_net import GdrNet
from posekit.runtime.decode import translation_from_site

torch.set_num_threads(1)
COUNT, GRID = 6, 24
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def batch(small_views: Views) -> Batch:
    rng = np.random.default_rng(0)
    return batch_of([training_crop(small_views, CROP, GRID, rng, label=k % 3) for k in range(COUNT)], small_views)


@pytest.fixture
def network() -> GdrNet:
    torch.manual_seed(0)
    return GdrNet(**OPTIONS).train()


@pytest.fixture(scope="module")
def losses() -> Losses:
    return Losses([1, 2, 3], CPU)


def test_batches_have_the_shapes_and_ranges_that_the_losses_want(batch: Batch, network: GdrNet) -> None:
    assert network.grid == GRID
    shapes = {
        "crops": (CROP.side_px, CROP.side_px, 3),
        "label": (),
        "mask": (GRID, GRID),
        "xyz": (3, GRID, GRID),
        "R": (3, 3),
        "t": (3,),
        "box": (4,),
        "warp": (2, 3),
        "K": (3, 3),
        "extents": (3,),
    }
    assert {name: tuple(value.shape) for name, value in batch.items()} == {n: (COUNT, *s) for n, s in shapes.items()}
    kinds = {"crops": torch.uint8, "label": torch.int64}
    assert all(value.dtype == kinds.get(name, torch.float32) for name, value in batch.items())
    assert batch["label"].tolist() == [0, 1, 2, 0, 1, 2]
    inside = batch["xyz"].permute(0, 2, 3, 1)[batch["mask"] > 0]
    assert set(batch["mask"].flatten().tolist()) == {0.0, 1.0}
    assert inside.min() > -0.02  # the bottle's box turns with it, but is round
    assert inside.max() < 1.02
    assert (batch["box"][:, 2:] > batch["box"][:, :2]).all()
    torch.testing.assert_close(torch.linalg.det(batch["R"]), torch.ones(COUNT))


def test_coordinates_of_a_batch_are_those_of_its_crops(small_views: Views) -> None:
    one = training_crop(small_views, CROP, GRID, np.random.default_rng(3), label=1)
    batch = batch_of([one], small_views)
    low, extents = small_views.objects[1].bbox_min_m, small_views.objects[1].extents_m
    coords = batch["xyz"][0].permute(1, 2, 0).numpy() * extents + low
    np.testing.assert_allclose(coords[one.mask], one.coords_m[one.mask], atol=1e-6)


def test_the_runtime_decodes_the_true_site_to_the_true_translation(batch: Batch) -> None:
    wanted = site_from_translation(batch["t"], batch["box"], batch["warp"], batch["K"], CROP.side_px, GRID)
    for i in range(COUNT):
        t, site, box, warp, K = (
            a[i].double().numpy() for a in (batch["t"], wanted, batch["box"], batch["warp"], batch["K"])
        )
        decoded = translation_from_site(site, box, float(warp[0, 0]), K, CROP.side_px, GRID)
        np.testing.assert_allclose(decoded, t, atol=1e-5)


def test_losses_are_finite_and_reach_every_parameter(batch: Batch, network: GdrNet, losses: Losses) -> None:
    terms = losses(network, batch)
    assert set(terms) == set(WEIGHTS)
    assert all(torch.isfinite(term) and term > 0 for term in terms.values())
    torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
    lost = [n for n, p in network.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert not lost
    assert not [n for n, p in network.named_parameters() if p.grad is not None and not p.grad.any()]


def test_the_loss_of_one_batch_falls(batch: Batch, network: GdrNet, losses: Losses) -> None:
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
    totals = []
    for _ in range(15):
        total = torch.stack(list(losses(network, batch).values())).sum()
        optimiser.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        totals.append(total.item())
    assert totals[-1] < 0.75 * totals[0]
