"""Everything that the demo and the README's quickstart start from: meshes, recipe, weights and a few scenes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from posekit.export.mesh import write_ply
from posekit.export.reference.objects import reference_objects
from posekit.export.reference.scenes import random_scenes, write_bop
from posekit.runtime.atomic import make_folder, write_whole

RECIPE = "reference.toml"
SCENE_SEED, SCENES = 424242, 3  # held out: trainings draw no whole scenes, and no seed near these
RECORDING_SEED, RECORDED = 515151, 64  # about 130 crops, every other scene to calibrate on
VARIANTS = """
[precision]
variants = ["fp16", "int8"]

[calibration]
source = "recording"
"""


@dataclass(frozen=True)
class Demo:
    """recipe: to export.  scenes: a BOP data set with ground truth."""

    recipe: Path
    scenes: Path


def write_demo(
    folder: Path,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
    count: int = SCENES,
    variants: bool = False,
) -> Demo:
    """Write the reference recipe, weights and meshes, and `count` scenes, into `folder`. Raises OutputError.

    variants: the recipe asks for fp16 and int8 too, and the scenes that these are calibrated and verified on are there.
    """
    make_folder(folder, "demo folder")
    for source in files("posekit.export.reference").iterdir():
        if source.name.endswith((".safetensors", ".toml")):
            write_whole(folder / source.name, source.read_bytes())
    for thing in reference_objects().values():
        write_ply(thing.model, folder / f"{thing.name}.ply", "mm")
    _write_scenes(folder / "scenes", count, SCENE_SEED, progress)
    recipe = folder / RECIPE
    if variants:
        _write_scenes(folder / "recording", RECORDED, RECORDING_SEED, progress)
        recipe = folder / f"variants-{RECIPE}"
        write_whole(recipe, (folder / RECIPE).read_bytes() + VARIANTS.encode())
    return Demo(recipe, folder / "scenes")


def _write_scenes(folder: Path, count: int, seed: int, progress: Callable[[str, int, int], None]) -> None:
    if not (folder / "test").is_dir():
        write_bop(random_scenes(count, seed, advance=progress), folder)
