"""Activation ranges: how far the values of each tensor reach on real feeds, by one of three methods.

The first pass finds extremes inside the graph, by ONNX Runtime's own calibrator. Percentile and entropy take a second
pass that counts values into histograms over the range already known, so nothing grows, nothing is kept, and the order
of the feeds does not matter. (ONNX Runtime's histogram calibrators keep every tensor of every feed, and its
CalibMaxIntermediateOutputs drops data instead of merging it: 1.31.1.)
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from posekit.calibration.nodes import OP_TYPES, weighted_nodes, with_node_names
from posekit.calibration.sessions import reference_session
from posekit.runtime.errors import CalibrationError, PrecisionError
from posekit.runtime.tensor import Feed

if TYPE_CHECKING:
    from onnx import ModelProto

Counts = npt.NDArray[np.int64]
Histogram = tuple[Counts, npt.NDArray[np.float32]]  # (2N,) values per bin, (2N + 1,) edges; symmetric about zero

BINS = 2048  # over -max .. max; what TensorRT's own calibrators use
ENTROPY_LEVELS = 128  # magnitudes of int8
ENTROPY_CLIPPED = 1e-3  # of all values at most
PERCENTILE = 99.99


@dataclass(frozen=True)
class TensorRange:
    """One activation. amax: the range is -amax .. amax.   low, high: the extremes seen.

    clipped: share of the values seen whose magnitude is beyond amax.
    """

    amax: float
    low: float
    high: float
    clipped: float


@dataclass(frozen=True)
class RangeTable:
    """method: a row of METHODS.   batches: fed.   ranges: by tensor, sorted by name."""

    method: str
    batches: int
    ranges: dict[str, TensorRange]

    @property
    def worst_clipped(self) -> tuple[str, float]:
        """The tensor that loses most, and the share of its values."""
        return max(((name, row.clipped) for name, row in self.ranges.items()), key=lambda pair: pair[1])


@dataclass(frozen=True)
class Method:
    """amax: histogram, extremes -> the range; None takes the extremes themselves.   options: for the table's key."""

    amax: Callable[[Histogram, float, float], float] | None
    options: dict[str, float]


def calibrate(model: ModelProto | Path, feeds: Callable[[], Iterable[Feed]], method: str = "minmax") -> RangeTable:
    """Ranges of all tensors that enter a weighted node. Equal graph and feeds give equal ranges, in any order.

    model: float32 or mixed float16.   feeds: called once per pass.  Memory holds one feed and its activations.
    Raises CalibrationError for no data or values that are not finite, PrecisionError for a graph without weights or an
    unknown method.
    """
    row = method_named(method)
    named = with_node_names(_loaded(model))
    tensors = list(dict.fromkeys(node.activation for node in weighted_nodes(named)))
    if not tensors:
        raise PrecisionError(
            "graph to calibrate",
            got="no node with constant weights",
            expected=f"at least one {', '.join(OP_TYPES)}",
            remedy="Matchers and geometry have nothing to quantise: keep them as they are.",
        )
    extremes, batches = _extremes(named, tensors, feeds())
    histograms = {} if row.amax is None else _histograms(named, extremes, feeds())
    ranges = {}
    for name, (low, high) in sorted(extremes.items()):
        reach = max(-low, high)
        amax = reach if row.amax is None or not reach else row.amax(histograms[name], low, high)
        ranges[name] = TensorRange(amax, low, high, _clipped(histograms[name], amax) if name in histograms else 0.0)
    return RangeTable(method, batches, ranges)


def method_named(name: str) -> Method:
    """PrecisionError lists the known ones."""
    if name not in METHODS:
        raise PrecisionError(
            "calibration method", got=repr(name), expected=f"one of {', '.join(METHODS)}", remedy="Name one."
        )
    return METHODS[name]


def _loaded(model: ModelProto | Path) -> ModelProto:
    import onnx

    return onnx.load(str(model)) if isinstance(model, Path) else model


# First pass.


def _extremes(
    model: ModelProto, tensors: Sequence[str], feeds: Iterable[Feed]
) -> tuple[dict[str, tuple[float, float]], int]:
    """Least and greatest value of each tensor, and the number of feeds."""
    lows, highs = np.full(len(tensors), np.inf), np.full(len(tensors), -np.inf)
    batches = 0
    with _minmax_session(model, tensors) as session:
        outputs = [f"{name}_{reduce}" for reduce in ("ReduceMin", "ReduceMax") for name in tensors]
        for feed in feeds:
            found = np.array([np.asarray(value, np.float64).ravel()[0] for value in session.run(outputs, dict(feed))])
            _check_finite(tensors, found.reshape(2, -1), batches)
            lows = np.minimum(lows, found[: len(tensors)])
            highs = np.maximum(highs, found[len(tensors) :])
            batches += 1
    if not batches:
        raise CalibrationError(
            "calibration data", got="no feed", expected="crops", remedy="Check that the boxes name these objects."
        )
    return {name: (float(lows[i]), float(highs[i])) for i, name in enumerate(tensors)}, batches


def _check_finite(tensors: Sequence[str], extremes: npt.NDArray[np.float64], batch: int) -> None:
    for name, column in zip(tensors, extremes.T, strict=True):
        if not np.isfinite(column).all():
            raise CalibrationError(
                f"tensor {name!r}",
                got=f"{column.tolist()} in batch {batch}",
                expected="finite values",
                remedy="It overflows: keep the layers before it in float32, or check the weights.",
            )


@contextmanager
def _minmax_session(model: ModelProto, tensors: Sequence[str]) -> Iterator[Any]:
    """ONNX Runtime's calibrator puts ReduceMin and ReduceMax behind the tensors; these are what is asked for."""
    import onnx
    from onnxruntime.quantization.calibrate import MinMaxCalibrater

    class OfThese(MinMaxCalibrater):  # type: ignore[misc]
        def select_tensors_to_calibrate(self, model: ModelProto) -> tuple[list[str], None]:
            return list(tensors), None

    with tempfile.TemporaryDirectory(prefix="posekit-ranges-") as folder:
        path = Path(folder) / "graph.onnx"
        onnx.save(model, str(path))
        augmented = Path(folder) / "augmented.onnx"
        calibrator = OfThese(path, augmented_model_path=str(augmented))
        calibrator.augment_graph()
        yield reference_session(augmented, optimised=False)


# Second pass.


def _histograms(
    model: ModelProto, extremes: dict[str, tuple[float, float]], feeds: Iterable[Feed]
) -> dict[str, Histogram]:
    """One per tensor that is not zero throughout, over -reach .. reach."""
    reaches = {name: max(-low, high) for name, (low, high) in extremes.items() if low or high}
    counts = {name: np.zeros(BINS, np.int64) for name in reaches}
    if not reaches:
        return {}
    session = _tapped_session(model, list(reaches))
    for feed in feeds:
        for name, values in zip(reaches, session.run(list(reaches), dict(feed)), strict=True):
            counts[name] += np.histogram(values.astype(np.float32), BINS, (-reaches[name], reaches[name]))[0]
    return {
        name: (counts[name], np.linspace(-reaches[name], reaches[name], BINS + 1, dtype=np.float32)) for name in reaches
    }


def _tapped_session(model: ModelProto, tensors: Sequence[str]) -> Any:
    """A session whose outputs are the tensors themselves, by the same arithmetic as the first pass."""
    import onnx

    tapped = type(model)()
    tapped.CopyFrom(model)
    del tapped.graph.output[:]
    tapped.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
    return reference_session(tapped, optimised=False)


def _clipped(histogram: Histogram, amax: float) -> float:
    """Share of values in bins that lie beyond amax with their middle."""
    counts, edges = histogram
    middles = (edges[:-1] + edges[1:]) / 2
    return float(counts[np.abs(middles) > amax].sum() / counts.sum())


def _percentile_amax(histogram: Histogram, low: float, high: float) -> float:
    """The least bin edge within which PERCENTILE of all magnitudes lie: never clips more than the rest."""
    counts, edges = histogram
    half = BINS // 2
    magnitudes = counts[half:] + counts[:half][::-1]
    enough = np.cumsum(magnitudes) >= PERCENTILE / 100 * magnitudes.sum()
    return float(edges[half + 1 + int(np.argmax(enough))])


def _entropy_amax(histogram: Histogram, low: float, high: float) -> float:
    """The range whose quantised distribution of magnitudes diverges least from the true one (Migacz, GTC 2017).

    What lies beyond a range counts at its end, in the last bin that has values. Zeros are left out: a ReLU gives so many that nothing else would count, and
    every range says them exactly. Ranges that clip more than ENTROPY_CLIPPED are not looked at: where many values are
    equal (the grey around a letterboxed image) they are the least divergent, and cut the rest off.
    """
    counts, edges = histogram
    half = BINS // 2
    magnitudes = (counts[half:] + counts[:half][::-1]).astype(np.float64)
    magnitudes[0] = magnitudes[1]
    if not magnitudes.any():
        return float(edges[-1])
    beyond = magnitudes.sum() - np.cumsum(magnitudes)
    sizes = [size for size in range(ENTROPY_LEVELS, half + 1) if beyond[size - 1] <= ENTROPY_CLIPPED * counts.sum()]
    divergences = [_divergence(magnitudes[:size], beyond[size - 1]) for size in sizes]
    return float(edges[half + sizes[int(np.argmin(divergences))]])


def _divergence(inside: npt.NDArray[np.float64], beyond: float) -> float:
    """Kullback-Leibler, of the magnitudes within a range, the rest added to the last bin, from the same in so many levels
    as int8 has, each spread over those of its bins that are not empty.
    """
    level = np.arange(len(inside)) * ENTROPY_LEVELS // len(inside)
    filled = inside > 0
    sums = np.bincount(level, inside, ENTROPY_LEVELS)
    bins = np.bincount(level, filled, ENTROPY_LEVELS)
    if not filled.any():
        return np.inf
    p, q = inside[filled], (sums[level] / np.maximum(bins[level], 1))[filled]
    p[-1] += beyond
    p, q = p / p.sum(), q / q.sum()
    return float(np.sum(p * np.log(p / q)))


METHODS: dict[str, Method] = {
    "minmax": Method(None, {}),
    "percentile": Method(_percentile_amax, {"percentile": PERCENTILE, "bins": BINS}),
    "entropy": Method(_entropy_amax, {"levels": ENTROPY_LEVELS, "bins": BINS, "clipped": ENTROPY_CLIPPED}),
}
