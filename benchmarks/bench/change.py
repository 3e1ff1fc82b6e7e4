"""How much one figure changed from BASE to NEW, with a 95 % interval made of what differs from run to run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from posekit.benchmarks.bench import bootstrap
from posekit.benchmarks.bench.baseline import Evidence
from posekit.benchmarks.bench.bootstrap import Values
from posekit.benchmarks.bench.figures import OF_SAMPLES, Figure, pose_figure
from posekit.benchmarks.bench.gate_text import Kind
from posekit.benchmarks.bench.result import Run
from posekit.benchmarks.bench.statistics import NS_PER_MS
from posekit.runtime.errors import InputError

Method = Literal["runs", "passes", "poses", "none"]
Side = Sequence[Evidence]
METHODS: dict[Method, str] = {
    "runs": "bootstrap over runs",
    "passes": "bootstrap over blocks of passes, widened, as a single run each does not tell how much runs differ",
    "poses": "bootstrap over true objects, in pairs where both sides have a pose",
    "none": "no interval: a single value a side does not tell how much it varies",
}


@dataclass(frozen=True)
class Change:
    """base, new: the sides' own, geometric mean of their runs (mean, where a figure may be 0), in `unit`.

    change: NEW / BASE - 1 of kind "ratio", NEW - BASE of "change", NEW itself of "value"; low, high: its 95 % interval.
    base: None where NEW alone is asked about.
    """

    figure: str
    mode: str
    unit: str
    kind: Kind
    base: float | None
    new: float
    change: float
    low: float
    high: float
    method: Method
    more_is_better: bool


class _Drawn(NamedTuple):
    """A side's figure, and what it might have been as well: (D,) draws, or one where there is no telling."""

    middle: float
    draws: Values


def change_of(figure: Figure, mode: str, kind: Kind, base: Side, new: Side) -> Change:
    """base is not looked at for kind "value". Raises InputError where a side does not have the figure."""
    sides = (new,) if kind == "value" else (base, new)
    for side in sides:
        for evidence in side:
            _value(figure, mode, evidence)
    drawn, method = _drawn(figure, mode, sides)
    if kind == "ratio" and min(side.middle for side in drawn) <= 0:
        raise InputError(
            f"change of {figure.name} in %",
            got=" and ".join(f"{side.middle:g}" for side in drawn),
            expected="more than nothing on both sides",
            remedy="Ask for a change in the figure's own unit.",
        )
    middle, draws = (_between(kind, *values) for values in zip(*drawn, strict=True))
    low, high = bootstrap.interval(draws)
    old = drawn[0].middle if kind != "value" else None
    return Change(
        figure.name, mode, figure.unit, kind, old, drawn[-1].middle, float(middle), low, high, method,
        figure.more_is_better,
    )  # fmt: skip


def _between(kind: Kind, *sides: float | Values) -> Values:
    """sides: BASE and NEW, or NEW alone for "value"."""
    first, last = np.asarray(sides[0]), np.asarray(sides[-1])
    ways: dict[Kind, Callable[[], Values]] = {
        "ratio": lambda: last / first - 1,
        "change": lambda: last - first,
        "value": lambda: last,
    }
    return ways[kind]()


def _drawn(figure: Figure, mode: str, sides: Sequence[Side]) -> tuple[list[_Drawn], Method]:
    """Each side's, by the best that its evidence allows."""
    if figure.errors and all(run.result.truth_errors for side in sides for run in side):
        return _over_poses(figure, sides), "poses"
    if sum(map(len, sides)) > len(sides):
        return _over_runs(figure, mode, sides), "runs"
    if figure.stage and all(run.samples for side in sides for run in side):
        return [_over_passes(figure, mode, side[0], seed) for seed, side in enumerate(sides)], "passes"
    middles = [_value(figure, mode, side[0]) for side in sides]
    return [_Drawn(middle, np.array([middle])) for middle in middles], "none"


def _over_runs(figure: Figure, mode: str, sides: Sequence[Side]) -> list[_Drawn]:
    """In logarithms where all are positive: the noise of a latency is a share of it."""
    values = [np.array([_value(figure, mode, run) for run in side]) for side in sides]
    if min(side.min() for side in values) <= 0:
        draws = bootstrap.run_draws(values)
        return [_Drawn(float(side.mean()), drawn) for side, drawn in zip(values, draws, strict=True)]
    logs = [np.log(side) for side in values]
    draws = bootstrap.run_draws(logs)
    return [_Drawn(float(np.exp(side.mean())), np.exp(drawn)) for side, drawn in zip(logs, draws, strict=True)]


def _over_passes(figure: Figure, mode: str, run: Evidence, seed: int) -> _Drawn:
    """How much runs differ is not known from one: what its passes vary by is widened as for one degree of freedom."""
    assert run.samples is not None
    assert figure.stage is not None
    samples = np.asarray(run.samples[mode][figure.stage], np.float64) / NS_PER_MS
    draws = bootstrap.block_draws(samples, OF_SAMPLES[figure.of or ""], bootstrap.SEED + seed)
    middle = _value(figure, mode, run)
    wider = bootstrap.t_quantile(1) / bootstrap.Z
    return _Drawn(middle, middle * (draws / middle) ** wider if middle > 0 else draws)


def _over_poses(figure: Figure, sides: Sequence[Side]) -> list[_Drawn]:
    """True objects are drawn, for all runs of a side alike. Sides over the same objects: in pairs, of poses both found."""
    errors = [_errors(figure, side) for side in sides]
    paired = len({objects for side in sides for objects in _objects(side)}) == 1
    if paired:
        found = np.logical_and.reduce([np.isfinite(side).all(0) for side in errors])
        errors = [side[:, found] for side in errors]
    else:
        errors = [side[:, np.isfinite(side).all(0)] for side in errors]
    if min(side.shape[1] for side in errors) == 0:
        raise InputError(
            figure.name,
            got="no true object whose pose every run found",
            expected="one at least",
            remedy="Look at recall_add first.",
        )
    draws = []
    for seed, side in enumerate(errors):
        drawn = bootstrap.object_draws(side, bootstrap.SEED + (0 if paired else seed))
        draws.append(_Drawn(float(pose_figure(figure, side.ravel())), pose_figure(figure, drawn)))
    return draws


def _errors(figure: Figure, side: Side) -> Values:
    """(runs, true objects), NaN for a miss."""
    rows = [getattr(run.result.truth_errors, figure.errors or "") for run in side]
    if len({len(row) for row in rows}) != 1:
        raise InputError(
            f"runs of {side[0].name}",
            got=f"{sorted({len(row) for row in rows})} true objects",
            expected="the same frames in every run",
            remedy="Run the benchmark again, every run with the same frames.",
        )
    return np.array([[np.nan if error is None else error for error in row] for row in rows], np.float64)


def _objects(side: Side) -> list[tuple[int, ...]]:
    return [run.result.truth_errors.object_ids for run in side if run.result.truth_errors]


def run_of(mode: str, evidence: Evidence) -> Run:
    """Raises InputError for a mode that was not measured."""
    run = evidence.result.run(mode)
    if run is None:
        raise InputError(
            f"mode {mode!r} of {evidence.name}",
            got="not measured",
            expected=f"one of {', '.join(run.mode for run in evidence.result.runs)}",
            remedy="Measure both sides in that mode, or correct --gate.",
        )
    return run


def _value(figure: Figure, mode: str, evidence: Evidence) -> float:
    run = run_of(mode, evidence)
    value = figure.value(evidence.result, run)
    if value is None:
        raise InputError(
            f"{figure.name} of {evidence.name}, {mode}",
            got="not measured, or of too few samples",
            expected=f"a figure of this run, whose stages are {', '.join(stage.name for stage in run.stages)}",
            remedy="Correct --gate, measure longer, or (poses) measure on frames with ground truth.",
        )
    return value
