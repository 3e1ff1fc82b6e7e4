"""The matcher graph is its formula, and the formula finds what is there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from posekit.export.networks.matcher import BEST, Matcher
from posekit.export.onnx_from_network import onnx_from_network
from posekit.export.systems import GraphSource
from posekit.runtime.tensor import TensorSpec

Array = npt.NDArray[np.float64]
seeds = st.integers(0, 2**32 - 1)


def unit(x: Array, axis: int) -> Array:
    return np.asarray(x / np.linalg.norm(x, axis=axis, keepdims=True))


def random_bank(rng: np.random.Generator, places: int, channels: int, views: int) -> tuple[Array, Array]:
    """templates (L, C, N), weights (L, N)."""
    mask = rng.random((places, views)) < 0.7
    mask[0] = True
    return unit(rng.normal(size=(places, channels, views)), 1), mask / mask.sum(axis=0)


def match(matcher: Matcher, *arrays: Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    index, score = matcher(*(torch.from_numpy(a).float() for a in arrays))
    return index.numpy(), score.numpy()


def formula(q: Array, t: Array, w: Array, threshold: float | None) -> Array:
    """Score (B, N), in plain loops over crops and views."""
    score = np.zeros((len(q), t.shape[2]))
    for b in range(len(q)):
        for n in range(t.shape[2]):
            c = (q[b] * t[:, :, n]).sum(axis=1)
            score[b, n] = (w[:, n] * (c if threshold is None else np.where(c <= threshold, 0.0, c))).sum()
    return score


@given(seeds, st.sampled_from([None, 0.2, 0.0]), st.sampled_from([(1, 16), (9, 4)]))
def test_matcher_is_the_formula(seed: int, threshold: float | None, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    t, w = random_bank(rng, *size, views=11)
    q = unit(rng.normal(size=(3, *size)), 2)
    index, score = match(Matcher(threshold), q, t, w)
    expected = formula(q, t, w, threshold)
    np.testing.assert_allclose(score, -np.sort(-expected, axis=1)[:, :BEST], atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(expected, index, axis=1), score, atol=1e-6)
    assert all(len(set(row)) == BEST for row in index.tolist())


@given(seeds)
def test_every_view_finds_itself(seed: int) -> None:
    t, w = random_bank(np.random.default_rng(seed), 16, 8, 40)
    index, score = match(Matcher(), t.transpose(2, 0, 1), t, w)
    assert index[:, 0].tolist() == list(range(40))
    np.testing.assert_allclose(score[:, 0], 1.0, atol=1e-6)


def test_equal_views_are_all_among_the_best() -> None:
    """A symmetric object looks the same from several views: they tie, and none is lost."""
    t, w = random_bank(np.random.default_rng(0), 16, 8, 12)
    t[:, :, 7], w[:, 7] = t[:, :, 2], w[:, 2]
    index, score = match(Matcher(), t[None, :, :, 2], t, w)
    assert set(index[0, :2].tolist()) == {2, 7}
    assert score[0, 0] == pytest.approx(score[0, 1])


@given(seeds, st.integers(0, 11))
def test_an_empty_template_never_wins(seed: int, empty: int) -> None:
    rng = np.random.default_rng(seed)
    t, w = random_bank(rng, 9, 4, 12)
    w[:, empty] = 0
    matching = (empty + 5) % 12
    index, score = match(Matcher(), t[None, :, :, empty] * 0.3 + t[None, :, :, matching] * 0.7, t, w)
    assert index[0, 0] != empty
    assert score[0, 0] > 0


def test_what_the_template_masks_out_does_not_count() -> None:
    rng = np.random.default_rng(1)
    t, w = random_bank(rng, 9, 4, 12)
    q = t.transpose(2, 0, 1)[3:4].copy()
    q[0, w[:, 3] == 0] = unit(rng.normal(size=(int((w[:, 3] == 0).sum()), 4)), 1)  # clutter
    index, score = match(Matcher(), q, t, w)
    assert index[0, 0] == 3
    assert score[0, 0] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("threshold", [None, 0.2])
def test_matcher_exports_with_any_number_of_views(tmp_path: Path, threshold: float | None) -> None:
    inputs = (
        TensorSpec("descriptors", "float32", ("batch", 9, 4)),
        TensorSpec("templates", "float32", (9, 4, "views")),
        TensorSpec("weights", "float32", (9, "views")),
    )
    graph = onnx_from_network(
        GraphSource("matcher", Matcher(threshold), inputs, ("index", "score")), tmp_path / "m.onnx"
    )
    assert [spec.shape for spec in graph.outputs] == [("batch", 5), ("batch", 5)]
    assert graph.parity.worst < 1e-5
