"""The command line of a study that goes on where it was stopped: what it prints, and how it ends."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from posekit.runtime.atomic import make_folder, write_whole
from posekit.runtime.errors import PosekitError
from posekit.runtime.records import json_from_record

Advance = Callable[[str, int, int], None]


class Asked(Protocol):
    """out: the result file."""

    @property
    def out(self) -> Path: ...


A = TypeVar("A", bound=Asked)


def write_with_table(out: Path, result: object, table: str) -> None:
    """The result file, and its Markdown beside it. Raises OutputError."""
    write_whole(out, (json_from_record(result) + "\n").encode())
    write_whole(out.with_suffix(".md"), table.encode())


def run_study(
    script: str,
    rows: str,
    requested: Callable[[], A | Path],
    table: Callable[[Path], str],
    measure: Callable[[A, Advance], Sequence[PosekitError]],
) -> int:
    """Print the table of a result that is asked for, else measure. script: its path.  rows: what a result has many of.

    0 when everything is measured, 1 when a row failed, 2 for invalid input, 130 when stopped.
    """
    from rich.console import Console
    from rich.progress import Progress

    errors = Console(stderr=True)
    try:
        wanted = requested()
        if isinstance(wanted, Path):
            print(table(wanted), end="")
            return 0
        make_folder(wanted.out.parent, "results")
        with Progress(console=errors) as bars:
            tasks = {}

            def advance(stage: str, done: int, total: int) -> None:
                if stage not in tasks:
                    tasks[stage] = bars.add_task(stage)
                bars.update(tasks[stage], completed=done, total=total)

            failures = measure(wanted, advance)
    except PosekitError as error:
        errors.print(f"{type(error).__name__}: {error}", style="red", markup=False)
        return 2
    except KeyboardInterrupt:
        errors.print(f"Stopped. {rows} that were done are in the result; the same command goes on.")
        return 130
    for failure in failures:
        errors.print(str(failure), style="red", markup=False)
    print(f"{wanted.out}\nnext: python {script} --table {shlex.quote(str(wanted.out))}")
    return 1 if failures else 0
