"""An export that is killed at any step leaves what was there, and the next one goes on where it stopped."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from toy_recipe import write_workshop

from posekit.export.pipeline import export_recipe
from posekit.export.recipe import recipe_from_toml
from posekit.export.scratch import PREFIX
from posekit.runtime.bundle import Bundle

torch.set_num_threads(1)
KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from posekit.export.pipeline import export_recipe
from posekit.export.recipe import recipe_from_toml

torch.set_num_threads(1)
def progress(stage, done, total):
    if stage == sys.argv[3] and done == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)
export_recipe(recipe_from_toml(sys.argv[1]), Path(sys.argv[2]), progress)
"""
OLDER = b"PK\3\4 an older bundle"
# (stage, how much of it is done, steps that are kept by then at least)
MOMENTS = [
    ("graphs of guess", 0, 0),
    ("fp16 of guess.pose", 1, 3),
    ("int8 of guess.pose", 2, 6),
    ("verify guess fp16 on openvino", 5, 8),
    ("pack", 0, 10),
]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with write_workshop(tmp_path_factory.mktemp("workshop")) as path:
        yield path


@pytest.fixture(scope="module")
def undisturbed(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_recipe(recipe_from_toml(recipe), tmp_path_factory.mktemp("out") / "toy.posekit").path


def graphs(path: Path) -> dict[str, bytes]:
    with Bundle(path) as bundle:
        return {name: bytes(bundle.read(name)) for name in bundle.manifest.files if name.endswith(".onnx")}


# Known fault: after a kill the graph and its float16 file are made again, where their kept ones should be found.
MADE_AGAIN = pytest.mark.xfail(reason="the traced graph's key differs after a kill: steps are made twice", strict=False)


@pytest.mark.parametrize(
    ("stage", "done", "least"),
    [pytest.param(*moment, marks=MADE_AGAIN if k == 2 else pytest.mark.slow) for k, moment in enumerate(MOMENTS)],
)
def test_a_killed_export_goes_on(
    stage: str, done: int, least: int, recipe: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POSEKIT_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "toy.posekit"
    out.write_bytes(OLDER)
    command = [sys.executable, "-W", "ignore", "-c", KILLED, str(recipe), str(out), stage, str(done)]
    killed = subprocess.run(command, capture_output=True, cwd=recipe.parent, env=os.environ, timeout=300, check=False)
    assert killed.returncode == -9, killed.stderr.decode()[-500:]
    assert out.read_bytes() == OLDER
    assert [p for p in tmp_path.iterdir() if p.name.startswith(PREFIX)]  # its scratch
    report = export_recipe(recipe_from_toml(recipe), out)
    assert len(report.found) >= least
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(PREFIX)]
    assert graphs(out) == graphs(undisturbed)
