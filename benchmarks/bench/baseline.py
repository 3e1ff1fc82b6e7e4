"""One side of a comparison: an evidence folder, a folder of evidence folders, or a baseline: several runs in one small file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from posekit.benchmarks.bench.result import FORMAT as RESULT_FORMAT
from posekit.benchmarks.bench.result import RESULT, BenchResult, Samples, read_result, read_samples
from posekit.runtime.atomic import write_whole
from posekit.runtime.errors import InputError
from posekit.runtime.records import RecordProblem, plain_from, record_from

FORMAT = 1
MIN_RUNS = 2  # of a baseline: one run tells nothing of the noise that new runs are judged by


@dataclass(frozen=True)
class Evidence:
    """One run. samples, folder: None of a baseline, which keeps figures alone."""

    name: str
    result: BenchResult
    samples: Samples | None = None
    folder: Path | None = None


@dataclass(frozen=True)
class _Baseline:
    baseline: int
    runs: tuple[BenchResult, ...]


def side_from(path: Path) -> tuple[Evidence, ...]:
    """Every run there, in order of name. Raises InputError where there is none, or one is damaged or of another format."""
    if path.is_file():
        return _from_file(path)
    folders = [path] if (path / RESULT).is_file() else sorted(file.parent for file in path.glob(f"*/{RESULT}"))
    if not folders:
        raise InputError(
            f"evidence {path}",
            got="no result.json in it or in its folders" if path.is_dir() else "nothing there",
            expected="a folder of `posekit bench`, a folder of such folders, or a baseline file",
            remedy="Run posekit bench first.",
        )
    return tuple(_from_folder(folder.resolve()) for folder in folders)


def write_baseline(path: Path, runs: Sequence[Evidence]) -> None:
    """One file to commit, a few kB per run. Raises InputError for fewer than MIN_RUNS, OutputError.

    Equal runs keep what belongs to their poses once.
    """
    if len(runs) < MIN_RUNS:
        raise InputError(
            f"baseline {path}",
            got=f"{len(runs)} run",
            expected=f"{MIN_RUNS} or more: how much runs differ is what new runs are judged by; five are better",
            remedy="Run posekit bench several times, into folders side by side.",
        )
    results = [runs[0].result]
    for run in runs[1:]:
        same = run.result.truth_errors == results[0].truth_errors
        results.append(replace(run.result, truth_errors=None) if same else run.result)
    plain = plain_from(_Baseline(FORMAT, tuple(results)))
    write_whole(path, (json.dumps(plain, sort_keys=True, separators=(",", ":")) + "\n").encode())


def _from_folder(folder: Path) -> Evidence:
    return Evidence(folder.name, read_result(folder), read_samples(folder), folder)


def _from_file(path: Path) -> tuple[Evidence, ...]:
    """A baseline, or a result.json named itself."""
    if path.name == RESULT:
        return (_from_folder(path.resolve().parent),)
    try:
        plain = json.loads(path.read_bytes())
        if not isinstance(plain, Mapping) or plain.get("baseline") != FORMAT:
            got = plain.get("baseline") if isinstance(plain, Mapping) else plain
            raise RecordProblem("baseline", repr(got)[:60], str(FORMAT))
        results = record_from(_Baseline, plain).runs
        if len(results) < MIN_RUNS:
            raise RecordProblem("runs", len(results), f"{MIN_RUNS} or more")
        for result in results:
            if result.format != RESULT_FORMAT:
                raise RecordProblem("format of a run", result.format, str(RESULT_FORMAT))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"baseline {path}",
            got=str(error)[:300],
            expected=f"a file of `posekit baseline`, format {FORMAT}",
            remedy="Make it again with this version of posekit.",
        ) from error
    errors = results[0].truth_errors
    return tuple(
        Evidence(f"{path.name}#{k}", replace(result, truth_errors=result.truth_errors or errors))
        for k, result in enumerate(results, 1)
    )
