"""Retrieval from template banks: posekit's two searches against NumPy, PyTorch and FAISS flat search.

Two kinds of bank, at the sizes of a 2562- or 642-direction sphere with 36 turns each:
global: one descriptor per view, the score is the cosine.
local: a descriptor per place that the view shows, their cosines averaged (posekit.export.networks.matcher); the published
systems also drop cosines up to a threshold, which no inner-product index can do.

Templates are made up, but alike where rotations are: a smooth function of the rotation, as descriptors of rendered views are.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch
from scipy.spatial.transform import Rotation

from posekit.benchmarks.peers.contest import Contender, Contest
from posekit.export.bank_search import matched_arrays
from posekit.export.networks.matcher import FlatMatcher, matcher_graph
from posekit.export.onnx_from_network import onnx_from_network
from posekit.runtime.backends import BACKENDS
from posekit.runtime.bank import CANDIDATES, SHORTLIST, Search
from posekit.runtime.manifest import GraphEntry
from posekit.runtime.paths import bound_array

Array32 = npt.NDArray[np.float32]
Found = tuple[npt.NDArray[np.int64], Array32]  # index and score of the best views, (B, CANDIDATES), best first

NOISE = 0.3  # of a query, of what it shows
TURN_DEG = 3.0
HIDDEN = -0.35  # a place is seen where its wave is above: 60 of 100
WAVES = 2.0  # per entry of the rotation matrix: views 10 degrees apart have cosines of 0.9
EXACT = {"top1": 0.0, "top5": 0.0, "score": 1e-4}
NEARLY = {"top1": 0.0, "score": 1e-4}  # a shortlist may lack the others of the best five; the table says how often
HALF = {"short": 2e-3, "score": 2e-3}  # templates in float16: neighbours may change places with the best
OURS: dict[Search, tuple[str, dict[str, float]]] = {"flat": ("posekit", EXACT), "coarse": ("posekit, coarse", NEARLY)}
CHUNK = 8192


@dataclass(frozen=True, eq=False)
class Views:
    """templates: (L, C, N) unit length along C or zero, weights: (N,), as a flat bank keeps them (posekit.runtime.bank).
    queries: (B, L, C) show views that are known.  threshold: of cosines, or None.
    """

    templates: Array32
    weights: Array32
    queries: Array32
    threshold: float | None

    @cached_property
    def rows(self) -> Array32:
        """(N, L C): weighted templates, one row per view, as an index holds them."""
        weighted = self.templates * self.weights
        return np.ascontiguousarray(weighted.reshape(-1, weighted.shape[2]).T)

    @cached_property
    def query_rows(self) -> Array32:
        """(B, L C)."""
        return np.ascontiguousarray(self.queries.reshape(len(self.queries), -1))


@dataclass(frozen=True)
class Size:
    """places: L, 1 for global descriptors.  channels: C.  views: N.  queries: at once."""

    name: str
    places: int
    channels: int
    views: int
    queries: int
    threshold: float | None = None


# 36 places of 16 channels are the reference embedder's; 384 is the width of a ViT-S.
REFERENCE_LC = (36, 16)
GLOBAL_VIEWS, LOCAL_VIEWS = 2562 * 36, 642 * 36
SIZES = tuple(
    size
    for queries in (1, 8)
    for size in (
        Size(f"retrieval, global 576, {queries}", 1, 36 * 16, GLOBAL_VIEWS, queries),
        Size(f"retrieval, global 384, {queries}", 1, 384, GLOBAL_VIEWS, queries),
        Size(f"retrieval, local, {queries}", *REFERENCE_LC, LOCAL_VIEWS, queries),
        Size(f"retrieval, local, threshold, {queries}", *REFERENCE_LC, LOCAL_VIEWS, queries, 0.2),
    )
)


def made_views(size: Size, seed: int = 0) -> Views:
    """Each query is a view turned by some degrees, with noise on what is seen and clutter where nothing of it is."""
    rng = np.random.default_rng(seed)
    rotations = Rotation.random(size.views, rng=rng)
    shown = rng.choice(size.views, size.queries, replace=False)
    turned = Rotation.from_rotvec(rng.normal(scale=np.deg2rad(TURN_DEG), size=(size.queries, 3))) * rotations[shown]
    looks = _smooth(rng, (size.places, size.channels))
    seen_if = _smooth(rng, (size.places,)) if size.places > 1 else lambda R: np.ones((1, len(R)), np.float32)
    templates, seen = looks(rotations), seen_if(rotations) > HIDDEN
    seen[0] |= ~seen.any(axis=0)  # every view shows something
    templates /= np.linalg.norm(templates, axis=1, keepdims=True)
    templates *= seen[:, None]
    queries = looks(turned)
    queries += rng.standard_normal(queries.shape, dtype=np.float32) * np.float32(NOISE)
    clutter = rng.standard_normal(queries.shape, dtype=np.float32)
    queries = np.where(seen[:, None, shown], queries, clutter)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    weights = (1 / seen.sum(axis=0)).astype(np.float32)
    return Views(templates, weights, np.ascontiguousarray(queries.transpose(2, 0, 1)), size.threshold)


def _smooth(rng: np.random.Generator, shape: tuple[int, ...]) -> Callable[[Rotation], Array32]:
    """Random waves over rotations (random Fourier features): N rotations -> (*shape, N), of unit variance."""
    waves = rng.normal(scale=WAVES, size=(int(np.prod(shape)), 9)).astype(np.float32)
    phases = rng.uniform(0, 2 * np.pi, (len(waves), 1)).astype(np.float32)

    def values(rotations: Rotation) -> Array32:
        matrices = rotations.as_matrix().reshape(len(rotations), 9).astype(np.float32)
        return np.asarray(np.sqrt(2) * np.cos(waves @ matrices.T + phases), np.float32).reshape(*shape, len(rotations))

    return values


def exact(views: Views) -> Found:
    """In float64, part by part: what everybody must find."""
    scores = [
        _scores(views, slice(start, start + CHUNK), np.float64) for start in range(0, views.templates.shape[2], CHUNK)
    ]
    return best_of(np.concatenate(scores, axis=1))


def _scores(views: Views, part: slice | npt.NDArray[np.int64], dtype: Any) -> npt.NDArray[Any]:
    """(B, n) of some of the views."""
    cosine = views.queries.transpose(1, 0, 2).astype(dtype) @ views.templates[:, :, part].astype(dtype)
    if views.threshold is not None:
        cosine = np.where(cosine > views.threshold, cosine, 0)
    return np.asarray(cosine.sum(axis=0) * views.weights[part].astype(dtype))


def best_of(scores: npt.NDArray[Any]) -> Found:
    """(B, N) -> the best, best first."""
    some = np.argpartition(-scores, CANDIDATES, axis=1)[:, :CANDIDATES]
    order = np.take_along_axis(some, np.argsort(-np.take_along_axis(scores, some, 1), axis=1, kind="stable"), 1)
    return order.astype(np.int64), np.take_along_axis(scores, order, 1).astype(np.float32)


def deviations(expected: Found, found: Found) -> dict[str, float]:
    """top1, top5: share of queries with another best view, or other five.  score: of the best, largest difference.

    short: how much less than the best the found view really scores, at most; infinite if it is none of the best five.
    """
    (index, score), (index_, score_) = expected, found
    really = np.where(index == index_[:, :1], score, -np.inf).max(axis=1)
    others = [set(a.tolist()) != set(b.tolist()) for a, b in zip(index, index_, strict=True)]
    return {
        "top1": float((index[:, 0] != index_[:, 0]).mean()),
        "top5": float(np.mean(others)),
        "score": float(np.abs(score[:, 0] - score_[:, 0]).max()),
        "short": float((score[:, 0] - really).max()),
    }


@contextmanager
def retrieval(size: Size, threads: int) -> Iterator[Contest[Found]]:
    """The contest over one bank. Everything that is bound once, as a bank is, is bound before."""
    views = made_views(size)
    absent: dict[str, str] = {}
    with ExitStack() as stack:
        rows: list[Contender[Found]] = [
            *(stack.enter_context(posekit_matcher(views, threads, search)) for search in get_args(Search)),
            *_torch(views),
            *_numpy(views),
        ]
        try:
            rows += _faiss(views, threads)
        except ImportError as error:
            absent["FAISS flat"] = f"not installed: {error}"
        if views.threshold is not None:
            absent["FAISS flat alone"] = "an inner-product index cannot drop cosines below a threshold"
        kind = "one descriptor" if size.places == 1 else f"{size.places} masked descriptors"
        cut = f", cosines up to {size.threshold} dropped" if size.threshold is not None else ""
        yield Contest(
            name=size.name,
            work=f"{size.views} views, {kind} of {size.channels} channels{cut}; {size.queries} at once; best {CANDIDATES}",
            units=size.queries,
            unit="query",
            expected=exact(views),
            deviations=deviations,
            limits=EXACT,
            contenders=tuple(rows),
            besides="checks what it is fed, and its flat search multiplies an input, which ONNX Runtime packs anew at every run: "
            "with several queries a product with a constant is faster; the coarse search compares a sketch of every view, then "
            f"the best {SHORTLIST} in full",
            absent=absent,
        )


@contextmanager
def posekit_matcher(views: Views, threads: int, search: Search = "flat") -> Iterator[Contender[Found]]:
    """The matcher graph as a bundle has it, on the backend that `auto` gives it on a CPU, with a bank as it is bound."""
    places, channels, _ = views.templates.shape
    source = matcher_graph(places, channels, views.threshold, search)
    with tempfile.TemporaryDirectory(prefix="posekit-peers-") as folder:
        made = onnx_from_network(source, Path(folder) / "matcher.onnx")
        content = (Path(folder) / "matcher.onnx").read_bytes()
    entry = GraphEntry("matcher", {"fp32": ""}, made.inputs, made.outputs)
    session = BACKENDS["onnxruntime"].open(memoryview(content), entry, threads)
    matched = matched_arrays(views.templates.transpose(2, 0, 1), views.weights, search)
    bound = {name: bound_array(array) for name, array in matched.items()}

    def run() -> Found:
        out = session.run({"descriptors": views.queries, **bound})
        return np.asarray(out["index"], np.int64), np.asarray(out["score"], np.float32)

    try:
        name, limits = OURS[search]
        yield Contender(name, run, session.backend, limits, ours=True)
    finally:
        session.close()


def _numpy(views: Views) -> list[Contender[Found]]:
    def flat() -> Found:
        return best_of(views.query_rows @ views.rows.T)

    def thresholded() -> Found:
        return best_of(_scores(views, slice(None), np.float32))

    run = flat if views.threshold is None else thresholded
    return [Contender("NumPy", run, f"NumPy {np.__version__}")]


def _torch(views: Views) -> list[Contender[Found]]:
    rows, query_rows = torch.from_numpy(views.rows), torch.from_numpy(views.query_rows)
    matcher = FlatMatcher(views.threshold).eval()
    feeds = [torch.from_numpy(np.array(array)) for array in (views.queries, views.templates, views.weights)]

    def flat() -> Found:
        score, index = (query_rows @ rows.T).topk(CANDIDATES, dim=1)
        return index.numpy(), score.numpy()

    def thresholded() -> Found:
        with torch.inference_mode():
            index, score = matcher(*feeds)
        return index.numpy(), score.numpy()

    run = flat if views.threshold is None else thresholded
    return [Contender("PyTorch eager", run, f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads")]


def _faiss(views: Views, threads: int) -> list[Contender[Found]]:
    """Flat indices of weighted rows; with a threshold, a shortlist of one that is scored again. Raises ImportError."""
    import faiss

    faiss.omp_set_num_threads(threads)
    version = f"FAISS {faiss.__version__}, {faiss.omp_get_max_threads()} threads"
    plain = faiss.IndexFlatIP(views.rows.shape[1])
    plain.add(views.rows)
    if views.threshold is not None:
        name = f"FAISS flat, best {SHORTLIST} scored again in NumPy"
        return [Contender(name, _shortlisted(views, plain), f"{version}, IndexFlatIP", NEARLY)]
    half = faiss.IndexScalarQuantizer(views.rows.shape[1], faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    half.train(views.rows)
    half.add(views.rows)
    return [
        Contender("FAISS flat", _searched(views, plain), f"{version}, IndexFlatIP"),
        Contender("FAISS flat fp16", _searched(views, half), f"{version}, IndexScalarQuantizer QT_fp16", HALF),
    ]


def _searched(views: Views, index: Any) -> Callable[[], Found]:
    def run() -> Found:
        score, found = index.search(views.query_rows, CANDIDATES)
        return found, score

    return run


def _shortlisted(views: Views, index: Any) -> Callable[[], Found]:
    """The views that are alike without a threshold, then with it: approximate, and checked against the exact answer."""

    def run() -> Found:
        _, some = index.search(views.query_rows, min(SHORTLIST, index.ntotal))
        rows = []
        for query, candidates in zip(views.queries, some, strict=True):
            one = Views(views.templates, views.weights, query[None], views.threshold)
            best, score = best_of(_scores(one, candidates, np.float32))
            rows.append((candidates[best[0]], score[0]))
        return np.stack([row[0] for row in rows]), np.stack([row[1] for row in rows])

    return run
