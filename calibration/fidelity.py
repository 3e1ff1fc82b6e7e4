"""What quantisation does to a graph's numbers: source and INT8 graph on the same feeds, output by output.

Cosines say whether the arithmetic was kept; whether the pose was, verification says in degrees and millimetres.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from posekit.calibration.sessions import reference_session
from posekit.runtime.errors import PrecisionError
from posekit.runtime.tensor import Feed

if TYPE_CHECKING:
    from onnx import ModelProto

MIN_COSINE = 0.9  # of a crop in the median: below that scales are wrong, not coarse


@dataclass(frozen=True)
class OutputFidelity:
    """One output over all rows. cosine_least, cosine_p50: between the rows of source and INT8 graph.

    relative_rms: of the difference, to the RMS of the source.   agreement: share of equal values, for integers.
    """

    output: str
    rows: int
    cosine_least: float | None = None
    cosine_p50: float | None = None
    relative_rms: float | None = None
    agreement: float | None = None


def fidelity_of(source: ModelProto, quantised: ModelProto, feeds: Iterable[Feed]) -> tuple[OutputFidelity, ...]:
    """Run both on ONNX Runtime; one figure per output. PrecisionError for values that are not finite."""
    sessions = [reference_session(source), reference_session(quantised)]
    names = [output.name for output in source.graph.output]
    rows: dict[str, list[_Row]] = defaultdict(list)
    for feed in feeds:
        wanted, got = (session.run(names, dict(feed)) for session in sessions)
        for name, a, b in zip(names, wanted, got, strict=True):
            rows[name] += [_row(name, x, y) for x, y in zip(a, b, strict=True)]
    return tuple(_figure(name, rows[name]) for name in names)


def check_fidelity(figures: Iterable[OutputFidelity]) -> None:
    """PrecisionError for an output that has little to do with its source: a scale is wrong."""
    for figure in figures:
        if figure.cosine_p50 is not None and not figure.cosine_p50 >= MIN_COSINE:
            raise PrecisionError(
                f"output {figure.output!r} of the int8 graph",
                got=f"a median cosine of {figure.cosine_p50:.4f} with its source over {figure.rows} crops",
                expected=f"at least {MIN_COSINE}",
                remedy="Calibrate on other crops or by another method, or leave the layers out that cost most.",
            )


@dataclass(frozen=True)
class _Row:
    cosine: float | None
    squared_error: float
    squared: float
    equal: float


def _row(name: str, wanted: npt.NDArray[Any], got: npt.NDArray[Any]) -> _Row:
    a, b = wanted.astype(np.float64).ravel(), got.astype(np.float64).ravel()
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise PrecisionError(
            f"output {name!r}", got="NaN or infinity", expected="finite values", remedy="Check the source graph first."
        )
    if wanted.dtype.kind in "iub":
        return _Row(None, 0.0, 0.0, float(np.mean(a == b)))
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    cosine = float(a @ b) / lengths if lengths else float(np.array_equal(a, b))
    return _Row(cosine, float(((a - b) ** 2).mean()), float((a**2).mean()), float(np.mean(a == b)))


def _figure(name: str, rows: list[_Row]) -> OutputFidelity:
    cosines = [row.cosine for row in rows if row.cosine is not None]
    if not cosines:
        return OutputFidelity(name, len(rows), agreement=float(np.mean([row.equal for row in rows])))
    squared = sum(row.squared for row in rows)
    relative = float(np.sqrt(sum(row.squared_error for row in rows) / squared)) if squared else 0.0
    return OutputFidelity(name, len(rows), min(cosines), float(np.median(cosines)), relative)
