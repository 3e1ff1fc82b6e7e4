"""The compact detector: decoding, losses, one exported graph, and that it can learn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from posekit.export.networks.anchor_free import STRIDE_PX, AnchorFree, _bias
from posekit.export.onnx_from_network import onnx_from_network
from posekit.export.systems import system_named
from posekit.export.systems.anchor_free import (
    DetectionTarget,
    box_gaussians,
    detection_losses,
    focal_loss,
    giou,
    heat_maps,
)
from posekit.runtime.backends.ort import OrtSession
from posekit.runtime.detector import FAMILIES, Detector
from posekit.runtime.manifest import DetectorEntry

WH_PX = (96, 64)
GRID_HW = (8, 12)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def small(classes: int = 2, detections: int = 8) -> AnchorFree:
    return AnchorFree(classes, WH_PX, widths=(8, 16, 24, 32), depth=(1, 1), detections=detections)


def target_of(*boxes: tuple[float, float, float, float], ignored: bool = False) -> DetectionTarget:
    count = len(boxes)
    return DetectionTarget(
        torch.tensor(boxes)[None], torch.zeros(1, count, dtype=torch.int64), torch.full((1, count), ignored)
    )


# The network.


def test_the_reference_size_is_small() -> None:
    network = AnchorFree(classes=3).eval()
    assert 4e5 < sum(p.numel() for p in network.parameters()) < 1e6
    with torch.no_grad():
        boxes, scores, labels = network(torch.zeros(2, 240, 320, 3, dtype=torch.uint8))
    assert (boxes.shape, scores.shape, labels.shape) == ((2, 32, 4), (2, 32), (2, 32))
    assert labels.dtype == torch.int64
    assert ((boxes[..., 2:] - boxes[..., :2]) > 0).all()
    assert scores.max() < 0.1  # the prior of an untrained head


def test_decoding_finds_each_peak_once_and_sorts() -> None:
    network = small()
    logits = torch.full((1, 2, *GRID_HW), -9.0)
    logits[0, 1, 3, 4], logits[0, 1, 3, 5], logits[0, 1, 4, 4] = 2.0, 1.9, 1.5  # one peak and its slopes
    logits[0, 0, 3, 4], logits[0, 0, 7, 11] = 1.0, 3.0
    boxes = torch.arange(4 * 8 * 12, dtype=torch.float32).view(1, 4, *GRID_HW)
    out, scores, labels = network.decoded(logits, boxes)
    assert labels[0, :3].tolist() == [0, 1, 0]
    torch.testing.assert_close(scores[0, :3], torch.sigmoid(torch.tensor([3.0, 2.0, 1.0])))
    assert (scores[0, 3:] < 0.001).all()
    for row, (y, x) in enumerate([(7, 11), (3, 4), (3, 4)]):
        torch.testing.assert_close(out[0, row], boxes[0, :, y, x])


def test_boxes_lie_about_their_cell() -> None:
    network = small()
    boxes = network._boxes(torch.randn(1, 4, *GRID_HW))
    x, y = STRIDE_PX * (torch.arange(12) + 0.5), STRIDE_PX * (torch.arange(8) + 0.5)
    assert (boxes[0, 0] < x).all()
    assert (boxes[0, 2] > x).all()
    assert (boxes[0, 1] < y[:, None]).all()
    assert (boxes[0, 3] > y[:, None]).all()


# Targets and losses.

SIDES = st.tuples(*[st.floats(0, 60, width=32)] * 2, *[st.floats(1, 36, width=32)] * 2)


@given(SIDES)
def test_a_gaussian_peaks_at_the_centre_and_stays_in_the_box(sides: tuple[float, float, float, float]) -> None:
    x, y, width, height = sides
    x1, y1 = min(x + width, 96.0), min(y + height, 64.0)
    bell = box_gaussians(torch.tensor([[[x, y, x1, y1]]]), GRID_HW)[0, 0]
    row, column = int((y + y1) / 2 / STRIDE_PX), int((x + x1) / 2 / STRIDE_PX)
    assert bell[row, column] == 1.0
    assert (bell == 1.0).sum() == 1
    rows, columns = np.nonzero(bell.numpy())
    assert (np.abs(columns - column) * STRIDE_PX <= width / 2).all()
    assert (np.abs(rows - row) * STRIDE_PX <= height / 2).all()


@given(SIDES, SIDES)
def test_giou_laws(first: tuple[float, ...], second: tuple[float, ...]) -> None:
    a, b = (torch.tensor([x, y, x + w, y + h], dtype=torch.float64) for x, y, w, h in (first, second))
    value = giou(a, b)
    torch.testing.assert_close(giou(a, a), torch.ones((), dtype=torch.float64))
    torch.testing.assert_close(value, giou(b, a))
    torch.testing.assert_close(value, giou(a + 7, b + 7))
    torch.testing.assert_close(value, giou(3 * a, 3 * b))
    assert -1 < value <= 1
    if (torch.minimum(a[2:], b[2:]) <= torch.maximum(a[:2], b[:2])).any():
        assert value <= 1e-9  # apart


def test_heat_maps_keep_classes_apart_and_leave_padding_out() -> None:
    boxes = torch.tensor([[[0.0, 0, 32, 32], [48, 24, 80, 56], [0, 0, 0, 0]]])
    labels = torch.tensor([[1, 0, -1]])
    heat = heat_maps(box_gaussians(boxes, GRID_HW), labels, 2)
    assert heat[0, 1, 2, 2] == 1.0
    assert heat[0, 0, 5, 8] == 1.0
    assert (heat == 1.0).sum() == 2


def test_the_perfect_answer_costs_nothing() -> None:
    box = (16.0, 8.0, 64.0, 56.0)
    target = target_of(box)
    heat = heat_maps(box_gaussians(target.boxes, GRID_HW), target.labels, 2)
    logits = torch.where(heat >= 1, 30.0, -30.0)
    boxes = torch.tensor(box).view(1, 4, 1, 1).expand(1, 4, *GRID_HW)
    losses = detection_losses(logits, boxes, target)
    assert sum(losses.values()) < 1e-5
    worse = detection_losses(-logits, boxes - 8.0, target)
    assert worse["heat"] > 1
    assert worse["box"] > 0.1


def test_a_hidden_thing_asks_for_nothing() -> None:
    logits = torch.zeros(1, 2, *GRID_HW, requires_grad=True)
    boxes = torch.ones(1, 4, *GRID_HW, requires_grad=True)
    losses = detection_losses(logits, boxes, target_of((16.0, 8.0, 64.0, 56.0), ignored=True))
    (losses["heat"] + losses["box"]).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    inside = torch.zeros(GRID_HW, dtype=torch.bool)
    inside[1:7, 2:8] = True
    assert (logits.grad[0][:, inside] == 0).all()
    assert (logits.grad[0][:, ~inside] > 0).all()
    assert boxes.grad is None or (boxes.grad == 0).all()


def test_near_a_centre_is_punished_less() -> None:
    counted = torch.ones(1)
    near, far = (focal_loss(torch.zeros(1), torch.tensor([heat]), counted) for heat in (0.8, 0.0))
    assert near < far


# Export and learning.


def test_export_has_the_contract_and_runs_in_the_runtime(tmp_path: Path) -> None:
    system = system_named("anchor-free")
    network = system.network(classes=2, input_wh_px=WH_PX, widths=(8, 16, 24, 32), depth=(1, 1), detections=8)
    assert isinstance(network, AnchorFree)
    _bias(network.class_head).data.fill_(1.0)
    source = system.graphs(network, system.crop)["detector"]
    exported = onnx_from_network(source, tmp_path / "detector.onnx", simplify=False)  # raises beyond 1e-4
    assert [spec.name for spec in exported.outputs] == ["boxes", "scores", "labels"]
    session = OrtSession((tmp_path / "detector.onnx").read_bytes())
    row = FAMILIES["posekit"]
    entry = DetectorEntry("detector", "posekit", WH_PX, row.letterbox_value, (4, 7), row.score_threshold, 1.0)
    image = np.random.default_rng(0).integers(0, 256, (128, 192, 3), dtype=np.uint8)
    found = Detector(session, entry).detect(image)
    session.close()
    assert 0 < len(found) <= 8
    assert {d.object_id for d in found} <= {4, 7}


def test_it_learns_to_find_squares() -> None:
    """Red and green squares on grey: after a few steps every one is found once, with its class and box."""
    rng = np.random.default_rng(0)
    images, boxes = np.full((8, 64, 96, 3), 90, np.uint8), np.zeros((8, 2, 4), np.float32)
    for i in range(8):
        for label, x in ((0, rng.integers(0, 20)), (1, rng.integers(48, 68))):
            y, side = rng.integers(0, 36), rng.integers(18, 28)
            images[i, y : y + side, x : x + side] = (230, 20, 20) if label == 0 else (20, 230, 20)
            boxes[i, label] = (x, y, x + side, y + side)
    labels = torch.tensor([[0, 1]]).expand(8, 2)
    target = DetectionTarget(torch.from_numpy(boxes), labels, torch.zeros(8, 2, dtype=torch.bool))
    network = small(detections=4).train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=5e-3)
    for _ in range(60):
        losses = detection_losses(*network.maps(torch.from_numpy(images)), target)
        optimiser.zero_grad()
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    with torch.no_grad():
        found, scores, classes = network(torch.from_numpy(images))
    assert (scores[:, :2] > 0.3).all()
    assert (scores[:, 2:] < 0.3).all()
    assert (classes[:, :2].sort(dim=1).values == labels).all()
    mine = found[:, :2].gather(1, classes[:, :2].argsort(dim=1)[..., None].expand(-1, -1, 4))
    assert giou(mine, target.boxes).min() > 0.6
