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
EXPORT = """
import os, signal, sys
from pathlib import Path
import torch
from posekit.export.pipeline import export_recipe
from posekit.export.recipe import recipe_from_toml

torch.set_num_threads(1)
def progress(stage, done, total):
    if stage == sys.argv[3] and done == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)
print(len(export_recipe(recipe_from_toml(sys.argv[1]), Path(sys.argv[2]), progress).found))
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


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, capture_output=True, cwd=folder, env=os.environ, timeout=300, check=False)


@pytest.mark.parametrize(
    ("stage", "done", "least"),
    [pytest.param(*moment, marks=[] if k == 2 else pytest.mark.slow) for k, moment in enumerate(MOMENTS)],
)
def test_a_killed_export_goes_on(
    stage: str, done: int, least: int, recipe: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POSEKIT_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "toy.posekit"
    out.write_bytes(OLDER)
    # Both in processes of their own, as a user's are: here the tests' modules would count as the user's code.
    command = [sys.executable, "-W", "ignore", "-c", EXPORT, str(recipe), str(out)]
    killed = run([*command, stage, str(done)], recipe.parent)
    assert killed.returncode == -9, killed.stderr.decode()[-500:]
    assert out.read_bytes() == OLDER
    assert [p for p in tmp_path.iterdir() if p.name.startswith(PREFIX)]  # its scratch
    repeated = run([*command, "", "0"], recipe.parent)
    assert repeated.returncode == 0, repeated.stderr.decode()[-500:]
    assert int(repeated.stdout) >= least
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(PREFIX)]
    assert graphs(out) == graphs(undisturbed)
