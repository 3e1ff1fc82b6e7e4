"""Does an exported graph give the numbers of the network it came from? Compared output by output, with figures."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from posekit.export.example_feed import Arrays, example_feed
from posekit.export.systems import GraphSource
from posekit.runtime.errors import ExportError, ParityError
from posekit.runtime.manifest import Precision
from posekit.runtime.session import Session
from posekit.runtime.tensor import Feed

SIZES: tuple[dict[str, int], ...] = ({"batch": 1, "views": 150}, {"batch": 3, "views": 211})
ULP = 2.0**-23
# Outputs whose rows are in the order of another's.
RANKED_BY = {"index": "score", "boxes": "scores", "labels": "scores"}


@dataclass(frozen=True)
class Tolerance:
    """Of an output's RMS. floor: what arithmetic in another order is allowed anyway.  margin: how far beyond the measured
    effect of one rounding a whole graph of roundings may go.  ceiling: a network that needs more than this is too
    ill-conditioned to be verified at all.
    """

    floor: float
    margin: float
    ceiling: float

    def of(self, noise: float) -> float:
        return min(max(self.floor, self.margin * noise), self.ceiling)


# In float16 the one rounding that is measured is as large as those of the graph; in float32 the graph's order differs more.
TOLERANCES: dict[Precision, Tolerance] = {"fp32": Tolerance(1e-4, 20.0, 1e-2), "fp16": Tolerance(2e-3, 4.0, 1e-1)}


@dataclass(frozen=True)
class ParityFigure:
    """One output. max_rel and tolerance are relative to the RMS of the network's output; integers count mismatches.

    noise: effect of changing every weight and input by one rounding of its own type, on the same scale.
    """

    output: str
    max_abs: float
    max_rel: float
    noise: float
    tolerance: float


@dataclass(frozen=True)
class ParityReport:
    """against: the backend that ran the graph.  batches: the sizes of the batch axis that were run."""

    against: str
    batches: tuple[int, ...]
    figures: tuple[ParityFigure, ...]

    @property
    def worst(self) -> float:
        """The largest max_rel of all outputs."""
        return max((figure.max_rel for figure in self.figures), default=0.0)


def check_parity(source: GraphSource, session: Session, seed: int = 0, crops: Feed | None = None) -> ParityReport:
    """Run network and graph on the same feeds, at several batch sizes. ParityError where they differ.

    crops: a feed of real ones, as many as the sizes need; else plausible numbers, of which a trained network may say
    "nothing there" with values that are all rounding.
    """
    figures: dict[str, ParityFigure] = {}
    tolerance = TOLERANCES[source.precision]
    shaken_module = module_one_rounding_off(source.module, seed)
    for number, sizes in enumerate(SIZES):
        feed = example_feed(source.inputs, sizes, seed + number) if crops is None else _rows(crops, number)
        wanted = network_outputs(source, source.module, feed)
        shaken = network_outputs(source, shaken_module, feed_one_rounding_off(feed, seed))
        for figure in compared(wanted, session.run(feed), shaken, tolerance):
            before = figures.get(figure.output, figure)
            figures[figure.output] = max(before, figure, key=lambda f: f.max_rel)
    report = ParityReport(session.backend, tuple(s["batch"] for s in SIZES), tuple(figures.values()))
    _check(report)
    return report


def _rows(crops: Feed, number: int) -> Arrays:
    """The next rows of a feed, as many as that size of the batch."""
    start = sum(sizes["batch"] for sizes in SIZES[:number])
    return {name: np.asarray(array[start : start + SIZES[number]["batch"]]) for name, array in crops.items()}


def compared(
    wanted: Arrays,
    got: Mapping[str, npt.NDArray[np.generic]],
    shaken: Arrays,
    tolerance: Tolerance = TOLERANCES["fp32"],
) -> list[ParityFigure]:
    """One figure per output. ParityError for another shape, or a network that gives NaN."""
    figures = []
    for name, reference in wanted.items():
        result = np.asarray(got[name])
        if result.shape != reference.shape or not np.isfinite(reference).all():
            odd = f"{result.shape}" if result.shape != reference.shape else "NaN or infinity from the network itself"
            raise _differs(name, odd, f"finite numbers of shape {reference.shape}", "Check the network's weights.")
        ranks = RANKED_BY.get(name, "")
        certain = ~_ties(wanted[ranks], shaken[ranks], tolerance) if ranks in wanted else np.array(True)
        if np.issubdtype(reference.dtype, np.floating):
            figures.append(_float_figure(name, reference, result, shaken[name], certain, tolerance))
        else:
            wrong = int(((result != reference) & certain).sum())
            figures.append(ParityFigure(name, float(wrong), float(wrong), 0.0, 0.0))
    return figures


def network_outputs(source: GraphSource, module: torch.nn.Module, feed: Arrays) -> Arrays:
    """Run the network in torch: outputs by name. ExportError where its forward fails, which may be the user's own."""
    tensors_in = [torch.from_numpy(feed[spec.name].copy()) for spec in source.inputs]
    try:
        with torch.inference_mode():
            found = module(*tensors_in)
    except Exception as error:  # the user's forward may raise anything
        shapes = ", ".join(f"{spec.name} {tuple(t.shape)}" for spec, t in zip(source.inputs, tensors_in, strict=True))
        raise ExportError(
            f"the network of the {source.role} graph, run on {shapes}",
            got=f"{type(error).__name__}: {str(error)[:200]}",
            expected="an answer for any number of crops and any values",
            remedy="Correct its forward; norms that need several crops of one batch need running statistics instead.",
        ) from error
    tensors: Sequence[torch.Tensor] = (found,) if isinstance(found, torch.Tensor) else tuple(found)
    return {name: tensor.numpy() for name, tensor in zip(source.outputs, tensors, strict=True)}


def _float_figure(
    name: str,
    reference: npt.NDArray[Any],
    result: npt.NDArray[Any],
    shaken: npt.NDArray[Any],
    certain: npt.NDArray[np.bool_],
    tolerance: Tolerance,
) -> ParityFigure:
    """certain: over the leading axes, the rows to compare."""
    exact = reference.astype(np.float64)
    scale = float(np.sqrt(np.mean(exact**2))) if exact.size else 0.0
    max_abs = float(np.abs(result.astype(np.float64) - exact)[certain].max(initial=0.0))
    noise = float(np.abs(shaken.astype(np.float64) - exact)[certain].max(initial=0.0)) / scale if scale else 0.0
    max_rel = max_abs / scale if scale else (0.0 if max_abs == 0.0 else np.inf)
    return ParityFigure(name, max_abs, max_rel, noise, tolerance.of(noise))


def _ties(wanted: npt.NDArray[Any], shaken: npt.NDArray[Any], tolerance: Tolerance) -> npt.NDArray[np.bool_]:
    """Places of a ranking whose neighbour's score is within the noise; the last one's neighbour is not known."""
    score = wanted.astype(np.float64)
    scale = float(np.sqrt(np.mean(score**2))) or 1.0
    noise = float(np.abs(score - shaken).max(initial=0.0)) / scale
    close = np.abs(np.diff(score, axis=-1)) <= scale * max(tolerance.floor, tolerance.margin * noise)
    edge = np.ones((*score.shape[:-1], 1), dtype=bool)
    return np.asarray(np.concatenate([~edge, close], axis=-1) | np.concatenate([close, edge], axis=-1))


def module_one_rounding_off(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """A copy of which every weight is changed by -1, 0 or +1 in its type's last place."""
    shaken = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*shaken.parameters(), *shaken.buffers()):
            if tensor.is_floating_point():
                steps = torch.randint(-1, 2, tensor.shape, generator=generator)
                tensor.mul_((1 + torch.finfo(tensor.dtype).eps * steps).to(tensor.dtype))
    return shaken


def feed_one_rounding_off(feed: Arrays, seed: int) -> Arrays:
    """A copy of which every float is changed by -1, 0 or +1 in its last place."""
    rng = np.random.default_rng(seed)
    return {
        name: array * (1 + np.float32(ULP) * rng.integers(-1, 2, array.shape, dtype=np.int8)).astype(np.float32)
        if array.dtype == np.float32
        else array
        for name, array in feed.items()
    }


def _check(report: ParityReport) -> None:
    for figure in report.figures:
        if not figure.max_rel <= figure.tolerance:
            raise _differs(
                figure.output,
                f"a relative difference of {figure.max_rel:.2g} on {report.against}",
                f"at most {figure.tolerance:.2g} (one rounding changes it by {figure.noise:.2g})",
                "Look for an operator whose ONNX form differs from torch, or for values that explode.",
            )


def _differs(output: str, got: object, expected: object, remedy: str) -> ParityError:
    return ParityError(f"parity of output {output!r}", got=got, expected=expected, remedy=remedy)
