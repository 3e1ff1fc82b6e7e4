"""The command line: what each command says, writes and refuses, always without a traceback."""

from __future__ import annotations

import builtins
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from full_disk import full_disk
from onnx import TensorProto as T
from onnx import helper
from recordings import write_recording
from safetensors.numpy import save
from toy_bundles import write_toy_bundle
from typer.testing import CliRunner

from posekit.cli import app
from posekit.export.pack import pack_bundle
from posekit.runtime.bank import bank_from_bytes, check_bank_fits
from posekit.runtime.bundle import Bundle
from posekit.runtime.crop import CropPreset
from posekit.runtime.errors import InputError
from posekit.runtime.manifest import FORMAT, GraphEntry, Manifest, ObjectEntry, PathEntry
from posekit.runtime.records import json_from_record
from posekit.runtime.results import PoseRecord, UnposedRecord, read_results
from posekit.runtime.tensor import TensorSpec

W, H, SIZE = 160, 120, 32
CAMERA = {"fx": 150, "fy": 150, "cx": 79.5, "cy": 59.5, "width": W, "height": H}
BOX = {"object_id": 1, "box_xyxy_px": [60, 40, 100, 80]}
CROPS = TensorSpec("crops", "uint8", ("batch", SIZE, SIZE, 3))
OUTPUTS = (
    TensorSpec("R", "float32", ("batch", 3, 3)),
    TensorSpec("t", "float32", ("batch", 3)),
    TensorSpec("score", "float32", ("batch",)),
)
CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float32) * 0.05
QUADS = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
FACES = np.array([triangle for a, b, c, d in QUADS for triangle in ((a, b, c), (a, c, d))], np.int32)


def pose_graph() -> bytes:
    """R = I, t = (0, 0, 0.5), score 0.75 for every crop."""
    nodes = [helper.make_node("Shape", ["crops"], ["batch"], start=0, end=1)]
    constants = {"R0": np.eye(3)[None], "t0": np.array([[0, 0, 0.5]]), "score0": np.array([0.75])}
    for name, rank in (("R", 3), ("t", 2), ("score", 1)):
        parts = ["batch", *["one"] * (rank - 1)]
        nodes.append(helper.make_node("Concat", parts, [f"{name}_repeats"], axis=0))
        nodes.append(helper.make_node("Tile", [f"{name}0", f"{name}_repeats"], [name]))
    initialisers = [onnx.numpy_helper.from_array(v.astype(np.float32), n) for n, v in constants.items()]
    initialisers.append(onnx.numpy_helper.from_array(np.ones(1, np.int64), "one"))
    inputs = [helper.make_tensor_value_info("crops", T.UINT8, list(CROPS.shape))]
    outputs = [helper.make_tensor_value_info(s.name, T.FLOAT, list(s.shape)) for s in OUTPUTS]
    graph = helper.make_graph(nodes, "toy", inputs, outputs, initialisers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    return bytes(model.SerializeToString())


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle whose every pose is the same, for a 10 cm cube."""
    entry = ObjectEntry(1, "cube", 0.1732, (-0.05,) * 3, (0.05,) * 3, "cube.safetensors")
    manifest = Manifest(
        format=FORMAT,
        name="toy",
        system="constant",
        provenance={"made by": "a test"},
        graphs={"pose": GraphEntry("pose", {"fp32": "pose.onnx"}, (CROPS,), OUTPUTS)},
        objects=(entry,),
        paths={"direct": PathEntry("regressor", "pose", CropPreset("square", SIZE), (1,))},
        default_path="direct",
        files={},
    )
    cube = bytes(save({"points_m": CORNERS, "vertices_m": CORNERS, "faces": FACES}))
    members = {"pose.onnx": pose_graph(), "cube.safetensors": cube}
    pack_bundle(tmp_path / "toy.posekit", manifest, members)
    return tmp_path / "toy.posekit"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three images, their camera file and box file."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(3):
        cv2.imwrite(str(folder / f"{i}.png"), np.full((H, W, 3), 60 + i, np.uint8))
    (tmp_path / "cam.json").write_text(json.dumps(CAMERA))
    (tmp_path / "boxes.json").write_text(json.dumps({f"{i}.png": [BOX] for i in range(3)}))
    return folder


@pytest.fixture
def data_set(tmp_path: Path) -> Path:
    """BOP, two images: in the first the cube is where the bundle says, in the second 10 cm aside."""
    scene = tmp_path / "bop" / "test" / "000001"
    (scene / "rgb").mkdir(parents=True)
    K = [150, 0, 79.5, 0, 150, 59.5, 0, 0, 1]
    gt = {"cam_R_m2c": np.eye(3).ravel().tolist(), "cam_t_m2c": [0, 0, 500], "obj_id": 1}
    stranger = gt | {"obj_id": 77}
    for i in range(2):
        cv2.imwrite(str(scene / "rgb" / f"{i:06d}.png"), np.full((H, W, 3), 90, np.uint8))
    rows = {
        "scene_camera": {i: {"cam_K": K} for i in range(2)},
        "scene_gt": {0: [gt, stranger], 1: [gt | {"cam_t_m2c": [100, 0, 500]}]},
        "scene_gt_info": {0: [{"bbox_obj": [60, 40, 40, 40]}] * 2, 1: [{"bbox_obj": [90, 40, 40, 40]}]},
    }
    for name, content in rows.items():
        (scene / f"{name}.json").write_text(json.dumps(content))
    return tmp_path / "bop"


def posekit(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def refused(*arguments: object, code: int = 2) -> str:
    """The message of a refusal: an exit code, one line on stderr, nothing on stdout, no traceback."""
    result = posekit(*arguments)
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    return str(result.stderr)


def with_boxes(bundle: Path, images: Path) -> list[object]:
    top = images.parent
    return ["run", bundle, images, "--camera", top / "cam.json", "--boxes", top / "boxes.json"]


def test_run_writes_poses_and_overlays_and_says_what_next(bundle: Path, images: Path, tmp_path: Path) -> None:
    result = posekit(*with_boxes(bundle, images), "-o", tmp_path / "poses.jsonl", "--overlay", tmp_path / "seen")
    assert result.exit_code == 0, result.output
    records = read_results(tmp_path / "poses.jsonl")
    assert [r.frame for r in records] == ["0.png", "1.png", "2.png"]
    assert isinstance(records[0], PoseRecord)
    np.testing.assert_allclose(records[0].cam_from_obj.t_m, [0, 0, 0.5])
    assert records[0].time_s is not None
    assert 0 < sum(records[0].stages_s.values()) <= records[0].time_s
    seen = sorted((tmp_path / "seen").iterdir())
    assert [p.name for p in seen] == ["0.png", "1.png", "2.png"]
    picture = cv2.imread(str(seen[0]))
    assert picture is not None
    assert picture.std() > 5
    for words in ("3 poses in 3 frames", "poses.jsonl", "p50 ms", "ONNX Runtime", "next: posekit"):
        assert words in result.stdout


def test_run_as_json_is_one_object_on_stdout(bundle: Path, images: Path) -> None:
    result = posekit(*with_boxes(bundle, images), "--json", "--max-frames", 2)
    outcome = json.loads(result.stdout)
    assert (outcome["n_frames"], outcome["n_estimates"], outcome["path"]) == (2, 2, "direct")
    assert outcome["timings"]["frame"]["n"] == 2


def test_a_box_without_a_crop_costs_itself_alone(bundle: Path, images: Path, tmp_path: Path) -> None:
    """Counted by reason, in the file, drawn, and the frame and the run go on."""
    outside, thin = BOX | {"box_xyxy_px": [900, 40, 940, 80]}, BOX | {"box_xyxy_px": [60, 40, 60, 80]}
    boxes = {"0.png": [outside, BOX, thin], "1.png": [outside], "2.png": [BOX]}
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    run = with_boxes(bundle, images)
    told = posekit(*run, "-o", tmp_path / "poses.jsonl", "--overlay", tmp_path / "seen")
    assert told.exit_code == 0, told.output
    assert "2 poses in 3 frames" in told.stdout
    assert "3 detections without a pose: 2 box_outside_image, 1 box_too_thin" in told.stdout
    records = read_results(tmp_path / "poses.jsonl")
    assert [(r.frame, r.reason.value if isinstance(r, UnposedRecord) else "pose") for r in records] == [
        ("0.png", "box_outside_image"),
        ("0.png", "pose"),
        ("0.png", "box_too_thin"),
        ("1.png", "box_outside_image"),
        ("2.png", "pose"),
    ]
    seen = cv2.imread(str(tmp_path / "seen" / "1.png"))
    assert seen is not None
    assert (seen != 61).any()
    outcome = json.loads(posekit(*run, "--json", "-o", tmp_path / "poses.csv").stdout)
    assert outcome["reasons"] == {"box_outside_image": 2, "box_too_thin": 1}
    assert (outcome["n_detections"], outcome["n_estimates"], outcome["n_frames"]) == (5, 2, 3)
    assert len(read_results(tmp_path / "poses.csv")) == 2


def test_run_on_a_data_set_scores_against_its_truth(bundle: Path, data_set: Path, tmp_path: Path) -> None:
    """Boxes of objects that the bundle does not know are left out, and counted; one of the two poses is right."""
    result = posekit("run", bundle, data_set, "--boxes", "gt", "--gt", "-o", tmp_path / "poses.csv", "--json")
    assert result.exit_code == 0, result.output
    outcome = json.loads(result.stdout)
    total = outcome["accuracy"]["total"]
    assert (total["n_true"], total["recall_add"]) == (2, 0.5)
    assert (outcome["n_detections"], outcome["left_out"]) == (2, {"77": 1})
    assert len(read_results(tmp_path / "poses.csv")) == 2
    table = posekit("run", bundle, data_set, "--boxes", "gt", "--gt").stdout
    assert "50.0%" in table
    assert "cube" in table
    assert "1 of object 77" in table


def test_bop_detections_drive_a_data_set(bundle: Path, data_set: Path, tmp_path: Path) -> None:
    row = {"scene_id": 1, "image_id": 1, "category_id": 1, "bbox": [60, 40, 40, 40], "score": 0.5}
    (tmp_path / "found.json").write_text(json.dumps([row]))
    result = posekit("run", bundle, data_set, "--boxes", tmp_path / "found.json", "--json")
    assert json.loads(result.stdout)["n_estimates"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda top: ["run", top / "none.posekit", top / "images"], "none.posekit"),
        (lambda top: ["run", top / "toy.posekit", top / "images"], "no intrinsics"),
        (lambda top: ["run", top / "toy.posekit", top / "none", "--camera", top / "cam.json"], "nothing there"),
        (lambda top: ["run", top / "toy.posekit", top / "images", "--camera", top / "none.json"], "none.json"),
        (lambda top: ["run", top / "toy.posekit", top / "images", "--camera", top / "cam.json"], "no detector"),
        (lambda top: ["inspect", top / "cam.json"], "cam.json"),
    ],
)
def test_run_refuses_what_it_cannot_use(
    bundle: Path, images: Path, change: Callable[[Path], list[object]], message: str
) -> None:
    assert message in refused(*change(bundle.parent))


def test_run_refuses_options_that_do_not_fit(bundle: Path, images: Path, data_set: Path, tmp_path: Path) -> None:
    run = with_boxes(bundle, images)
    assert "suffix '.txt'" in refused(*run, "-o", tmp_path / "poses.txt")
    assert "one of direct" in refused(*run, "--path", "other")
    assert "no ground truth" in refused(*run, "--gt")
    assert refused(*run[:-1], "gt").count("frame 0.png") == 1
    assert "backend" in refused(*run, "--backend", "abacus", code=3)
    assert "Leave the camera file out" in refused("run", bundle, data_set, "--camera", tmp_path / "cam.json")
    (tmp_path / "file").write_text("")
    assert "overlays" in refused(*run, "--overlay", tmp_path / "file")


def test_a_frame_that_fails_is_named_and_what_came_before_is_kept(bundle: Path, images: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(images / "2.png"), np.zeros((H, W // 2, 3), np.uint8))
    message = refused(*with_boxes(bundle, images), "-o", tmp_path / "poses.jsonl")
    assert "2.png" in message
    assert "2 results so far are kept in" in message
    assert len(read_results(tmp_path / "poses.jsonl.partial")) == 2
    assert not (tmp_path / "poses.jsonl").exists()


def test_a_run_that_fails_at_once_leaves_no_file(bundle: Path, images: Path, tmp_path: Path) -> None:
    refused(*with_boxes(bundle, images), "--path", "other", "-o", tmp_path / "poses.jsonl")
    refused(*with_boxes(bundle, images), "--gt", "-o", tmp_path / "poses.jsonl")
    assert not list(tmp_path.glob("poses*"))


def test_a_keyboard_stop_keeps_results(bundle: Path, images: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from posekit.runtime.overlay import draw_poses

    def stopping(image: Any, *rest: Any) -> Any:
        if image[0, 0, 0] == 62:
            raise KeyboardInterrupt
        return draw_poses(image, *rest)

    monkeypatch.setattr("posekit.sequence.draw_poses", stopping)
    message = refused(*with_boxes(bundle, images), "-o", tmp_path / "poses.jsonl", "--overlay", tmp_path / "seen")
    assert "a stop after 2 frames" in message
    assert "2 results so far are kept in" in message


@pytest.mark.parametrize(
    "module", ["export.pipeline.export_recipe", "bank_build.rebuild_bank", "runtime.bundle.Bundle"]
)
def test_ctrl_c_is_one_sentence(bundle: Path, tmp_path: Path, monkeypatch: Any, module: str) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / "recipe.toml").write_text(TOY_RECIPE)
    commands = {
        "export.pipeline.export_recipe": ["export", tmp_path / "recipe.toml", "-o", tmp_path / "x.posekit"],
        "bank_build.rebuild_bank": ["bank", "build", bundle, "--object", 1, "--mesh", "m.ply", "--unit", "mm"],
        "runtime.bundle.Bundle": ["inspect", bundle],
    }
    monkeypatch.setattr(f"posekit.{module}", stopped)
    before = bundle.read_bytes()
    assert "a stop (Ctrl-C)" in refused(*commands[module])
    assert bundle.read_bytes() == before
    assert not (tmp_path / "x.posekit").exists()


def test_overlays_do_not_replace_the_images_they_are_drawn_on(bundle: Path, images: Path) -> None:
    before = {path.name: path.read_bytes() for path in images.iterdir()}
    run = with_boxes(bundle, images)
    assert "folder of the source" in refused(*run, "--overlay", images)
    run[2] = images / "0.png"
    assert "folder of the source" in refused(*run, "--overlay", images / "..//images")
    assert {path.name: path.read_bytes() for path in images.iterdir()} == before


def test_a_full_disk_keeps_what_was_written(bundle: Path, images: Path, tmp_path: Path) -> None:
    with full_disk(900):
        message = refused(*with_boxes(bundle, images), "-o", tmp_path / "poses.jsonl")
    kept = read_results(tmp_path / "poses.jsonl.partial")
    assert 0 < len(kept) < 3
    assert f"{len(kept)} results are kept in" in message
    (tmp_path / "seen").mkdir()
    (tmp_path / "seen" / "0.png").write_bytes(b"an older picture")
    with full_disk(100):
        assert "seen/0.png" in refused(*with_boxes(bundle, images), "--overlay", tmp_path / "seen")
    assert [path.read_bytes() for path in (tmp_path / "seen").iterdir()] == [b"an older picture"]


def test_outputs_that_cannot_be_written_are_known_before_the_work(
    bundle: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    trimesh = pytest.importorskip("trimesh")
    trimesh.Trimesh(CORNERS * 1000, FACES).export(tmp_path / "cube.ply")
    (tmp_path / "recipe.toml").write_text(TOY_RECIPE)
    monkeypatch.setattr("posekit.export.pipeline.read_inputs", None)
    monkeypatch.setattr("posekit.bank_build.build_bank", None)
    build = ["bank", "build", bundle, "--object", 1, "--mesh", tmp_path / "cube.ply", "--unit", "mm"]
    for place in (tmp_path / "recipe.toml", tmp_path, tmp_path / "absent" / "x.posekit"):
        assert f"output {place}" in refused("export", tmp_path / "recipe.toml", "-o", place)
        assert f"output {place}" in refused(*build, "-o", place)
    assert (tmp_path / "recipe.toml").read_text() == TOY_RECIPE


def test_a_doubtful_unit_is_one_line(bundle: Path, tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh")
    trimesh.Trimesh(CORNERS * 1000, FACES).export(tmp_path / "cube.ply")
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        result = posekit("bank", "build", bundle, "--object", 1, "--mesh", tmp_path / "cube.ply", "--unit", "m")
    doubt, error = result.stderr.strip().splitlines()
    assert doubt.startswith("warning: cube.ply: read in 'm' its diameter is 173.2 m")
    assert error.startswith("error: ")


class Camera:
    """Gives two frames; then the user presses Ctrl-C."""

    def __init__(self, number: int) -> None:
        self.left = 2

    def isOpened(self) -> bool:
        return True

    def set(self, key: int, value: float) -> None: ...

    def read(self) -> tuple[bool, Any]:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return True, np.zeros((H, W, 3), np.uint8)

    def release(self) -> None: ...


def test_ctrl_c_ends_a_camera_in_good_order(bundle: Path, images: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    (tmp_path / "boxes.json").write_text(json.dumps({f"camera0#{i:06d}": [BOX] for i in range(2)}))
    run = [*with_boxes(bundle, images), "-o", tmp_path / "poses.jsonl", "--json"]
    run[2] = "0"
    result = posekit(*run)
    assert result.exit_code == 0, result.output
    outcome = json.loads(result.stdout)
    assert (outcome["stopped"], outcome["n_frames"]) == (True, 2)
    assert len(read_results(tmp_path / "poses.jsonl")) == 2


def test_a_missing_package_is_named_with_its_remedy(bundle: Path, images: Path, monkeypatch: Any) -> None:
    real = builtins.__import__

    def no_cv2(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "cv2":
            raise ModuleNotFoundError("No module named 'cv2'", name="cv2")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_cv2)
    assert "pip install 'posekit[onnx]'" in refused(*with_boxes(bundle, images), code=3)


def test_inspect_shows_and_gives_json(bundle: Path) -> None:
    shown = posekit("inspect", bundle).stdout
    for words in ("toy", "cube", "173.2", "pose.onnx", "direct (default)", "a test", "next: posekit run"):
        assert words in shown
    assert json.loads(posekit("inspect", bundle, "--json").stdout)["name"] == "toy"


def test_stages_are_lines_where_stderr_is_no_terminal(capsys: Any) -> None:
    from posekit.render import stages

    with stages() as update:
        for done in range(3):
            update("graphs", done, 2)
        update("pack", 0, 1)
        print("a library talks")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == ["graphs", "pack", "a library talks"]


def test_errors_are_a_panel_on_a_terminal(monkeypatch: Any, capsys: Any) -> None:
    from posekit.render import show_error

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    show_error(InputError("box [1, 2]", got="[bold]nothing[/]", expected="four numbers", remedy="Pass four."))
    panel = capsys.readouterr().err
    for words in ("InputError", "box [1, 2]", "[bold]nothing[/]", "four numbers", "Pass four."):
        assert words in panel


def test_systems_are_listed() -> None:
    rows = json.loads(posekit("systems", "--json").stdout)
    assert "gdr-net" in [row["name"] for row in rows]
    assert "next: posekit export" in posekit("systems").stdout


def test_export_and_bank_build_refuse_by_name(bundle: Path, tmp_path: Path) -> None:
    assert "none.toml" in refused("export", tmp_path / "none.toml", "-o", tmp_path / "x.posekit")
    mesh = tmp_path / "cube.ply"
    assert "cube.ply" in refused("bank", "build", bundle, "--object", 1, "--mesh", mesh, "--unit", "mm")
    trimesh = pytest.importorskip("trimesh")
    trimesh.Trimesh(CORNERS * 1000, FACES).export(mesh)
    message = refused("bank", "build", bundle, "--object", 1, "--mesh", mesh, "--unit", "mm")
    assert "a bundle with a bank path" in message


TOY_RECIPE = """
name = "toy"
default_path = "find"
[[objects]]
id = 4
name = "cube"
mesh = "cube.ply"
unit = "mm"
[[networks]]
name = "find"
network = "toy_patches:patches"
role = "embedder"
checkpoint = "random"
crop = {rule = "square", size_px = 32}
bank = {sphere = 42, in_plane_steps = 1, supersample = 1, search = "flat"}
"""
TOY_NETWORK = """
from torch import nn

def patches():
    return nn.Conv2d(3, 8, 8, stride=8, bias=False)
"""


def test_export_writes_a_bundle_and_says_what_next(tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh")
    trimesh.Trimesh(CORNERS * 1000, FACES).export(tmp_path / "cube.ply")
    (tmp_path / "toy_patches.py").write_text(TOY_NETWORK)
    (tmp_path / "recipe.toml").write_text(TOY_RECIPE)
    result = posekit("export", tmp_path / "recipe.toml", "-o", tmp_path / "toy.posekit")
    assert result.exit_code == 0, result.output
    for words in ("find.embedder", "42", "toy.posekit", "next: posekit inspect"):
        assert words in result.stdout
    summary = json.loads(posekit("export", tmp_path / "recipe.toml", "-o", tmp_path / "b.posekit", "--json").stdout)
    assert summary["size_bytes"] == (tmp_path / "b.posekit").stat().st_size
    assert (tmp_path / "b.posekit").read_bytes() == (tmp_path / "toy.posekit").read_bytes()


def embedder_graph() -> bytes:
    """The unit mean colour of a crop, one place."""
    nodes = [
        helper.make_node("Cast", ["crops"], ["float"], to=T.FLOAT),
        helper.make_node("ReduceMean", ["float", "axes"], ["mean"], keepdims=0),
        helper.make_node("LpNormalization", ["mean"], ["unit"], axis=1, p=2),
        helper.make_node("Unsqueeze", ["unit", "one"], ["descriptors"]),
    ]
    constants = {"axes": np.array([1, 2]), "one": np.array([1])}
    initialisers = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    inputs = [helper.make_tensor_value_info("crops", T.UINT8, list(CROPS.shape))]
    outputs = [helper.make_tensor_value_info("descriptors", T.FLOAT, ["batch", 1, 3])]
    graph = helper.make_graph(nodes, "toy", inputs, outputs, initialisers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    return bytes(model.SerializeToString())


def test_bank_build_replaces_one_bank_and_nothing_else(tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh")
    trimesh.Trimesh(CORNERS * 1000, FACES).export(tmp_path / "cube.ply")
    descriptors = TensorSpec("descriptors", "float32", ("batch", 1, 3))
    crop = CropPreset("square", SIZE)
    manifest = Manifest(
        format=FORMAT,
        name="toy",
        system="colours",
        provenance={},
        graphs={name: GraphEntry("embedder", {"fp32": "e.onnx"}, (CROPS,), (descriptors,)) for name in ("e", "m")},
        objects=(ObjectEntry(1, "cube", 0.1732, (-0.05,) * 3, (0.05,) * 3, "cube.safetensors"),),
        paths={"bank": PathEntry("bank", "e", crop, (1,), "m", {"1": "cube.bank"})},
        default_path="bank",
        files={},
    )
    model = bytes(save({"points_m": CORNERS, "vertices_m": CORNERS, "faces": FACES}))
    members = {"e.onnx": embedder_graph(), "cube.safetensors": model, "cube.bank": b"old"}
    path = tmp_path / "toy.posekit"
    pack_bundle(path, manifest, members)
    build = ["bank", "build", path, "--object", 1, "--mesh", tmp_path / "cube.ply", "--unit", "mm", "--sphere", 42]
    result = posekit(*build, "--in-plane-steps", 1, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["banks"]["bank"]["views"] == 42
    with Bundle(path) as rebuilt:
        bank = bank_from_bytes(rebuilt.read("cube.bank"), "cube.bank")
        check_bank_fits(bank, 1, rebuilt.manifest.files["e.onnx"].sha256, json_from_record(crop), "cube.bank")
        assert bytes(rebuilt.read("e.onnx")) == members["e.onnx"]
    shown = posekit(*build, "--in-plane-steps", 1, "-o", tmp_path / "other.posekit").stdout
    assert "42 views of 1 x 3" in shown
    assert "next: posekit inspect" in shown
    assert "no such bank" in refused(*build[:3], "--object", 2, *build[5:])


def test_usage_and_version() -> None:
    assert posekit("--version").stdout.startswith("posekit ")
    assert posekit("run").exit_code == 2
    assert posekit("run", "x", "y", "--max-frames", 0).exit_code == 2


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["bank", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom posekit.cli import app\n"
        f"try:\n    app({arguments})\nexcept SystemExit:\n    pass\n"
        "heavy = {'numpy', 'cv2', 'onnx', 'onnxruntime', 'torch', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_dry_run_shows_the_plan_and_makes_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    trimesh = pytest.importorskip("trimesh")
    trimesh.Trimesh(CORNERS * 1000, FACES).export(tmp_path / "cube.ply")
    (tmp_path / "recipe.toml").write_text(TOY_RECIPE)
    (tmp_path / "toy_patches.py").write_text(TOY_NETWORK)
    monkeypatch.setenv("POSEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delitem(sys.modules, "toy_patches", raising=False)  # another test's, of another folder
    shown = posekit("export", tmp_path / "recipe.toml", "-o", tmp_path / "x.posekit", "--dry-run")
    assert shown.exit_code == 0, shown.output
    assert "object cube" in shown.stdout
    assert "Nothing was made." in shown.stdout
    assert f"next: posekit export {tmp_path / 'recipe.toml'} -o {tmp_path / 'x.posekit'}" in shown.stdout
    plan = json.loads(
        posekit("export", tmp_path / "recipe.toml", "-o", tmp_path / "x.posekit", "--dry-run", "--json").stdout
    )
    assert {step["name"]: step["kept"] for step in plan["steps"]}["object cube"] is False
    assert not (tmp_path / "x.posekit").exists()
    assert not (tmp_path / "cache").exists()


def test_a_long_engine_build_is_told_in_lines(capsys: pytest.CaptureFixture[str]) -> None:
    from posekit.render import builds_shown
    from posekit.runtime.engines.progress import BuildProgress, watcher

    with builds_shown():
        for percent in range(0, 101, 5):
            watcher()(BuildProgress("tactics", percent / 100, 0.4 * percent, 40 - 0.4 * percent))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert lines[0] == "building an engine: 10%, about 36 s left (tactics)"
    watcher()(BuildProgress("tactics", 0.5, 20.0, 20.0))
    assert capsys.readouterr().err == ""


def test_a_bank_is_taken_by_a_path_that_looks_at_it_and_refused_for_any_other(tmp_path: Path) -> None:
    toy, recording = write_toy_bundle(tmp_path / "toy.posekit"), write_recording(tmp_path / "recording", 2)
    with Bundle(toy) as opened:
        content = bytes(opened.read(opened.manifest.paths["bank"].banks["1"]))
    shared = tmp_path / "shared.safetensors"
    shared.write_bytes(content)
    command = ["run", toy, recording, "--boxes", "gt", "--bank", f"1={shared}"]
    assert posekit(*command, "--path", "bank").exit_code == 0
    message = refused(*command, "--path", "regressor")
    assert "path regressor, which has no bank of it, expected bank. Name --path." in message
