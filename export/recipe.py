"""What to export, as the user writes it: a TOML file, read strictly, hashed, never rewritten."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from posekit.export.bank_recipe import BankRecipe
from posekit.export.recipe_keys import keys_without_effect
from posekit.export.verify.gates import Gates
from posekit.runtime.crop import PRESETS, CropPreset
from posekit.runtime.errors import InputError, RecipeError
from posekit.runtime.manifest import PLAIN_NAME, ContinuousSymmetry, SolverEntry
from posekit.runtime.records import RecordProblem, record_from
from posekit.runtime.solvers import METHODS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

OwnRole = Literal["embedder", "pose", "correspondence"]


@dataclass(frozen=True)
class ObjectRecipe:
    """mesh: file, with lengths in `unit`.  symmetries: in metres, 16 numbers per discrete one; or models_info: a BOP file."""

    id: int
    name: str
    mesh: str
    unit: Literal["m", "cm", "mm", "inch"]
    symmetries_discrete: tuple[tuple[float, ...], ...] = ()
    symmetries_continuous: tuple[ContinuousSymmetry, ...] = ()
    models_info: str | None = None


@dataclass(frozen=True)
class NormaliseRecipe:
    """(x / 255 - mean) / std, in RGB order; bgr: the channels are swapped afterwards.

    What is left out is the system's own; of the user's own network ImageNet's mean and std, and RGB.
    """

    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    bgr: bool | None = None

    @property
    def stated(self) -> dict[str, Any]:
        """What is not left out, as keywords of posekit.export.networks.entrance.Entrance."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class NetworkRecipe:
    """One network and its weights: of a published system, or `network` = "module:factory" of the user's own.

    checkpoint: a file, or "random" with `seed` (for measuring speed; such a bundle says so).
    checkpoint_key, checkpoint_prefix: see posekit.export.checkpoint.  options: keyword arguments of the network.
    crop: a name of posekit.runtime.crop.PRESETS, or a preset spelt out.  objects: ids, all if left out.
    For the user's own: `role`, `crop`, and as the role needs `feeds`, `threshold` (see posekit.export.networks.own).
    false_accept_rate: of a bank, share of other objects and backgrounds that its score threshold may let through; 1 for no
    threshold. Calibrated on the calibration's frames, and without these on rendered ones.
    trunk: submodules that run in float16 in the fp16 variant; left out, they are found. A system has its own.
    Where each key has an effect: posekit.export.recipe_keys.
    """

    name: str
    checkpoint: str
    system: str | None = None
    network: str | None = None
    seed: int = 0
    checkpoint_key: str | None = None
    checkpoint_prefix: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    crop: str | CropPreset | None = None
    objects: tuple[int, ...] = ()
    bank: BankRecipe = field(default_factory=BankRecipe)
    false_accept_rate: float = 0.05
    solver: SolverEntry | None = None
    role: OwnRole | None = None
    normalise: NormaliseRecipe = field(default_factory=NormaliseRecipe)
    feeds: tuple[str, ...] = ("crops",)
    threshold: float | None = None
    trunk: tuple[str, ...] = ()


@dataclass(frozen=True)
class PrecisionRecipe:
    """Variants beside fp32 of every pose network and the detector. method: how int8 ranges follow from the calibration crops."""

    variants: tuple[Literal["fp16", "int8"], ...] = ()
    method: Literal["minmax", "percentile", "entropy"] = "minmax"


@dataclass(frozen=True)
class CropsRecipe:
    """Real crops. source: recorded frames, as `posekit run` takes them.  boxes: "gt", "gt-amodal" or a file.  camera: a
    camera file, as `posekit run` takes it, for a source that brings none.  max_crops: spread evenly over the source.
    Paths are relative to the recipe.
    """

    source: str
    boxes: str = "gt"
    camera: str | None = None
    max_crops: int = 256


@dataclass(frozen=True)
class EnginesRecipe:
    """What engines are built for. crops_per_pass: fewest (1), usual and most crops that go through a network at once; or
    "measured", on the boxes in the calibration's frames; left out: 1, 4 and 16. More crops go through in several passes.
    """

    crops_per_pass: tuple[int, int, int] | Literal["measured"] | None = None


@dataclass(frozen=True)
class DetectorRecipe:
    """A detector: a third party's `onnx`; or with a `checkpoint`, in posekit's own family, a `system` or a `network`.

    family: a row of posekit.runtime.detector.FAMILIES.  labels: a file with one class name per line, else the ONNX
    file's own.  objects: class name to object id; left out: by the objects' names.  Thresholds: the family's if left out.
    variants: left out, those of [precision]; fp16 is authored in torch, so an `onnx` has int8 alone.
    """

    family: str
    onnx: str | None = None
    system: str | None = None
    network: str | None = None
    checkpoint: str | None = None
    seed: int = 0
    checkpoint_key: str | None = None
    checkpoint_prefix: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    normalise: NormaliseRecipe = field(default_factory=NormaliseRecipe)
    input_wh_px: tuple[int, int] | None = None
    labels: str | None = None
    objects: dict[str, int] = field(default_factory=dict)
    variants: tuple[Literal["fp16", "int8"], ...] | None = None
    letterbox_value: int | None = None
    score_threshold: float | None = None
    iou_threshold: float | None = None


@dataclass(frozen=True)
class ExportRecipe:
    """A whole recipe. path and sha256 are those of the file that it was read from; they are no keys.

    calibration: crops that int8 ranges are from.  verification: crops that variants are compared on; left out, every
    other frame of the calibration's source, which is then not calibrated on.  gates: what a variant may cost.
    """

    name: str
    default_path: str
    objects: tuple[ObjectRecipe, ...]
    networks: tuple[NetworkRecipe, ...]
    detector: DetectorRecipe | None = None
    precision: PrecisionRecipe = field(default_factory=PrecisionRecipe)
    calibration: CropsRecipe | None = None
    verification: CropsRecipe | None = None
    gates: Gates = field(default_factory=Gates)
    engines: EnginesRecipe = field(default_factory=EnginesRecipe)
    path: str = ""
    sha256: str = ""

    @property
    def detector_variants(self) -> tuple[Literal["fp16", "int8"], ...]:
        """Beside fp32."""
        if self.detector is None:
            return ()
        if self.detector.variants is not None:
            return self.detector.variants
        return tuple(v for v in self.precision.variants if v == "int8" or self.detector.onnx is None)

    @property
    def folder(self) -> Path:
        return Path(self.path).parent

    def resolve(self, name: str) -> Path:
        """A path of the recipe, which is relative to the recipe's folder."""
        return self.folder / name


def recipe_from_toml(path: Path | str) -> ExportRecipe:
    """Read and cross-check. RecipeError names the file and the key that does not fit."""
    path = Path(path)
    try:
        content = path.read_bytes()
        keys = tomllib.loads(content.decode())
        if {"path", "sha256"} & set(keys):
            raise RecordProblem("recipe", "path or sha256", "no such keys")
        origin = {"path": str(path), "sha256": hashlib.sha256(content).hexdigest()}
        recipe = record_from(ExportRecipe, keys | origin, "recipe")
        _cross_check(recipe)
        for where, got, expected in keys_without_effect(recipe, keys):
            raise RecordProblem(where, got, expected)
    except RecordProblem as problem:
        raise RecipeError(
            f"{path}: {problem.where}",
            got=problem.got,
            expected=problem.expected,
            remedy="Correct the recipe.",
        ) from problem
    except (OSError, ValueError, RecursionError, InputError) as error:
        raise RecipeError(
            f"{path}",
            got=str(error)[:300],
            expected="a recipe in TOML",
            remedy="Correct the recipe.",
        ) from error
    return recipe


def _cross_check(recipe: ExportRecipe) -> None:
    """What types alone do not say."""
    _check_names("recipe.name", [recipe.name])
    _check_names("recipe.objects", [entry.name for entry in recipe.objects])
    _check_names("recipe.networks", [entry.name for entry in recipe.networks])
    ids = [entry.id for entry in recipe.objects]
    if len(set(ids)) != len(ids) or any(not 0 <= i < 2**31 for i in ids):
        raise RecordProblem("recipe.objects.id", ids, "distinct ids from 0")
    problems = (_object_problems, _network_problems, _detector_problems, _precision_problems, _engine_problems)
    for where, got, expected in (row for find in problems for row in find(recipe)):
        raise RecordProblem(where, got, expected)


def _check_names(where: str, names: list[str]) -> None:
    """Names become names of members and graphs."""
    odd = [name for name in names if not PLAIN_NAME.fullmatch(name)]
    if odd or not names or len(set(names)) != len(names):
        raise RecordProblem(where, odd or names, "at least one, each once, of letters, digits, - and _")


Problems = Iterator[tuple[str, object, str]]


def _object_problems(recipe: ExportRecipe) -> Problems:
    for entry in recipe.objects:
        where = f"recipe.objects.{entry.name}"
        if entry.models_info and (entry.symmetries_discrete or entry.symmetries_continuous):
            yield where, "models_info and symmetries", "one of them"
        if any(len(matrix) != 16 for matrix in entry.symmetries_discrete):
            yield f"{where}.symmetries_discrete", "another count", "16 numbers each, a 4x4 matrix row by row"


def _network_problems(recipe: ExportRecipe) -> Problems:
    ids = {entry.id for entry in recipe.objects}
    for entry in recipe.networks:
        where = f"recipe.networks.{entry.name}"
        if entry.name == "detector":
            yield where, "this name", "another one: the [detector] has it"
        if (entry.system is None) == (entry.network is None):
            yield where, _named(entry, ("system", "network")), "either system or network"
        if entry.network and (entry.role is None or entry.crop is None):
            yield where, _named(entry, ("role", "crop")), 'role and crop, which network = "module:factory" needs'
        if entry.role == "correspondence" and entry.solver is None:
            yield where, "no solver", "a solver section, which role = correspondence needs"
        if entry.solver and entry.solver.method not in METHODS:
            yield f"{where}.solver.method", repr(entry.solver.method), f"one of {', '.join(METHODS)}"
        if not 0 <= entry.seed < 2**63:
            yield f"{where}.seed", entry.seed, "0 to 2**63 - 1"
        if not set(entry.objects) <= ids:
            yield f"{where}.objects", list(entry.objects), f"ids among {sorted(ids)}"
        if isinstance(entry.crop, str) and entry.crop not in PRESETS:
            yield f"{where}.crop", repr(entry.crop), f"a table, or one of {', '.join(PRESETS)}"
        if not 0 < entry.false_accept_rate <= 1:
            yield f"{where}.false_accept_rate", entry.false_accept_rate, "more than 0, at most 1"
        if not 0 < entry.bank.max_angle_deg <= 180:
            yield f"{where}.bank.max_angle_deg", entry.bank.max_angle_deg, "more than 0, at most 180"
        if entry.bank.distance_m is not None and not entry.bank.distance_m > 0:
            yield f"{where}.bank.distance_m", entry.bank.distance_m, "more than 0"
        if min(entry.bank.in_plane_steps, entry.bank.supersample) < 1:
            yield f"{where}.bank", "in_plane_steps or supersample below 1", "at least 1"
        yield from _normalise_problems(f"{where}.normalise", entry.normalise)


def _normalise_problems(where: str, entry: NormaliseRecipe) -> Problems:
    """Others count pixels in 0..255; such numbers, read in 0..1, would show a network hardly anything."""
    mean, std = entry.mean or (0.0, 0.0, 0.0), entry.std or (1.0, 1.0, 1.0)
    if any(not s > 0 for s in std):
        yield f"{where}.std", list(std), "more than 0"
    elif max(std) > 1 or not 0 <= min(mean) <= max(mean) <= 1:
        seen = [(pixel - m) / s for pixel in (0, 1) for m, s in zip(mean, std, strict=True)]
        got = f"mean {list(mean)} and std {list(std)}: the network would see {min(seen):.3g} to {max(seen):.3g}"
        scaled = (", ".join(f"{number / 255:.4g}" for number in numbers) for numbers in (mean, std))
        of_bytes = "mean = [{}], std = [{}]".format(*scaled)
        yield where, got, f"mean and std of pixels in 0..1. If these are of pixels in 0..255, write {of_bytes}"


def _detector_problems(recipe: ExportRecipe) -> Problems:
    entry = recipe.detector
    if entry is None:
        return
    where, ids = "recipe.detector", {e.id for e in recipe.objects}
    kinds = ("onnx", "system", "network")
    if sum(getattr(entry, kind) is not None for kind in kinds) != 1:
        yield where, _named(entry, kinds), "one of onnx, system and network"
        return
    if entry.network and (entry.checkpoint is None or entry.input_wh_px is None):
        yield where, _named(entry, ("checkpoint", "input_wh_px")), "checkpoint and input_wh_px, which network needs"
    if entry.system and entry.checkpoint is None:
        yield where, "no checkpoint", "a checkpoint, which system needs"
    if entry.onnx is None and entry.family != "posekit":
        yield f"{where}.family", repr(entry.family), "'posekit', the family of torch networks"
    if not set(recipe.detector_variants) <= set(recipe.precision.variants):
        yield f"{where}.variants", list(recipe.detector_variants), "variants among those of [precision]"
    if entry.onnx and "fp16" in recipe.detector_variants:
        yield f"{where}.variants", "fp16 of an onnx file", "int8 alone: fp16 is authored in torch"
    if not set(entry.objects.values()) <= ids:
        yield f"{where}.objects", entry.objects, f"ids among {sorted(ids)}"
    if entry.input_wh_px and min(entry.input_wh_px) < 1:
        yield f"{where}.input_wh_px", list(entry.input_wh_px), "at least 1 x 1"
    if not 0 <= entry.seed < 2**63:
        yield f"{where}.seed", entry.seed, "0 to 2**63 - 1"
    yield from _normalise_problems(f"{where}.normalise", entry.normalise)
    for name, low, high in (("letterbox_value", 0, 255), ("score_threshold", 0, 1), ("iou_threshold", 0, 1)):
        value = getattr(entry, name)
        if value is not None and not low <= value <= high:
            yield f"{where}.{name}", value, f"{low} to {high}"


def _precision_problems(recipe: ExportRecipe) -> Problems:
    crops = {"calibration": recipe.calibration, "verification": recipe.verification}
    if recipe.precision.variants and recipe.calibration is None:
        yield "recipe.calibration", "left out", "real crops: variants are calibrated and verified on them"
    if len(set(recipe.precision.variants)) != len(recipe.precision.variants):
        yield "recipe.precision.variants", list(recipe.precision.variants), "each once"
    for name, entry in crops.items():
        if entry and entry.max_crops < 1:
            yield f"recipe.{name}.max_crops", entry.max_crops, "at least 1"
    for gate in fields(recipe.gates):
        limit = getattr(recipe.gates, gate.name)
        if limit is not None and not limit >= 0:
            yield f"recipe.gates.{gate.name}", limit, "0 or more"


def _engine_problems(recipe: ExportRecipe) -> Problems:
    crops = recipe.engines.crops_per_pass
    if crops == "measured" and recipe.calibration is None:
        yield "recipe.engines.crops_per_pass", "measured", "a [calibration] section, whose frames are counted"
    if isinstance(crops, tuple) and not 1 == crops[0] <= crops[1] <= crops[2]:
        yield "recipe.engines.crops_per_pass", list(crops), "1, the usual number and the most, in that order"


def _named(entry: object, keys: Iterable[str]) -> str:
    given = [key for key in keys if getattr(entry, key) is not None]
    return " and ".join(given) if given else "none of them"
