"""The folder of an export goes with it, and with the next one where it was killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from posekit.export.scratch import PREFIX, scratch_beside
from posekit.runtime.errors import OutputError

HOLD = """
import sys, time
from pathlib import Path
from posekit.export.scratch import scratch_beside
with scratch_beside(Path(sys.argv[1])) as folder:
    (folder / "graph.onnx").write_bytes(bytes(1000))
    print(folder, flush=True)
    time.sleep(60)
"""


def test_nothing_is_left_however_it_ends(tmp_path: Path) -> None:
    def fail() -> None:
        with scratch_beside(tmp_path / "x.posekit") as folder:
            (folder / "file").write_text("content")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert not list(tmp_path.iterdir())


def test_what_a_killed_export_left_is_removed_and_what_a_live_one_needs_is_not(tmp_path: Path) -> None:
    out = tmp_path / "x.posekit"
    processes = [
        subprocess.Popen([sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    folders = [Path(process.stdout.readline().strip()) for process in processes if process.stdout]
    try:
        processes[0].send_signal(signal.SIGKILL)
        processes[0].wait()
        assert (folders[0] / "graph.onnx").exists()
        with scratch_beside(out) as own:
            assert {p for p in tmp_path.iterdir() if p.name.startswith(PREFIX)} == {folders[1], own}
            assert (folders[1] / "graph.onnx").exists()
    finally:
        for process in processes:
            process.kill()
            process.wait()
            assert process.stdout
            process.stdout.close()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="absent"), scratch_beside(tmp_path / "absent" / "x.posekit"):
        pass
