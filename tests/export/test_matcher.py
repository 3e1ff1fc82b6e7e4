"""The matcher graphs are their formula, the coarse one finds what the flat one finds, and both find what is there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import load_model

from posekit.export.bank_search import matched_arrays
from posekit.export.networks.matcher import matcher_graph
from posekit.export.onnx_from_network import onnx_from_network
from posekit.runtime.backends.openvino import OpenVinoSession
from posekit.runtime.backends.ort import OrtSession
from posekit.runtime.bank import CANDIDATES, MATCHED, SHORTLIST, Search

Array = npt.NDArray[np.float32]
Found = tuple[npt.NDArray[np.int64], Array]
seeds = st.integers(0, 2**32 - 1)
searches = st.sampled_from(["flat", "coarse"])


def unit(x: npt.NDArray[np.floating], axis: int) -> npt.NDArray[np.float64]:
    return np.asarray(x / np.linalg.norm(x, axis=axis, keepdims=True))


def random_bank(rng: np.random.Generator, places: int, channels: int, views: int) -> tuple[Array, Array]:
    """descriptors (N, L, C) of views, weights (N,)."""
    seen = rng.random((views, places)) < 0.7
    seen[:, 0] = True
    descriptors = unit(rng.normal(size=(views, places, channels)), 2) * seen[..., None]
    return descriptors.astype(np.float32), (1 / seen.sum(axis=1)).astype(np.float32)


def match(search: Search, threshold: float | None, q: Array, t: Array, w: Array) -> Found:
    """q: (B, L, C), t: (N, L, C), w: (N,)."""
    graph = matcher_graph(t.shape[1], t.shape[2], threshold, search)
    index, score = graph.module(
        *map(torch.from_numpy, (q.copy(), *(np.array(a) for a in matched_arrays(t, w, search).values())))
    )
    return index.numpy(), score.numpy()


def formula(q: Array, t: Array, w: Array, threshold: float | None) -> npt.NDArray[np.float64]:
    """Score (B, N), in plain loops over crops and views."""
    score = np.zeros((len(q), len(t)))
    for b in range(len(q)):
        for n in range(len(t)):
            c = (q[b] * t[n]).sum(axis=1)
            score[b, n] = w[n] * (c if threshold is None else np.where(c <= threshold, 0.0, c)).sum()
    return score


@given(searches, seeds, st.sampled_from([None, 0.2, 0.0]), st.sampled_from([(1, 16), (9, 4)]))
@settings(max_examples=30)
def test_matchers_are_the_formula(search: Search, seed: int, threshold: float | None, size: tuple[int, int]) -> None:
    """With no more views than a shortlist holds, the coarse search is exact whatever the sketches say."""
    rng = np.random.default_rng(seed)
    t, w = random_bank(rng, *size, views=SHORTLIST)
    q = unit(rng.normal(size=(3, *size)), 2).astype(np.float32)
    index, score = match(search, threshold, q, t, w)
    expected = formula(q, t, w, threshold)
    np.testing.assert_allclose(score, -np.sort(-expected, axis=1)[:, :CANDIDATES], atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(expected, index, axis=1), score, atol=1e-6)
    assert all(len(set(row)) == CANDIDATES for row in index.tolist())


@given(searches, seeds)
@settings(max_examples=20)
def test_every_view_finds_itself(search: Search, seed: int) -> None:
    t, w = random_bank(np.random.default_rng(seed), 16, 8, 300)
    index, score = match(search, 0.2, t, t, w)
    assert index[:, 0].tolist() == list(range(300))
    np.testing.assert_allclose(score[:, 0], 1.0, atol=1e-6)


@pytest.mark.parametrize("search", ["flat", "coarse"])
def test_equal_views_are_all_among_the_best(search: Search) -> None:
    """A symmetric object looks the same from several views: they tie, and none is lost."""
    t, w = random_bank(np.random.default_rng(0), 16, 8, 200)
    t[7], w[7] = t[2], w[2]
    index, score = match(search, 0.2, t[2:3], t, w)
    assert set(index[0, :2].tolist()) == {2, 7}
    assert score[0, 0] == pytest.approx(score[0, 1])


@given(searches, seeds, st.integers(0, 199))
@settings(max_examples=20)
def test_a_view_that_shows_nothing_never_wins(search: Search, seed: int, empty: int) -> None:
    rng = np.random.default_rng(seed)
    t, w = random_bank(rng, 9, 4, 200)
    w[empty] = 0
    matching = (empty + 5) % 200
    index, score = match(search, 0.2, t[[empty]] * 0.3 + t[[matching]] * 0.7, t, w)
    assert index[0, 0] != empty
    assert score[0, 0] > 0


@pytest.mark.parametrize("search", ["flat", "coarse"])
def test_what_the_view_does_not_show_does_not_count(search: Search) -> None:
    rng = np.random.default_rng(1)
    t, w = random_bank(rng, 9, 4, 200)
    q = t[3:4].copy()
    hidden = (t[3] == 0).all(axis=1)
    q[0, hidden] = unit(rng.normal(size=(int(hidden.sum()), 4)), 1)  # clutter
    index, score = match(search, 0.2, q, t, w)
    assert index[0, 0] == 3
    assert score[0, 0] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("search", ["flat", "coarse"])
@pytest.mark.parametrize("threshold", [None, 0.2])
def test_matchers_export_with_any_number_of_views(tmp_path: Path, search: Search, threshold: float | None) -> None:
    graph = onnx_from_network(matcher_graph(9, 4, threshold, search), tmp_path / "m.onnx")
    assert [spec.name for spec in graph.inputs] == ["descriptors", *MATCHED[search]]
    assert [spec.shape for spec in graph.outputs] == [("batch", CANDIDATES), ("batch", CANDIDATES)]
    assert graph.parity.worst < 1e-5
    kinds = [node.op_type for node in load_model(tmp_path / "m.onnx").graph.node]
    assert ("ThresholdedRelu" in kinds) == (threshold is not None)
    assert not {"Where", "LessOrEqual"} & set(kinds)


@pytest.mark.parametrize("search", ["flat", "coarse"])
@pytest.mark.parametrize("threshold", [None, 0.2])
def test_openvino_finds_what_onnx_runtime_finds(tmp_path: Path, search: Search, threshold: float | None) -> None:
    onnx_from_network(matcher_graph(9, 4, threshold, search), tmp_path / "m.onnx")
    rng = np.random.default_rng(0)
    t, w = random_bank(rng, 9, 4, 400)
    feed = {"descriptors": unit(t[[5, 80, 399]] + 0.1, 2).astype(np.float32), **matched_arrays(t, w, search)}
    ours, theirs = OrtSession(tmp_path / "m.onnx", threads=1), OpenVinoSession(tmp_path / "m.onnx", threads=1)
    one, other = ours.run(feed), theirs.run(feed)
    assert one["index"].tolist() == other["index"].tolist()
    np.testing.assert_allclose(np.asarray(one["score"]), np.asarray(other["score"]), atol=1e-5)


def test_a_shortlist_finds_what_all_views_find(tmp_path: Path) -> None:
    """Views that change little from one to the next, as rendered ones do; queries with noise and clutter."""
    rng = np.random.default_rng(0)
    angles = np.linspace(0, 2 * np.pi, 3000, endpoint=False)
    waves = np.stack([f(k * angles) for k in range(1, 9) for f in (np.sin, np.cos)])
    t = unit((rng.normal(size=(16 * 12, 16)) @ waves).T.reshape(3000, 16, 12), 2).astype(np.float32)
    w = np.full(3000, 1 / 16, np.float32)
    shown = rng.choice(3000, 40)
    q = t[shown] + rng.normal(scale=0.1, size=(40, 16, 12)).astype(np.float32)
    q[:, :5] = rng.normal(size=(40, 5, 12))
    q = unit(q, 2).astype(np.float32)
    found = {}
    for search in ("flat", "coarse"):
        onnx_from_network(matcher_graph(16, 12, 0.2, search), tmp_path / "m.onnx")
        session = OrtSession(tmp_path / "m.onnx", threads=1)
        out = session.run({"descriptors": q, **matched_arrays(t, w, search)})
        found[search] = out["index"][:, 0].tolist(), np.asarray(out["score"], np.float32)
        session.close()
    assert found["flat"][0] == found["coarse"][0]
    np.testing.assert_allclose(found["flat"][1], found["coarse"][1], atol=1e-5)
