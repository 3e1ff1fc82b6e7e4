"""Data sets in BOP's layout: cameras, true poses, boxes and object facts. Millimetres become metres here, once.

Layout: ROOT/models/models_info.json, ROOT/SPLIT/SCENE/{scene_camera,scene_gt,scene_gt_info}.json and rgb/IMAGE.png|jpg|tif
(BOP toolkit, docs/bop_datasets_format.md). Ground truth and its boxes may be absent; what is absent stays absent.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from posekit.runtime.errors import InputError, SourceError
from posekit.runtime.pose import Array, Pose, nearest_rotation
from posekit.runtime.symmetry import MM_PER_M, Symmetries, symmetries_from_bop

CAMERA_FILE, GENERAL_CAMERA_FILE = "scene_camera.json", "camera.json"
IMAGE_SUFFIXES = (".png", ".jpg", ".tif")
ROTATION_DIGITS = 5e-3  # published ground truth is rounded to a few digits; farther from a rotation is a mistake
MIN_VISIBLE_FRACTION = 0.1  # BOP's tasks ask only for objects of which this much is seen
LAYOUT = "ROOT/SPLIT/SCENE with scene_camera.json and rgb/"
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class TrueObject:
    """Ground truth of one object in one image. Boxes are (4,) x0, y0, x1, y1 px, pixel centres at integers.

    amodal_box_xyxy_px: of the whole silhouette, may leave the image.  visible_box_xyxy_px: of what is not hidden.
    visible_fraction: of the silhouette's pixels.  Each is None where the data set does not say or nothing is seen.
    """

    object_id: int
    cam_from_obj: Pose
    amodal_box_xyxy_px: Array | None = None
    visible_box_xyxy_px: Array | None = None
    visible_fraction: float | None = None

    @property
    def counts(self) -> bool:
        """Whether a method is expected to find it: not known to be hidden by nine tenths or more."""
        return self.visible_fraction is None or self.visible_fraction >= MIN_VISIBLE_FRACTION


@dataclass(frozen=True, eq=False)
class Scene:
    """One scene folder. images: im_id -> file.  K: im_id -> (3, 3) px.  truth: im_id -> objects; None without scene_gt.

    wh_px: im_id -> the image size that K is for, where the data set states one.   whole_wh_px: that of the image which
    this one was cut from, likewise.
    """

    id: int
    images: dict[int, Path]
    K: dict[int, Array]
    truth: dict[int, tuple[TrueObject, ...]] | None
    wh_px: dict[int, tuple[int, int]] = field(default_factory=dict)
    whole_wh_px: dict[int, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class ObjectFacts:
    """One object of models_info.json, in metres."""

    diameter_m: float
    bbox_min_m: Array
    bbox_max_m: Array
    symmetries: Symmetries


def is_bop(path: Path) -> bool:
    """Whether a folder is a BOP scene, a split (folder of scenes), or a data set with a test split."""
    return bool(_scene_folders(path) or _scene_folders(path / "test"))


def scenes_from_bop(path: Path | str) -> tuple[Scene, ...]:
    """Read a scene, a split, or a data set's test split; scenes in order. SourceError names the file and the entry."""
    path = Path(path)
    folders = _scene_folders(path) or _scene_folders(path / "test")
    if not folders:
        raise SourceError(f"data set {path}", got="no scene", expected=LAYOUT, remedy="Name the folder of one split.")
    return tuple(_scene(folder) for folder in folders)


def objects_from_models_info(path: Path | str) -> dict[int, ObjectFacts]:
    """Read models_info.json: object id -> diameter, box and symmetries. SourceError for anything malformed."""
    path = Path(path)
    return {int(key): _parsed(path, key, _facts, entry) for key, entry in _table(path).items()}


def box_from_bop(bbox_xywh: Sequence[float]) -> Array:
    """BOP's x, y, width, height of pixel indices -> (4,) corners: columns x .. x + w - 1 span x - 0.5 .. x + w - 0.5.

    BOP's own toolkit writes w = last - first column, so its boxes come out one pixel narrow on the right and below.
    """
    x, y, w, h = (float(v) for v in bbox_xywh)
    return np.array([x - 0.5, y - 0.5, x + w - 0.5, y + h - 0.5])


def _scene_folders(path: Path) -> list[Path]:
    if (path / CAMERA_FILE).is_file():
        return [path]
    if not path.is_dir():
        return []
    return sorted(folder for folder in path.iterdir() if (folder / CAMERA_FILE).is_file())


def _scene(folder: Path) -> Scene:
    if not folder.name.isdigit():
        raise SourceError(
            f"scene folder {folder}", got=folder.name, expected="a number for a name", remedy="Name it as BOP does."
        )
    images = _images(folder)
    cameras = _entries(folder / CAMERA_FILE, images)
    K = {im_id: _parsed(folder / CAMERA_FILE, im_id, _camera_matrix, entry) for im_id, entry in cameras.items()}
    sizes = {im_id: _parsed(folder / CAMERA_FILE, im_id, _stated_size, entry) for im_id, entry in cameras.items()}
    whole = {im_id: _parsed(folder / CAMERA_FILE, im_id, _whole_size, entry) for im_id, entry in cameras.items()}
    general = _general_camera(folder.parents[1] / GENERAL_CAMERA_FILE) if len(folder.parents) > 1 else None
    if general is not None:  # says for which size a K is, though not which images have it
        sizes |= {i: general[1] for i in K if sizes[i] is None and np.allclose(K[i], general[0], rtol=1e-3, atol=0)}
    return Scene(int(folder.name), images, K, _truth(folder, images), _without_none(sizes), _without_none(whole))


def _images(folder: Path) -> dict[int, Path]:
    """The images that are really there; JSON entries for others are ignored, since many copy only a part of a set."""
    files = sorted(p for p in folder.glob("rgb/*") if p.suffix.lower() in IMAGE_SUFFIXES and p.stem.isdigit())
    if not files:
        raise SourceError(
            f"scene {folder}",
            got="no image in rgb/",
            expected=f"numbered images ({', '.join(IMAGE_SUFFIXES)})",
            remedy="Copy the colour images; posekit does not run on grey or depth images alone.",
        )
    images = {int(p.stem): p for p in files}
    if len(images) != len(files):
        raise SourceError(f"scene {folder}", got="one image number twice", expected="one file each", remedy="Keep one.")
    return images


def _truth(folder: Path, images: Mapping[int, Path]) -> dict[int, tuple[TrueObject, ...]] | None:
    gt_path, info_path = folder / "scene_gt.json", folder / "scene_gt_info.json"
    if not gt_path.is_file():
        return None
    poses = _rows(gt_path, images)
    boxes = _rows(info_path, images) if info_path.is_file() else {}
    truth = {}
    for im_id, entries in poses.items():
        infos = boxes.get(im_id, [{}] * len(entries))
        if len(infos) != len(entries):
            raise _malformed(info_path, im_id, f"{len(infos)} objects", f"{len(entries)}, as scene_gt.json has")
        pairs = zip(entries, infos, strict=True)
        truth[im_id] = tuple(_parsed(gt_path, im_id, _true_object, pair) for pair in pairs)
    return truth


def _true_object(pair: tuple[dict[str, Any], dict[str, Any]]) -> TrueObject:
    gt, info = pair
    R = np.array(gt["cam_R_m2c"], dtype=np.float64).reshape(3, 3)
    rotation = nearest_rotation(R)
    if not float(np.abs(R - rotation).max()) < ROTATION_DIGITS:
        raise ValueError(f"cam_R_m2c {R.round(4).tolist()} is no rotation")
    t_m = np.array(gt["cam_t_m2c"], dtype=np.float64) / MM_PER_M
    fraction = info.get("visib_fract")
    return TrueObject(
        object_id=int(gt["obj_id"]),
        cam_from_obj=Pose(rotation, t_m),
        amodal_box_xyxy_px=_box(info.get("bbox_obj")),
        visible_box_xyxy_px=_box(info.get("bbox_visib")),
        visible_fraction=None if fraction is None else float(fraction),
    )


def _box(bbox_xywh: Sequence[float] | None) -> Array | None:
    """None for an absent box and for BOP's [-1, -1, -1, -1], which means that nothing is seen."""
    if bbox_xywh is None or min(bbox_xywh[2:]) <= 0:
        return None
    return box_from_bop(bbox_xywh)


def _stated_size(entry: dict[str, Any]) -> tuple[int, int] | None:
    """The size in an entry of scene_camera.json, which BOP does not ask for but many writers give."""
    return _size([entry["width"], entry["height"]]) if "width" in entry and "height" in entry else None


def _whole_size(entry: dict[str, Any]) -> tuple[int, int] | None:
    """posekit's own key, for images that are parts of larger ones."""
    return _size(entry["whole_wh_px"]) if "whole_wh_px" in entry else None


def _size(wh_px: Any) -> tuple[int, int]:
    width, height = wh_px
    if type(width) is not int or type(height) is not int or min(width, height) < 1:
        raise ValueError(f"image size {wh_px}")
    return width, height


def _general_camera(path: Path) -> tuple[Array, tuple[int, int]] | None:
    """K (3, 3) and image size of ROOT/camera.json, None where there is none or it is otherwise: nothing else needs it."""
    try:
        said = json.loads(path.read_text())
        K = np.array([[said["fx"], 0.0, said["cx"]], [0.0, said["fy"], said["cy"]], [0.0, 0.0, 1.0]], dtype=np.float64)
        return K, _size([said["width"], said["height"]])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _without_none(values: dict[int, T | None]) -> dict[int, T]:
    return {key: value for key, value in values.items() if value is not None}


def _camera_matrix(entry: dict[str, Any]) -> Array:
    return np.array(entry["cam_K"], dtype=np.float64).reshape(3, 3)


def _facts(entry: dict[str, Any]) -> ObjectFacts:
    low = np.array([entry[f"min_{axis}"] for axis in "xyz"], dtype=np.float64)
    size = np.array([entry[f"size_{axis}"] for axis in "xyz"], dtype=np.float64)
    diameter_m = float(entry["diameter"]) / MM_PER_M
    return ObjectFacts(diameter_m, low / MM_PER_M, (low + size) / MM_PER_M, symmetries_from_bop(entry))


def _entries(path: Path, images: Mapping[int, Path]) -> dict[int, Any]:
    """The file's entry per image that is there; SourceError where an image has none."""
    table = {int(key): value for key, value in _table(path).items()}
    missing = sorted(set(images) - set(table))
    if missing:
        raise _malformed(path, missing[0], "no entry", "one entry per image in rgb/")
    return {im_id: table[im_id] for im_id in images}


def _rows(path: Path, images: Mapping[int, Path]) -> dict[int, list[dict[str, Any]]]:
    """Entries that are lists of tables, one per object."""
    entries = _entries(path, images)
    for im_id, entry in entries.items():
        if not isinstance(entry, list) or not all(isinstance(row, dict) for row in entry):
            raise _malformed(path, im_id, repr(entry)[:60], "a list of tables, one per object")
    return entries


def _table(path: Path) -> dict[str, Any]:
    """A JSON object whose keys are numbers."""
    try:
        table = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(
            f"{path}", got=f"{type(error).__name__}: {error}", expected="a JSON file", remedy="Copy the data set again."
        ) from error
    if not isinstance(table, dict) or not all(key.isdecimal() for key in table):
        raise SourceError(f"{path}", got="other keys", expected="a table keyed by numbers", remedy="Use BOP's format.")
    return table


def _parsed(path: Path, key: object, parse: Callable[[Any], T], entry: Any) -> T:
    try:
        return parse(entry)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, InputError) as error:
        raise _malformed(
            path, key, f"{type(error).__name__}: {error}", "an entry as BOP's format describes it"
        ) from error
    except np.linalg.LinAlgError as error:
        raise _malformed(path, key, f"{error}", "finite numbers") from error


def _malformed(path: Path, key: object, got: object, expected: object) -> SourceError:
    return SourceError(f"{path}, entry {key}", got=got, expected=expected, remedy="Correct or copy the data set again.")
