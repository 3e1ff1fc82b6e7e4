"""What a frozen interpreter starts with: makes it take a script, -m or -c as any Python does."""

import os
import runpy
import sys


def init() -> None:
    """Called by the frozen interpreter before `run`; nothing is to be done."""


def run(*names: str) -> None:
    """names: what the frozen interpreter calls its scripts; of no use here."""
    sys.path[:0] = os.environ["PYTHONPATH"].split(":")
    while sys.argv[1:2] and sys.argv[1] in ("-B", "-I", "-u"):  # flags that change nothing for what runs here
        del sys.argv[1]
    kind, *rest = sys.argv[1:]
    if kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})  # noqa: S102 what -c is
    elif kind == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [kind, *rest]
        runpy.run_path(kind, run_name="__main__")
