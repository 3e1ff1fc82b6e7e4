"""How near retrieval is to the floor that memory sets, at the sizes of full banks.

    python benchmarks/studies/retrieval.py                     # measures, into benchmarks/results/
    python benchmarks/studies/retrieval.py --table RESULT.json # the Markdown of it

The floor of a flat search is the time in which the machine reads the bank's templates once, measured in the same rounds on the
same array: the faster of two reductions by PyTorch, which read faster than NumPy's do in threads. The coarse search reads
less; it has no such floor.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import get_args

import torch

from posekit.benchmarks.markdown_table import markdown_table
from posekit.benchmarks.peers.retrieval import SIZES, Found, Size, Views, deviations, exact, made_views, posekit_matcher
from posekit.benchmarks.studies.command import Advance, run_study, write_with_table
from posekit.benchmarks.studies.machine import RESULTS, Machine, commit_of, load_average, this_machine
from posekit.benchmarks.studies.precision_result import Run, read
from posekit.benchmarks.studies.round_robin import PAUSE_S, interleaved
from posekit.runtime.bank import Search
from posekit.runtime.errors import InputError, PosekitError

ROOT = Path(__file__).resolve().parents[2]
MIN_ROUNDS = 30
QUERIES = 256  # whose best views the two searches must agree on
READERS: dict[str, Callable[[torch.Tensor], object]] = {"largest": torch.max, "dot": lambda read: read @ read}


@dataclass(frozen=True)
class Reached:
    """One bank, one query. Milliseconds, medians.  equal_top1: share of QUERIES with the same best view in both searches."""

    bank: str
    views: int
    megabytes: float
    floor_ms: float
    flat_ms: float
    coarse_ms: float
    equal_top1: float

    @property
    def share_of_floor(self) -> float:
        return self.floor_ms / self.flat_ms

    @property
    def gigabytes_per_s(self) -> float:
        return self.megabytes / self.floor_ms


@dataclass(frozen=True)
class RetrievalResult:
    machine: Machine
    threads: int
    rounds: int
    run: Run
    reached: tuple[Reached, ...]


@dataclass(frozen=True)
class Request:
    sizes: tuple[Size, ...]
    rounds: int
    out: Path
    command: str
    pause_s: float = PAUSE_S


def measured(size: Size, threads: int, rounds: int, pause_s: float, advance: Callable[[int, int], None]) -> Reached:
    """Both searches and the readers, turn by turn."""
    torch.set_num_threads(threads)
    views = made_views(replace(size, queries=QUERIES))
    one = replace(views, queries=views.queries[:1])
    with ExitStack() as stack:
        whole = torch.from_numpy(views.templates.reshape(-1))
        contenders: dict[str, Callable[[], object]] = {name: partial(read, whole) for name, read in READERS.items()}
        for search in get_args(Search):
            contenders[search] = stack.enter_context(posekit_matcher(one, threads, search)).run
        samples = interleaved(contenders, rounds, advance, pause_s)
    median_ms = {name: statistics.median(values) for name, values in samples.items()}
    return Reached(
        size.name,
        size.views,
        views.templates.nbytes / 1e6,
        min(median_ms[name] for name in READERS),
        median_ms["flat"],
        median_ms["coarse"],
        _agreement(views, threads),
    )


def _agreement(views: Views, threads: int) -> float:
    right: Found = exact(views)
    with posekit_matcher(views, threads, "coarse") as coarse:
        return 1 - deviations(right, coarse.run())["top1"]


def measure(request: Request, threads: int, advance: Advance) -> RetrievalResult:
    """Raises OutputError."""
    commit, load, rows = commit_of(ROOT), load_average(), []
    for size in request.sizes:

        def step(done: int, total: int, name: str = size.name) -> None:
            advance(name, done, total)

        rows.append(measured(size, threads, request.rounds, request.pause_s, step))
    run = Run.ended(commit, request.command, load, load_average())
    result = RetrievalResult(this_machine(), threads, request.rounds, run, tuple(rows))
    write_with_table(request.out, result, markdown(result))
    return result


def markdown(result: RetrievalResult) -> str:
    machine = result.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    heading = (
        f"{machine.cpu}, {machine.cores} cores, {machine.memory_gb:g} GB; {machine.system}; {versions}; {result.run.date[:10]}, "
        f"commit {result.run.commit}. One query, {result.threads} threads, medians of {result.rounds} interleaved rounds, "
        f"`{result.run.command}`.\n"
    )
    busy = f"\n**Busy machine, do not quote: begun at load {result.run.load_before:g}.**\n" if result.run.busy else ""
    columns = (
        "bank", "views", "MB", "read at GB/s", "floor ms", "flat ms", "of the floor", "coarse ms", "faster", "equal top-1",
    )  # fmt: skip
    return heading + busy + "\n" + markdown_table(columns, map(_row, result.reached))


def _row(r: Reached) -> Sequence[object]:
    return (
        r.bank, r.views, f"{r.megabytes:.0f}", f"{r.gigabytes_per_s:.1f}", f"{r.floor_ms:.2f}", f"{r.flat_ms:.2f}",
        f"{r.share_of_floor:.0%}", f"{r.coarse_ms:.2f}", f"{r.flat_ms / r.coarse_ms:.1f} x", f"{r.equal_top1:.1%} of {QUERIES}",
    )  # fmt: skip


def requested(arguments: Sequence[str] | None = None) -> Request | Path:
    """What the command line asks for; a path is a result to print. InputError for too few rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=MIN_ROUNDS, help="samples per contender")
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--table", type=Path, metavar="RESULT", help="print the Markdown of a result and stop")
    given = parser.parse_args(arguments)
    if given.table:
        return Path(given.table)
    if given.rounds < MIN_ROUNDS:
        raise InputError("--rounds", got=given.rounds, expected=f"at least {MIN_ROUNDS}", remedy="Medians need them.")
    out = given.out or ROOT / RESULTS / f"retrieval-{this_machine().slug}.json"
    command = shlex.join(
        ["python", "benchmarks/studies/retrieval.py", *(sys.argv[1:] if arguments is None else arguments)]
    )
    return Request(tuple(size for size in SIZES if size.queries == 1), given.rounds, out, command)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when everything is measured, 2 for invalid input, 130 when stopped."""

    def run(wanted: Request, advance: Advance) -> list[PosekitError]:
        measure(wanted, this_machine().cores, advance)
        return []

    return run_study(
        "benchmarks/studies/retrieval.py",
        "Banks",
        lambda: requested(arguments),
        lambda path: markdown(read(path, RetrievalResult)),
        run,
    )


if __name__ == "__main__":
    sys.exit(main())
