"""Composed pictures: sprites blended without fringes, boxes around what is visible, and how detections are judged."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from posekit.export.networks.anchor_free import AnchorFree
from posekit.export.reference import train_detector
from posekit.export.reference.compose import Rgb, Views, paste
from posekit.export.reference.train_detector import (
    INPUT_WH_PX,
    MAX_THINGS,
    Scene,
    batch_of,
    held_out_figures,
    losses_of,
    scaled_sprite,
    training_scene,
)
from posekit.export.reference.views import ViewSet

PATCH_PX = 48


def disc_views(name: str, object_id: int, colour: tuple[int, int, int]) -> ViewSet:
    """Two views of a disc that fills the middle of its patch, seen at the patch's own scale."""
    y, x = np.mgrid[:PATCH_PX, :PATCH_PX] - (PATCH_PX - 1) / 2
    mask = np.hypot(x, y) < PATCH_PX * 0.3
    normal = np.zeros((PATCH_PX, PATCH_PX, 3), np.int8)
    normal[mask] = (0, 0, -127)
    arrays = {
        "mask": np.stack([mask.astype(np.uint8)] * 2),
        "albedo": np.stack([np.where(mask[..., None], np.array(colour, np.uint8), np.uint8(0))] * 2),
        "normal": np.stack([normal] * 2),
        "coords": np.zeros((2, PATCH_PX, PATCH_PX, 3), np.uint8),
        "warp": np.stack([np.array([[0.5, 0, 0], [0, 0.5, 0]])] * 2),
    }
    return ViewSet(name, object_id, np.zeros(3), np.ones(3), arrays)


@pytest.fixture
def views(monkeypatch: pytest.MonkeyPatch) -> Views:
    def grey(rng: np.random.Generator, size_px: int) -> Rgb:
        return np.full((size_px, size_px, 3), 120, np.uint8)

    monkeypatch.setattr(train_detector, "background", grey)
    things = (disc_views("red", 1, (250, 10, 10)), disc_views("green", 2, (10, 250, 10)))
    return Views(things, disc_views("clutter", -1, (20, 20, 250)))


def test_scenes_have_the_shapes_that_training_wants(views: Views) -> None:
    rng = np.random.default_rng(0)
    scenes = [training_scene(views, rng) for _ in range(30)]
    width, height = INPUT_WH_PX
    for scene in scenes:
        assert scene.pixels.shape == (height, width, 3)
        assert scene.boxes.shape == (MAX_THINGS, 4)
        there = scene.labels >= 0
        assert (scene.boxes[~there] == 0).all()
        assert not scene.ignored[~there].any()
        assert (scene.boxes[there, 2:] > scene.boxes[there, :2]).all()
        assert scene.boxes.min() >= 0
        assert (scene.boxes[:, 2:] <= INPUT_WH_PX).all()
    labels = np.concatenate([scene.labels for scene in scenes])
    assert set(labels.tolist()) == {-1, 0, 1}
    assert any(scene.ignored.any() for scene in scenes)


def test_equal_seeds_equal_scenes(views: Views) -> None:
    first, second = (training_scene(views, np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(first.pixels, second.pixels)
    np.testing.assert_array_equal(first.boxes, second.boxes)


def test_a_box_is_tight_about_what_is_visible() -> None:
    owner = np.zeros((240, 320), np.int32)
    owner[10:20, 30:50] = 1
    owner[10:20, 40:50] = 2
    boxes, labels, ignored = train_detector._truth(owner, [-1, 0, 1], [0, 200, 1000])
    assert labels[:1].tolist() == [0]  # the second shows a tenth of itself: not a thing at all
    assert labels[1] == -1
    assert not ignored.any()
    np.testing.assert_array_equal(boxes[0], [30, 10, 40, 20])
    assert train_detector._truth(owner, [-1, 0, 1], [0, 500, 1000])[2][0]


def test_a_sprite_is_scaled_as_the_depth_says_and_has_no_dark_fringe(views: Views) -> None:
    rgb, alpha = scaled_sprite(views.objects[0], np.random.default_rng(0))
    low, high = train_detector.DISTANCE
    assert low * PATCH_PX <= len(alpha) <= high * PATCH_PX  # half of an image that the patch halves
    inner = alpha > 0.99
    colour = rgb[inner].mean(axis=0)
    rim = (alpha > 0.2) & (alpha < 0.8)
    assert rim.any()
    np.testing.assert_allclose(rgb[rim] / alpha[rim][:, None], np.tile(colour, (rim.sum(), 1)), atol=8)


@pytest.mark.parametrize("xy", [(0, 0), (-5, -5), (28, 28), (-50, 0), (0, 99)])
def test_pasting_keeps_what_is_beside(xy: tuple[int, int]) -> None:
    picture, owner = np.full((32, 32, 3), 100, np.uint8), np.zeros((32, 32), np.int32)
    alpha = np.ones((8, 8), np.float32)
    alpha[:, 4:] = 0.5
    rgb = np.full((8, 8, 3), 200, np.uint8)
    rgb[:, 4:] = 100  # premultiplied
    paste(picture, owner, rgb, alpha, xy, 3)
    assert set(np.unique(picture)) <= {100, 150, 200}
    np.testing.assert_array_equal(owner == 3, (picture == 200).all(axis=2))


def test_judging_counts_each_thing_once() -> None:
    boxes = np.zeros((MAX_THINGS, 4), np.float32)
    boxes[:3] = [[0, 0, 10, 10], [50, 50, 70, 70], [90, 90, 99, 99]]
    labels, ignored = np.full(MAX_THINGS, -1, np.int64), np.zeros(MAX_THINGS, bool)
    labels[:3], ignored[2] = (0, 1, 0), True
    scene = Scene(np.zeros((240, 320, 3), np.uint8), boxes, labels, ignored)
    found = np.array(
        [[0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 70, 70], [90, 90, 99, 99], [200, 200, 210, 210]], np.float32
    )
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    classes = np.array([0, 0, 0, 0, 0])  # the third has the wrong class, the fourth is ignored
    assert train_detector._judged(scene, found, scores, classes).tolist() == [2, 1, 1, 2]
    assert train_detector._judged(scene, found, scores * 0.1, classes).tolist() == [2, 0, 0, 0]


def test_a_batch_gives_gradients_and_a_network_gives_figures(views: Views) -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(1)
    network = AnchorFree(2, INPUT_WH_PX, widths=(4, 4, 8, 8), depth=(0, 0))
    losses = losses_of(network, batch_of([training_scene(views, rng) for _ in range(2)]))
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())
    figures = held_out_figures(network.eval(), views, images=3)
    assert figures["recall"].startswith("0.0000 of ")
    assert figures["false"] == "0"
