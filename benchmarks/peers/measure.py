"""posekit against what a user would otherwise use, side by side in one process: retrieval, PnP, detector to pose.

    posekit demo --variants                                # once: what the pipelines run on
    python benchmarks/peers/measure.py                     # measures, into benchmarks/results/
    python benchmarks/peers/measure.py --table RESULT.json # the Markdown of it

Every contest is in the result as soon as it is done: stopped at any time, the same command goes on with the others. A
result of another commit, machine or number of rounds is begun anew.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from posekit.benchmarks.peers.contest import Contest, UnequalWorkError, held
from posekit.benchmarks.peers.result import Measured, PeersResult
from posekit.benchmarks.peers.table import markdown
from posekit.benchmarks.studies.command import Advance, run_study
from posekit.benchmarks.studies.machine import PACKAGES, RESULTS, commit_of, load_average, this_machine
from posekit.benchmarks.studies.precision_result import Run, read, write
from posekit.benchmarks.studies.round_robin import PAUSE_S
from posekit.runtime.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
MIN_ROUNDS = 30
PEER_PACKAGES = (*PACKAGES, "faiss-cpu", "poselib", "opencv-python-headless")
Open = Callable[[], AbstractContextManager[Contest[Any]]]


@dataclass(frozen=True)
class Request:
    """contests: names to hold, all of `known_contests` unless fewer are asked for.  out: the result file."""

    contests: tuple[str, ...]
    demo: Path
    rounds: int
    out: Path
    command: str
    pause_s: float = PAUSE_S


def known_contests(demo: Path, threads: int) -> dict[str, Open]:
    """Name -> how it is opened, in the order of the table."""
    from posekit.benchmarks.peers.pipelines import PATHS, opened_pipelines
    from posekit.benchmarks.peers.pnp import PEERS, pnp
    from posekit.benchmarks.peers.retrieval import SIZES, retrieval

    rows: dict[str, Open] = {f"pipeline, {path}": partial(opened_pipelines, demo, path, threads) for path in PATHS}
    rows |= {f"PnP, {method}": partial(pnp, method, threads) for method in PEERS}
    return rows | {size.name: partial(retrieval, size, threads) for size in SIZES}


def measure(
    request: Request, known: Mapping[str, Open], threads: int, advance: Advance
) -> tuple[PeersResult, list[UnequalWorkError]]:
    """Hold what is not in the result file yet. Raises OutputError, InputError, and what a contest cannot be opened for.

    A contest whose contenders disagree is left out and reported.
    """
    commit, load_before = commit_of(ROOT), load_average()
    result, failures = _begun(request, threads, commit), []
    for name in request.contests:
        if any(row.result.contest == name for row in result.contests):
            advance(f"{name}: measured before", 1, 1)
            continue
        try:
            with known[name]() as contest:
                found = held(contest, request.rounds, partial(advance, name), request.pause_s)
        except UnequalWorkError as error:
            failures.append(error)
            continue
        run = Run.ended(commit, request.command, load_before, load_average())
        rows = (*result.contests, Measured(run, found))
        order = list(known)
        result = replace(result, contests=tuple(sorted(rows, key=lambda row: order.index(row.result.contest))))
        write(request.out, result)
    return result, failures


def _begun(request: Request, threads: int, commit: str) -> PeersResult:
    """What the file has of this commit, machine and number of rounds; else nothing."""
    fresh = PeersResult(this_machine(PEER_PACKAGES), threads, request.rounds)
    if not request.out.exists():
        return fresh
    before = read(request.out, PeersResult)
    if replace(before, contests=()) != fresh:
        return fresh
    return replace(before, contests=tuple(row for row in before.contests if row.run.commit == commit))


def requested(arguments: Sequence[str] | None = None) -> Request | Path:
    """What the command line asks for; a path is a result to print. InputError for too few rounds or unknown contests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="WORD", help="contests whose name begins so")
    parser.add_argument("--rounds", type=int, default=MIN_ROUNDS, help="samples per contender")
    parser.add_argument("--demo", type=Path, default=ROOT / "posekit-demo", help="folder of `posekit demo --variants`")
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--table", type=Path, metavar="RESULT", help="print the Markdown of a result and stop")
    given = parser.parse_args(arguments)
    if given.table:
        return Path(given.table)
    if given.rounds < MIN_ROUNDS:
        raise InputError(
            "--rounds", got=given.rounds, expected=f"at least {MIN_ROUNDS}", remedy="Medians and intervals need them."
        )
    names = tuple(known_contests(given.demo, 1))
    chosen = tuple(name for name in names if given.only is None or name.startswith(tuple(given.only)))
    if not chosen:
        raise InputError("--only", got=given.only, expected=f"beginnings of {'; '.join(names)}", remedy="Name one.")
    out = given.out or ROOT / RESULTS / f"peers-{this_machine().slug}.json"
    command = shlex.join(["python", "benchmarks/peers/measure.py", *(sys.argv[1:] if arguments is None else arguments)])
    return Request(chosen, given.demo, given.rounds, out, command)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when everything is measured, 1 when contenders disagreed, 2 for invalid input, 130 when stopped."""

    def hold(wanted: Request, advance: Advance) -> list[UnequalWorkError]:
        threads = this_machine().cores
        _limit_threads(threads)
        return measure(wanted, known_contests(wanted.demo, threads), threads, advance)[1]

    return run_study(
        "benchmarks/peers/measure.py",
        "Contests",
        lambda: requested(arguments),
        lambda result: markdown(read(result, PeersResult)),
        hold,
    )


def _limit_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


if __name__ == "__main__":
    sys.exit(main())
