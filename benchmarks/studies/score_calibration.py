"""Whether scores mean something: of the poses with a score near s, which share is right?

    python benchmarks/studies/score_calibration.py BUNDLE DATASET                # measures, into benchmarks/results/
    python benchmarks/studies/score_calibration.py --table RESULT.json           # the Markdown of it
    python benchmarks/studies/score_calibration.py --plot RESULT.json curve.png  # the reliability curve

Every path of the bundle gets the true visible box of every object of which a tenth is seen, so that each pose has its truth. A
pose is right within a tenth of the diameter by ADD, by ADD-S for a symmetric object. ECE, the expected calibration error, is
the mean distance between score and share over bins of equal width (Naeini et al., AAAI 2015; Guo et al., ICML 2017).
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from posekit.benchmarks.accuracy import ADD_SHARE_OF_DIAMETER
from posekit.benchmarks.markdown_table import markdown_table
from posekit.benchmarks.pose_error import pose_errors, scored_object
from posekit.benchmarks.studies.command import Advance, run_study, write_with_table
from posekit.benchmarks.studies.machine import RESULTS, Machine, commit_of, load_average, this_machine
from posekit.benchmarks.studies.precision_result import Run, read
from posekit.runtime.bundle import Bundle
from posekit.runtime.detection import Detection, PoseEstimate
from posekit.runtime.errors import InputError, PosekitError
from posekit.runtime.estimator import PoseEstimator
from posekit.runtime.sources import frames_from

ROOT = Path(__file__).resolve().parents[2]
BINS = 10
PACKAGES = ("posekit", "numpy", "onnxruntime", "opencv-python-headless")


@dataclass(frozen=True)
class Bin:
    """Poses with a score from `low` to below the next bin's. score: their mean.  right: share."""

    low: float
    poses: int
    score: float
    right: float


@dataclass(frozen=True)
class Curve:
    """One path. absent: objects without a pose.  two: poses with an alternative."""

    path: str
    poses: int
    absent: int
    two: int
    right: float
    ece: float
    bins: tuple[Bin, ...]


@dataclass(frozen=True)
class CalibrationResult:
    machine: Machine
    frames: int
    run: Run
    curves: tuple[Curve, ...]


@dataclass(frozen=True)
class Request:
    bundle: Path
    dataset: Path
    out: Path
    command: str


def curve_from(path: str, scores: Sequence[float], right: Sequence[bool], absent: int = 0, two: int = 0) -> Curve:
    """scores in 0..1 and whether each pose was right. InputError without a pose."""
    if not scores:
        raise InputError(
            f"calibration of {path}",
            got="no pose",
            expected="poses of true objects",
            remedy="Take frames of its objects.",
        )
    s, r = np.clip(np.asarray(scores, np.float64), 0, 1), np.asarray(right, np.float64)
    index = np.minimum((s * BINS).astype(int), BINS - 1)
    bins = tuple(
        Bin(i / BINS, int(inside.sum()), float(s[inside].mean()), float(r[inside].mean()))
        for i in range(BINS)
        if (inside := index == i).any()
    )
    ece = sum(one.poses * abs(one.score - one.right) for one in bins) / len(s)
    return Curve(path, len(s), absent, two, float(r.mean()), float(ece), bins)


def measured(bundle: Bundle, path: str, dataset: Path, advance: Advance) -> tuple[Curve, int]:
    """The curve of one path, and the number of frames."""
    scored = {entry.id: scored_object(bundle, entry) for entry in bundle.manifest.objects}
    scores: list[float] = []
    right: list[bool] = []
    absent = two = done = 0
    with PoseEstimator(bundle, path=path) as estimator:
        frames = frames_from(dataset)
        for frame in frames:
            known = [t for t in frame.truth or () if t.object_id in estimator.object_ids and t.counts]
            seen = [(t, t.visible_box_xyxy_px) for t in known if t.visible_box_xyxy_px is not None]
            boxes = [Detection(t.object_id, 1.0, box) for t, box in seen]
            for (true, _), found in zip(
                seen, estimator.outcomes(frame.image_rgb_u8, frame.intrinsics, boxes), strict=True
            ):
                if not isinstance(found, PoseEstimate):
                    absent += 1
                    continue
                thing = scored[true.object_id]
                errors = pose_errors(found.cam_from_obj, true.cam_from_obj, thing, frame.intrinsics)
                distance_m = errors.add_m if errors.adds_m is None else errors.adds_m
                scores.append(found.score)
                right.append(distance_m <= ADD_SHARE_OF_DIAMETER * thing.diameter_m)
                two += found.alternative is not None
            done += 1
            advance(path, done, frames.count or done)
    return curve_from(path, scores, right, absent, two), done


def measure(request: Request, advance: Advance) -> CalibrationResult:
    """Raises BundleError, SourceError, InputError and OutputError."""
    commit, load, curves, frames = commit_of(ROOT), load_average(), [], 0
    with Bundle(request.bundle) as bundle:
        for path in bundle.manifest.paths:
            curve, frames = measured(bundle, path, request.dataset, advance)
            curves.append(curve)
    run = Run.ended(commit, request.command, load, load_average())
    result = CalibrationResult(this_machine(PACKAGES), frames, run, tuple(curves))
    write_with_table(request.out, result, markdown(result))
    return result


def markdown(result: CalibrationResult) -> str:
    machine = result.machine
    versions = ", ".join(f"{name} {version}" for name, version in sorted(machine.versions.items()))
    heading = (
        f"{machine.cpu}; {machine.system}; {versions}; {result.run.date[:10]}, commit {result.run.commit}. {result.frames} "
        f"frames, true boxes, `{result.run.command}`. Right: ADD(-S) within {ADD_SHARE_OF_DIAMETER:g} diameters.\n\n"
    )
    lines = [
        heading,
        markdown_table(
            ("path", "poses", "absent", "with an alternative", "right", "ECE"),
            ((c.path, c.poses, c.absent, c.two, f"{c.right:.1%}", f"{c.ece:.3f}") for c in result.curves),
        ),
    ]
    for curve in result.curves:
        rows = ((f"from {b.low:.1f}", b.poses, f"{b.score:.2f}", f"{b.right:.0%}") for b in curve.bins)
        lines.append(f"\n{curve.path}:\n\n" + markdown_table(("score", "poses", "mean score", "right"), rows))
    return "".join(lines)


def plot(result: CalibrationResult, picture: Path) -> None:
    """The share of right poses over the score, one line a path, and how many poses each bin has."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 6.5), layout="constrained")
    shares, counts = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    shares.plot([0, 1], [0, 1], color="0.6", linestyle="--", label="a score that is the share")
    for curve in result.curves:
        scores, label = [b.score for b in curve.bins], f"{curve.path}: ECE {curve.ece:.3f}, {curve.poses} poses"
        shares.plot(scores, [b.right for b in curve.bins], marker="o", label=label)
        counts.plot(scores, [b.poses for b in curve.bins], marker="o")
    shares.set(ylabel="share of right poses", xlim=(0, 1), ylim=(0, 1))
    shares.legend(loc="upper left", fontsize="small")
    counts.set(xlabel="score", ylabel="poses")
    figure.savefig(picture, dpi=120)


def requested(arguments: Sequence[str] | None = None) -> Request | Path:
    """What the command line asks for; a path is a result to print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("dataset", type=Path, nargs="?", help="in BOP's layout, with ground truth")
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--table", type=Path, metavar="RESULT", help="print the Markdown of a result and stop")
    parser.add_argument("--plot", type=Path, nargs=2, metavar=("RESULT", "PICTURE"), help="draw a result, and print it")
    given = parser.parse_args(arguments)
    if given.plot:
        plot(read(given.plot[0], CalibrationResult), given.plot[1])
        return Path(given.plot[0])
    if given.table:
        return Path(given.table)
    if given.bundle is None or given.dataset is None:
        raise InputError("arguments", got="none", expected="BUNDLE DATASET", remedy="See --help for how to make both.")
    out = given.out or ROOT / RESULTS / f"score-calibration-{this_machine().slug}.json"
    words = ["python", "benchmarks/studies/score_calibration.py", *(sys.argv[1:] if arguments is None else arguments)]
    return Request(given.bundle, given.dataset, out, shlex.join(words))


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when everything is measured, 2 for invalid input, 130 when stopped."""

    def run(wanted: Request, advance: Advance) -> list[PosekitError]:
        measure(wanted, advance)
        return []

    return run_study(
        "benchmarks/studies/score_calibration.py",
        "Paths",
        lambda: requested(arguments),
        lambda path: markdown(read(path, CalibrationResult)),
        run,
    )


if __name__ == "__main__":
    sys.exit(main())
