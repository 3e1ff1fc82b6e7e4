"""No function reads a byte beside the image that it is given: camera buffers and shared memory end where they end."""

from __future__ import annotations

import signal
import subprocess
import sys

import guarded_frames
import pytest


def run(reader: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, guarded_frames.__file__, reader]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("reader", guarded_frames.READERS)
def test_nothing_beside_the_frame_is_read(reader: str) -> None:
    done = run(reader)
    said = done.stdout.splitlines()
    assert done.returncode == 0, f"{said[-1:]}: signal or exit {done.returncode}\n{done.stderr}"
    assert said[-1] == "done"
    assert len(said) == 2 * len(guarded_frames.SIZES_WH_PX) + 1


@pytest.mark.parametrize("offender", guarded_frames.OFFENDERS)
def test_a_byte_beside_the_frame_ends_the_process(offender: str) -> None:
    assert run(offender).returncode == -signal.SIGSEGV
