"""Recipes: a full example is read as meant, and everything else is refused by file and key."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from posekit.export.bank_recipe import BankRecipe
from posekit.export.recipe import (
    CropsRecipe,
    ExportRecipe,
    NormaliseRecipe,
    PrecisionRecipe,
    recipe_from_toml,
)
from posekit.export.verify.gates import Gates
from posekit.runtime.crop import CropPreset
from posekit.runtime.errors import RecipeError
from posekit.runtime.manifest import ContinuousSymmetry, SolverEntry

FULL = """
name = "desk"                        # of the bundle
default_path = "fine.regressor"      # what `estimate` uses; a network with one path gives it its own name

[[objects]]
id = 1
name = "mug"
mesh = "meshes/mug.ply"              # relative to this file; PLY, OBJ, STL or GLB
unit = "mm"                          # of the mesh: m, cm, mm or inch

[[objects]]
id = 2
name = "bottle"
mesh = "meshes/bottle.obj"
unit = "m"
symmetries_continuous = [{axis = [0, 0, 1]}]   # any turn about z through the origin
symmetries_discrete = [[1,0,0,0, 0,-1,0,0, 0,0,-1,0, 0,0,0,1]]   # 4x4 row by row, metres

[[objects]]
id = 3
name = "duck"
mesh = "meshes/obj_000003.ply"
unit = "mm"
models_info = "meshes/models_info.json"        # BOP's: symmetries in millimetres

[[networks]]                         # a published system with trained weights
name = "fine"
system = "gdr-net"
checkpoint = "weights/gdr.pth"       # .safetensors, .pt, .pth, .ckpt; nothing in it is executed
checkpoint_key = "ema.weights"       # where in the file; left out: the top, state_dict, model_state_dict or model
checkpoint_prefix = "net."           # take these names, without it
objects = [1, 2]                     # ids; left out: all
options = {backbone = "resnet34", n_objects = 2}
crop = "dzi-1.5-256"                 # left out: the system's
solver = {method = "epnp-ransac", iterations = 50, reprojection_px = 2}

[[networks]]                         # one's own network from a module beside this file
name = "mine"
network = "nets:embedder"
role = "embedder"                    # or pose, correspondence: see posekit.export.networks.own
checkpoint = "random"                # for measuring speed; the bundle says so
seed = 7
threshold = 0.2                      # matcher: similarities below count as 0
crop = {rule = "square", size_px = 96, pad = 1.2}
normalise = {mean = [0, 0, 0], std = [1, 1, 1], bgr = true}
bank = {sphere = 162, in_plane_steps = 12, max_angle_deg = 90, distance_m = 0.8, precision = "fp16"}

[detector]
onnx = "weights/yolo.onnx"
family = "yolov8"
objects = {cup = 1, bottle = 2}      # class to object id; left out: by the objects' names
score_threshold = 0.4

[precision]
variants = ["fp16", "int8"]          # beside fp32
method = "percentile"                # or minmax, entropy

[calibration]
source = "recordings/desk"           # a BOP data set, a video, a folder of images
max_crops = 512

[verification]                       # left out: every other frame of the calibration's
source = "recordings/desk2.mp4"
camera = "camera.json"
boxes = "desk2.json"

[gates]
rotation_p95_deg = 0.5

[engines]
crops_per_pass = [1, 2, 8]           # or "measured": boxes per frame of the calibration
"""

SMALL = """
name = "desk"
default_path = "mine"
[[objects]]
id = 1
name = "mug"
mesh = "mug.ply"
unit = "mm"
[[networks]]
name = "mine"
system = "tram3d"
checkpoint = "random"
"""


SOLVER = 'solver = {method = "epnp-ransac", iterations = 100, reprojection_px = 3}'
OWN_DETECTOR = """
checkpoint = "random"
[detector]
family = "posekit"
network = "n:m"
checkpoint = "random"
input_wh_px = [64, 64]
"""


VARIANTS = """
checkpoint = "random"
[precision]
variants = ["fp16", "int8"]
[calibration]
source = "recordings"
max_crops = 64
"""


def read(text: str, folder: Path) -> ExportRecipe:
    path = folder / "desk.toml"
    path.write_text(text)
    return recipe_from_toml(path)


def test_the_full_example_is_read_as_meant(tmp_path: Path) -> None:
    recipe = read(FULL, tmp_path)
    assert [entry.name for entry in recipe.objects] == ["mug", "bottle", "duck"]
    assert recipe.objects[1].symmetries_continuous == (ContinuousSymmetry((0.0, 0.0, 1.0)),)
    fine, mine = recipe.networks
    assert fine.options == {"backbone": "resnet34", "n_objects": 2}
    assert fine.solver == SolverEntry("epnp-ransac", 50, 2.0)
    assert fine.bank == BankRecipe()
    assert mine.crop == CropPreset("square", 96, pad=1.2)
    assert mine.normalise == NormaliseRecipe((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), bgr=True)
    assert mine.bank == BankRecipe(162, 12, max_angle_deg=90.0, distance_m=0.8, precision="fp16")
    assert recipe.detector is not None
    assert recipe.detector.objects == {"cup": 1, "bottle": 2}
    assert recipe.precision == PrecisionRecipe(("fp16", "int8"), "percentile")
    assert recipe.calibration == CropsRecipe("recordings/desk", max_crops=512)
    assert recipe.verification == CropsRecipe("recordings/desk2.mp4", "desk2.json", "camera.json")
    assert recipe.gates == Gates(rotation_p95_deg=0.5)
    assert recipe.engines.crops_per_pass == (1, 2, 8)


def test_a_recipe_is_hashed_and_its_paths_start_at_its_folder(tmp_path: Path) -> None:
    recipe = read(SMALL, tmp_path)
    assert recipe.sha256 == hashlib.sha256((tmp_path / "desk.toml").read_bytes()).hexdigest()
    assert recipe.resolve(recipe.objects[0].mesh) == tmp_path / "mug.ply"
    assert recipe.resolve("/abs/mug.ply") == Path("/abs/mug.ply")


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('name = "desk"', 'nam = "desk"', "recipe: got unknown key 'nam'"),
        ('name = "desk"', 'name = "desk"\nsha256 = "0"', "sha256"),
        ('name = "desk"', 'name = "my desk"', "my desk"),
        ('name = "mug"', 'name = "../mug"', "recipe.objects"),
        ("id = 1", 'id = "1"', r"recipe.objects[0].id: got '1', expected int"),
        ("id = 1", "id = -1", "recipe.objects.id"),
        ('unit = "mm"', 'unit = "feet"', "feet"),
        ('unit = "mm"', "", "no key 'unit'"),
        ('unit = "mm"', 'unit = "mm"\nsymmetries_discrete = [[1, 0]]', "symmetries_discrete"),
        ('unit = "mm"', 'unit = "mm"\nmodels_info = "x"\nsymmetries_continuous = [{axis = [0, 0, 1]}]', "models_info"),
        ('system = "tram3d"', 'system = "tram3d"\nnetwork = "nets:make"', "system and network"),
        ('system = "tram3d"', "", "none of them"),
        ('system = "tram3d"', 'network = "nets:make"', "role and crop"),
        ('system = "tram3d"', 'system = "tram3d"\nrole = "pose"', "user's own network"),
        ('system = "tram3d"', 'system = "tram3d"\nthreshold = 0.2', "user's own network"),
        ('system = "tram3d"', 'network = "n:m"\nrole = "oracle"\ncrop = "full-512"', "oracle"),
        ('system = "tram3d"', 'network = "n:m"\nrole = "correspondence"\ncrop = "full-512"', "no solver"),
        ('system = "tram3d"', 'system = "tram3d"\nobjects = [3]', "ids among [1]"),
        ('system = "tram3d"', 'system = "tram3d"\ncrop = "round-64"', "round-64"),
        ('system = "tram3d"', 'system = "tram3d"\ncrop = {rule = "square", size_px = 2}', "size_px=2"),
        ('system = "tram3d"', 'system = "tram3d"\nbank = {max_angle_deg = 0}', "max_angle_deg"),
        ('system = "tram3d"', 'system = "tram3d"\nbank = {distance_m = -1}', "distance_m"),
        ('system = "tram3d"', 'system = "tram3d"\nbank = {in_plane_steps = 0}', "in_plane_steps"),
        (
            'system = "tram3d"',
            'system = "tram3d"\nbank = {views = 9}',
            "recipe.networks[0].bank: got unknown key 'views'",
        ),
        ('system = "tram3d"', 'system = "tram3d"\nnormalise = {std = [0, 1, 1]}', "normalise.std"),
        ('checkpoint = "random"', "", "no key 'checkpoint'"),
        ('checkpoint = "random"', 'checkpoint = "random"\nseed = -1', "seed"),
        ('checkpoint = "random"', 'checkpoint = "random"\nseed = 9223372036854775808', "seed"),
        ('checkpoint = "random"', 'checkpoint = "random"\n' + SOLVER.replace("epnp-ransac", "magic"), "epnp-ransac"),
        ('checkpoint = "random"', 'checkpoint = "random"\n' + SOLVER.replace("100", "0"), "iterations >= 1"),
        ('checkpoint = "random"', OWN_DETECTOR + "normalise = {std = [1, 0, 1]}", "detector.normalise.std"),
        ('checkpoint = "random"', OWN_DETECTOR.replace("input_wh_px = [", "input_wh_px = [-"), "input_wh_px"),
        ('checkpoint = "random"', 'checkpoint = "random"\n[detector]\nfamily = "yolov8"', "none of them"),
        (
            'checkpoint = "random"',
            'checkpoint = "random"\n[detector]\nfamily = "yolov8"\nonnx = "d.onnx"\nscore_threshold = 7',
            "score_threshold",
        ),
        (
            'checkpoint = "random"',
            'checkpoint = "random"\n[detector]\nfamily = "yolov8"\nonnx = "d.onnx"\nobjects = {cup = 9}',
            "ids among [1]",
        ),
        (
            'checkpoint = "random"',
            'checkpoint = "random"\n[detector]\nfamily = "posekit"\nnetwork = "n:m"',
            "checkpoint and input_wh_px",
        ),
        (
            'checkpoint = "random"',
            OWN_DETECTOR.replace("posekit", "yolov8"),
            "'posekit'",
        ),
        ('checkpoint = "random"', VARIANTS.replace("int8", "int4"), "int4"),
        ('checkpoint = "random"', VARIANTS.replace("int8", "fp16"), "each once"),
        ('checkpoint = "random"', VARIANTS.partition("[calibration]")[0], "real crops"),
        ('checkpoint = "random"', VARIANTS.replace("max_crops = 64", "max_crops = 0"), "max_crops"),
        ('checkpoint = "random"', VARIANTS + "[gates]\nlost = -0.1", "recipe.gates.lost"),
        ('checkpoint = "random"', VARIANTS + "[gates]\nrotation_p99 = 1", "unknown key"),
        ('checkpoint = "random"', 'checkpoint = "random"\n[engines]\ncrops_per_pass = [1, 8, 4]', "in that order"),
        ('checkpoint = "random"', 'checkpoint = "random"\n[engines]\ncrops_per_pass = [2, 8, 8]', "in that order"),
        ('checkpoint = "random"', 'checkpoint = "random"\n[engines]\ncrops_per_pass = "guessed"', "crops_per_pass"),
        ('checkpoint = "random"', 'checkpoint = "random"\n[engines]\ncrops_per_pass = "measured"', "[calibration]"),
        ("[[networks]]", "[[networks", "a recipe in TOML"),
        ("[[objects]]", "objects = " + "[" * 5000, "a recipe in TOML"),
    ],
)
def test_a_wrong_recipe_is_refused_by_file_and_key(old: str, new: str, named: str, tmp_path: Path) -> None:
    assert old in SMALL
    with pytest.raises(RecipeError, match=re.escape(named)) as caught:
        read(SMALL.replace(old, new, 1), tmp_path)
    assert "desk.toml" in str(caught.value)


def test_no_recipe_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"absent\.toml"):
        recipe_from_toml(tmp_path / "absent.toml")


def test_a_name_twice_is_refused(tmp_path: Path) -> None:
    for section in ("objects", "networks"):
        start = SMALL.index(f"[[{section}]]")
        end = SMALL.find("[[", start + 2)
        block = SMALL[start : end if end > 0 else len(SMALL)]
        with pytest.raises(RecipeError, match=section):
            read(SMALL.replace(block, block + block), tmp_path)
