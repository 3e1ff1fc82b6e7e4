"""Training of the reference embedder: templates look like their queries, negatives are none of them, gradients flow."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from posekit.export.reference import train_embedder
from posekit.export.reference.compose import Jitter, TrainingCrop, Views, training_crop
from posekit.export.reference.train_embedder import CROP, NEIGHBOUR_RAD, OPTIONS, SAME_RAD, Allocentric, Losses
from posekit.export.reference.training import Batch
from posekit.export.systems.template_pose import TemplatePose
from posekit.runtime.pose import Array, allo_from_ego, rotation_angle_rad

torch.set_num_threads(1)
GRID = 24  # finer than the network's, to compare silhouettes
COUNT = 8
CLUTTER = 3  # its label


@pytest.fixture(scope="module")
def looks(small_views: Views) -> list[Allocentric]:
    return [Allocentric.of(view_set) for view_set in (*small_views.objects, small_views.clutter)]


@pytest.fixture(scope="module")
def network() -> TemplatePose:
    torch.manual_seed(0)
    return TemplatePose(**OPTIONS).train()


@pytest.fixture(scope="module")
def batch(small_views: Views, looks: list[Allocentric], network: TemplatePose) -> Batch:
    return train_embedder._batch(small_views, looks, network.grid(CROP.side_px), COUNT, np.random.default_rng(0))


def look_of(query: TrainingCrop) -> Array:
    return allo_from_ego(query.cam_from_obj.R, query.cam_from_obj.t_m)


@pytest.mark.parametrize("label", range(3))
def test_a_look_is_symmetric_equivalent_to_its_view(small_views: Views, looks: list[Allocentric], label: int) -> None:
    arrays = small_views.objects[label].arrays
    for R, t, look in zip(arrays["R"], arrays["t_m"], looks[label].R, strict=True):
        np.testing.assert_allclose(look[:, 2], allo_from_ego(R, t)[:, 2], atol=1e-9)
        np.testing.assert_allclose(look.T @ look, np.eye(3), atol=1e-9)
    direction = looks[label].direction
    np.testing.assert_allclose(np.linalg.norm(direction, axis=1), 1.0)
    if label == 2:  # the bottle
        assert (direction[:, 0] >= 0).all()
        np.testing.assert_allclose(direction[:, 1], 0, atol=1e-9)
    else:
        seen_from = np.einsum("nij,nj->ni", arrays["R"].transpose(0, 2, 1), -arrays["t_m"])
        np.testing.assert_allclose(direction, seen_from / np.linalg.norm(seen_from, axis=1)[:, None], atol=1e-9)


def test_nearness_is_mutual_and_has_bounds(looks: list[Allocentric]) -> None:
    low, high = np.radians(10), np.radians(80)
    for look in looks:
        every = range(len(look.R))
        near = {(i, int(j)) for i in every for j in look.near(i, low, high)}
        assert near == {(j, i) for i, j in near}
        assert all(i != j for i, j in near)
        assert all(look.near(i, 0.0, float(NEIGHBOUR_RAD)).tolist().count(i) == 1 for i in every)


@pytest.mark.parametrize("reach_deg", [np.degrees(NEIGHBOUR_RAD), 70.0])
@pytest.mark.parametrize("label", range(3))
def test_a_template_is_turned_like_its_query(
    small_views: Views,
    looks: list[Allocentric],
    label: int,
    reach_deg: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is left between the two is the angle between their directions."""
    monkeypatch.setattr(train_embedder, "NEIGHBOUR_RAD", np.radians(reach_deg))
    apart = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        query = training_crop(small_views, CROP, GRID, rng, label=label)
        _, _, R = train_embedder._template(small_views, looks[label], query, GRID, rng)
        apart.append(np.degrees(rotation_angle_rad(look_of(query), R)))
    assert max(apart) <= reach_deg + 1e-3
    assert reach_deg < 10 or max(apart) > 10  # the wider reach does find others


@pytest.mark.parametrize("label", range(4))
def test_a_template_of_the_same_view_covers_the_same_places(
    small_views: Views, looks: list[Allocentric], label: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_embedder, "NEIGHBOUR_RAD", 1e-3)
    for view in range(len(looks[label].R)):
        rng = np.random.default_rng(view)
        query = training_crop(small_views, CROP, GRID, rng, Jitter(0, 0), occlusion=0.0, label=label, view=view)
        pixels, mask, _ = train_embedder._template(small_views, looks[label], query, GRID, rng)
        places = mask.reshape(GRID, GRID) > 0
        assert (query.mask & ~places).mean() < 0.03
        assert (places & ~query.mask).mean() < 0.15  # a place counts that any pixel reaches
        assert pixels.shape == (CROP.side_px, CROP.side_px, 3)
        assert pixels.dtype == np.uint8


def test_negatives_are_other_objects_and_other_sides(small_views: Views, looks: list[Allocentric]) -> None:
    rng = np.random.default_rng(1)
    asked = [(0, 0), (0, 0), (0, 1), (1, 0), (2, 4), (2, 4), (CLUTTER, 0), (CLUTTER, 1), (CLUTTER, 3)]
    queries = [training_crop(small_views, CROP, GRID, rng, label=label, view=view) for label, view in asked]
    templates = [train_embedder._template(small_views, looks[q.label], q, GRID, rng)[2] for q in queries]
    negatives = train_embedder._negatives(small_views, queries, templates)
    assert negatives.dtype == np.bool_
    assert not negatives.diagonal().any()
    assert not negatives[6:8, 6:8].any()  # two views of one clutter object
    assert negatives[6:8, 8].all()
    assert negatives[8, 6:8].all()
    assert negatives[6:, :6].all()
    assert negatives[:6, 6:].all()
    for i in range(6):
        for j in range(6):
            far = rotation_angle_rad(look_of(queries[i]), templates[j]) > SAME_RAD
            assert negatives[i, j] == (queries[i].label != queries[j].label or far)


def test_batches_have_the_shapes_that_the_loss_wants(batch: Batch, network: TemplatePose) -> None:
    size, places = CROP.side_px, network.grid(CROP.side_px) ** 2
    shapes = {
        "queries": (COUNT, size, size, 3),
        "templates": (COUNT, size, size, 3),
        "masks": (COUNT, places),
        "negatives": (COUNT, COUNT),
    }
    assert {name: tuple(value.shape) for name, value in batch.items()} == shapes
    assert set(batch["masks"].flatten().tolist()) <= {0.0, 1.0}
    assert (batch["masks"].sum(dim=1) > 0).all()
    assert not batch["negatives"].diagonal().any()
    assert batch["negatives"].any(dim=1).all()


def test_the_loss_is_finite_and_reaches_every_parameter(batch: Batch, network: TemplatePose) -> None:
    terms = Losses(torch.device("cpu"))(network, batch)
    assert set(terms) == {"infonce"}
    assert torch.isfinite(terms["infonce"])
    terms["infonce"].backward()  # type: ignore[no-untyped-call]
    lost = [n for n, p in network.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert not lost
