"""Ranges hold what was seen, whatever the order and the batches; what is clipped is counted."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from toy_networks import WEIGHTED, Recorded, scenes, toy_network

from posekit.calibration import ranges
from posekit.calibration.nodes import weighted_nodes
from posekit.calibration.ranges import METHODS, PERCENTILE, RangeTable, calibrate
from posekit.runtime.errors import CalibrationError, PrecisionError

SCENES = scenes(40)


@pytest.fixture(autouse=True)
def coarse_histograms(monkeypatch: pytest.MonkeyPatch) -> None:
    """The entropy search takes time with the square of the bins."""
    monkeypatch.setattr("posekit.calibration.ranges.BINS", 256)


def activations(model: onnx.ModelProto, source: Recorded) -> dict[str, np.ndarray]:
    """Every value of every tensor that enters a weighted node."""
    names = sorted({node.activation for node in weighted_nodes(model)})
    tapped = onnx.ModelProto.FromString(model.SerializeToString())
    del tapped.graph.output[:]
    tapped.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(tapped.SerializeToString())
    runs = [session.run(names, feed) for feed in source.feeds()]
    return {name: np.concatenate([run[i].ravel() for run in runs]) for i, name in enumerate(names)}


@pytest.mark.parametrize("half", [False, True])
def test_minmax_is_the_extremes(half: bool) -> None:
    model = toy_network(half)
    table = calibrate(model, SCENES.feeds)
    seen = activations(model, SCENES)
    assert list(table.ranges) == sorted(seen)
    for name, row in table.ranges.items():
        tolerance = float(np.abs(seen[name]).max()) * (
            2e-2 if half else 1e-5
        )  # float16 sums differ between optimisations
        assert row.low == pytest.approx(seen[name].min(), abs=tolerance)
        assert row.high == pytest.approx(seen[name].max(), abs=tolerance)
        assert (row.amax, row.clipped) == (max(-row.low, row.high), 0.0)


@pytest.mark.parametrize("method", METHODS)
def test_ranges_lie_within_the_extremes_and_clipping_is_what_lies_beyond(method: str) -> None:
    model = toy_network()
    table = calibrate(model, SCENES.feeds, method)
    for name, values in activations(model, SCENES).items():
        row = table.ranges[name]
        assert 0 < row.amax <= max(-row.low, row.high) * (1 + 1e-6)
        beyond = float(np.mean(np.abs(values) > row.amax * (1 + 1e-5)))
        assert row.clipped == pytest.approx(beyond, abs=2 / values.size)
    assert table.worst_clipped == max(((n, r.clipped) for n, r in table.ranges.items()), key=lambda pair: pair[1])


def test_the_percentile_clips_no_more_than_it_says() -> None:
    table = calibrate(toy_network(), SCENES.feeds, "percentile")
    assert 0 < table.worst_clipped[1] <= 1 - PERCENTILE / 100


@pytest.mark.parametrize("method", METHODS)
def test_order_and_batches_change_nothing(method: str) -> None:
    turned = Recorded(SCENES.pictures[::-1], batch=3)
    rows, others = (calibrate(toy_network(), s.feeds, method).ranges for s in (SCENES, turned))
    assert rows == others


def magnitudes(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    reach = float(np.abs(values).max())
    counts, edges = np.histogram(values, ranges.BINS, (-reach, reach))
    return counts.astype(np.int64), edges.astype(np.float32)


@pytest.mark.parametrize("rectified", [False, True])
@pytest.mark.parametrize("draw", ["normal", "laplace"])
def test_entropy_keeps_the_bulk_of_smooth_values(draw: str, rectified: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges that cost a network its answers cut into the bulk; zeros, half of what a ReLU gives, are no reason to."""
    monkeypatch.setattr(ranges, "BINS", 2048)
    values = getattr(np.random.default_rng(0), draw)(size=200_000)
    values = np.maximum(values, 0) if rectified else values
    amax = METHODS["entropy"].amax
    assert amax is not None
    found = amax(magnitudes(values), float(values.min()), float(values.max()))
    assert found <= np.abs(values).max() * (1 + 1e-6)
    assert np.mean(np.abs(values) > found) < 2e-3
    rounded = np.clip(np.rint(values / (found / 127)), -127, 127) * (found / 127)
    assert np.dot(values, rounded) / np.linalg.norm(values) / np.linalg.norm(rounded) > 0.999


@pytest.mark.parametrize("share", [0.1, 0.25, 0.6])
def test_entropy_does_not_cut_at_a_value_that_many_have(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels of a letterboxed image: a quarter of them are the grey around it."""
    monkeypatch.setattr(ranges, "BINS", 2048)
    rng = np.random.default_rng(2)
    pixels = np.where(rng.random(200_000) < share, 114, rng.integers(0, 256, 200_000)).astype(np.float64)
    amax = METHODS["entropy"].amax
    assert amax is not None
    assert amax(magnitudes(pixels), 0.0, 255.0) > 250


def test_entropy_leaves_a_lone_outlier_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "BINS", 2048)
    values = np.append(np.random.default_rng(1).normal(size=100_000), 60.0)
    amax = METHODS["entropy"].amax
    assert amax is not None
    assert 3.5 < amax(magnitudes(values), float(values.min()), 60.0) < 15


def test_values_that_are_nearly_all_zero_keep_a_range() -> None:
    """A single lit pixel: all but a few values fall into the first bin."""
    dark = np.zeros((32, 32, 3), np.uint8)
    lit = dark.copy()
    lit[16, 16] = 255
    table = calibrate(toy_network(), Recorded([dark] * 63 + [lit]).feeds, "percentile")
    assert all(row.amax > 0 for row in table.ranges.values())


@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_that_is_always_zero_has_the_range_zero(method: str) -> None:
    model = toy_network(stem_w=np.zeros((8, 3, 3, 3)), stem_b=np.zeros(8))
    row = calibrate(model, SCENES.feeds, method).ranges["r1"]
    assert (row.amax, row.low, row.high, row.clipped) == (0.0, 0.0, 0.0, 0.0)


def test_a_graph_can_be_a_file(tmp_path: Path) -> None:
    path = tmp_path / "toy.onnx"
    onnx.save(toy_network(), str(path))
    assert calibrate(path, SCENES.feeds) == calibrate(toy_network(), SCENES.feeds)


def test_only_weighted_nodes_are_looked_at() -> None:
    assert tuple(node.name for node in weighted_nodes(toy_network())) == WEIGHTED
    assert tuple(node.name for node in weighted_nodes(toy_network(half=True))) == WEIGHTED


def test_overflow_names_the_tensor() -> None:
    model = toy_network(half=True, stem_w=np.full((8, 3, 3, 3), 60000.0))
    with pytest.raises(CalibrationError, match=r"tensor 'r1'.*inf.*in batch 0.*float32"):
        calibrate(model, SCENES.feeds)


def test_nan_in_one_batch_is_not_passed_over() -> None:
    """Infinity minus infinity, only where a picture is bright."""
    left = np.full((8, 8, 3, 3), 3000.0)
    left[:, ::2] *= -1
    stem = np.ones((8, 3, 3, 3)) * 2000
    dark, bright = np.zeros((32, 32, 3), np.uint8), np.full((32, 32, 3), 255, np.uint8)
    model = toy_network(half=True, stem_w=stem, stem_b=np.zeros(8), left_w=left)
    with pytest.raises(CalibrationError, match="in batch 1"):
        calibrate(model, Recorded([dark, bright, dark], batch=1).feeds)


def test_no_data_no_weights_and_unknown_methods_are_refused() -> None:
    with pytest.raises(CalibrationError, match="no feed"):
        calibrate(toy_network(), list)
    with pytest.raises(PrecisionError, match="one of minmax, percentile, entropy"):
        calibrate(toy_network(), SCENES.feeds, "kl")
    bare = toy_network()
    kept = [node for node in bare.graph.node if node.name == "geometry"]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    del bare.graph.node[:], bare.graph.output[0]
    bare.graph.node.extend(copies)
    with pytest.raises(PrecisionError, match="no node with constant weights"):
        calibrate(bare, SCENES.feeds)


def _peak_bytes(source: Recorded) -> tuple[int, RangeTable]:
    tracemalloc.start()
    try:
        table = calibrate(toy_network(), source.feeds, "percentile")
        return tracemalloc.get_traced_memory()[1], table
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_number_of_crops() -> None:
    """NumPy reports its buffers to tracemalloc: one batch of tensors is about 1 MB here, 32 batches would be 32."""
    _peak_bytes(scenes(8))  # imports
    few, table = _peak_bytes(scenes(8))
    many, longer = _peak_bytes(Recorded([*scenes(8).pictures] * 32))
    assert (table.batches, longer.batches) == (1, 32)
    assert many < 1.5 * few
