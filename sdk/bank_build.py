"""Banks inside a bundle, built where the bundle is: no torch, and no Embree where that has no wheel.

A bank of an object is built anew, an object is added with its banks, or a bank is written as a file of its own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from posekit.export.bank import BuiltBank, build_bank
from posekit.export.bank_ceiling import bank_ceiling
from posekit.export.bank_check import SelfCheck, check_same_object, check_symmetries, is_colourless, self_check
from posekit.export.bank_recipe import BankRecipe, recipe_of_bank
from posekit.export.mesh import ObjectModel, Unit, read_mesh
from posekit.export.objects import BundledObject, object_from_model
from posekit.export.pack import Content, check_output, pack_bundle
from posekit.runtime.atomic import replacing
from posekit.runtime.backends.ort import OrtSession
from posekit.runtime.bank import bank_from_bytes, search_of
from posekit.runtime.bop import objects_from_models_info
from posekit.runtime.bundle import Bundle
from posekit.runtime.errors import BankError, InputError, OutputError
from posekit.runtime.manifest import DEFAULT_VIEWS, PLAIN_NAME, Manifest, ObjectEntry, PathEntry
from posekit.runtime.object_model import object_model, symmetries_from_entry
from posekit.runtime.symmetry import Symmetries

BANK_FILE = ".safetensors"
MOST_NAME = 64  # characters of an object's name
MOST_FOLDS = 64
AXES = {"x": (1.0, 0.0, 0.0), "y": (0.0, 1.0, 0.0), "z": (0.0, 0.0, 1.0)}
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class SymmetryWish:
    """How an object's symmetry was stated. turns: "none", "z" (any turn about z) or "z/4" (quarter turns), x and y alike.

    models_info: a BOP file that states it instead.  Neither: none is assumed.
    """

    turns: tuple[str, ...] = ()
    models_info: Path | None = None


@dataclass(frozen=True)
class BankRequest:
    """What `posekit bank build` or `bank add` was asked.

    output: the bundle to write, which may be the one read, or a bank file of its own (.safetensors).
    sphere, in_plane_steps: None for what the bundle's own banks have.  path: None for the first with a bank of the object.
    name: of an object to add, None where a bank is built again.  replace_model: the mesh takes the place of the object's.
    """

    bundle: Path
    object_id: int
    mesh: Path
    unit: Unit
    output: Path
    sphere: int | None = None
    in_plane_steps: int | None = None
    path: str | None = None
    name: str | None = None
    replace_model: bool = False
    symmetry: SymmetryWish = SymmetryWish()


@dataclass(frozen=True)
class BuiltBanks:
    """banks: by path.  checks: by path, of an object that is new or has a new model.  told: what was assumed."""

    banks: dict[str, BuiltBank]
    checks: dict[str, SelfCheck]
    told: tuple[str, ...] = ()


def rebuild_bank(request: BankRequest, progress: Progress) -> BuiltBanks:
    """Render the mesh, embed the views, write the bundle anew; everything else in it stays as it is, byte for byte.

    MeshError for a mesh of another object, unless the object's model is to be replaced too.
    """
    model = read_mesh(request.mesh, request.unit)
    to_file = request.output.suffix == BANK_FILE
    if not to_file:
        check_output(request.output)
    with Bundle(request.bundle) as bundle, _folder_beside(request.output) as folder:
        name, path = _bank_path(bundle, request)
        entry = next(entry for entry in bundle.manifest.objects if entry.id == request.object_id)
        if not request.replace_model:
            own_m = object_model(bundle, entry).vertices_m
            check_same_object(str(request.mesh), model, entry.id, entry.diameter_m, own_m)
            file = Path(folder) / f"bank{BANK_FILE}"
            built = _built(bundle, path, request, model, symmetries_from_entry(entry), file, progress)
            if to_file:
                with replacing(request.output) as target:
                    target.write(file.read_bytes())
            else:
                member = path.banks[str(request.object_id)]
                manifest = _with_banks(bundle.manifest, request.object_id, {name: (member, built)})
                pack_bundle(request.output, manifest, _members(bundle) | {member: file})
            return BuiltBanks({name: built}, {}, _colours_told(model))
        if to_file:
            raise InputError(
                "--replace-model", got=f"a bank file {request.output}", expected="a bundle", remedy="Leave one of them."
            )
        return _with_object(bundle, request, model, entry.name, Path(folder), progress)


def add_object(request: BankRequest, progress: Progress) -> BuiltBanks:
    """Add an object and a bank of it for every bank path; everything else stays as it is, byte for byte.

    InputError for an id or a name that the bundle has; ExportError where the object's own views are not found again.
    """
    model = read_mesh(request.mesh, request.unit)
    check_output(request.output)
    with Bundle(request.bundle) as bundle, _folder_beside(request.output) as folder:
        assert request.name is not None  # the command's own option
        _check_new(bundle.manifest, request.object_id, request.name)
        return _with_object(bundle, request, model, request.name, Path(folder), progress)


def symmetries_from_wish(wish: SymmetryWish, object_id: int, model: ObjectModel) -> tuple[Symmetries, str]:
    """The symmetries that were stated, about axes through the surface's centroid, and the sentence that says so.

    MeshError for one that moves the surface, InputError for what is none.
    """
    if wish.models_info is not None:
        facts = objects_from_models_info(wish.models_info)
        if object_id not in facts:
            raise InputError(
                f"object {object_id}",
                got=f"no entry in {wish.models_info}",
                expected=sorted(facts),
                remedy="Check the id.",
            )
        symmetries, told = facts[object_id].symmetries, f"symmetry: as {wish.models_info} has it"
    elif not set(wish.turns) - {"none"}:
        stated = "stated" if wish.turns else "assumed; --symmetry says otherwise"
        return Symmetries(), f"symmetry: none, {stated}"
    else:
        symmetries = _turns(wish.turns, np.asarray(model.as_trimesh.centroid, np.float64))
        told = f"symmetry: {', '.join(wish.turns)} through the surface's centroid"
    check_symmetries(model, symmetries)
    return symmetries, told


def _turns(turns: tuple[str, ...], centre_m: np.ndarray) -> Symmetries:
    continuous, discrete = [], []
    for turn in turns:
        axis, _, fold = turn.partition("/")
        folds = int(fold) if fold.isdigit() else 0
        if axis not in AXES or (fold and not 2 <= folds <= MOST_FOLDS) or (turn.endswith("/")):
            raise InputError(
                f"symmetry {turn!r}", got=turn, expected='"none", "z" or "z/4", with x, y or z', remedy="Correct it."
            )
        about = (np.array(AXES[axis]), centre_m)
        if not fold:
            continuous.append(about)
        else:
            discrete += list(Symmetries(continuous=(about,)).transforms(n_steps=folds)[1:])
    return Symmetries(tuple(discrete), tuple(continuous))


def _colours_told(model: ObjectModel) -> tuple[str, ...]:
    if not is_colourless(model):
        return ()
    return ("colours: the mesh has one all over, so that its bank knows the shape alone",)


def _with_object(
    bundle: Bundle, request: BankRequest, model: ObjectModel, name: str, folder: Path, progress: Progress
) -> BuiltBanks:
    """Write the bundle with an object, new or with a new model, and its banks, once its own views are found again."""
    symmetries, told = symmetries_from_wish(request.symmetry, request.object_id, model)
    row = object_from_model(model, model, request.object_id, name, symmetries)
    banks: dict[str, BuiltBank] = {}
    of_path: dict[str, tuple[str, BuiltBank]] = {}
    members: dict[str, Content] = {}
    for path_name, path in _embedding_paths(bundle, request.object_id).items():
        member = path.banks.get(str(request.object_id), f"banks/{path_name}.{name}{BANK_FILE}")
        file = folder / f"{path_name}{BANK_FILE}"
        banks[path_name] = _built(bundle, path, request, model, symmetries, file, progress)
        of_path[path_name] = (member, banks[path_name])
        members[member] = file
    manifest = _with_entry(_with_banks(bundle.manifest, request.object_id, of_path), row)
    draft = folder / "draft.posekit"
    pack_bundle(draft, manifest, _members(bundle) | members | {_member_of(bundle.manifest, row): row.member})
    with Bundle(draft) as written:
        checks = {path: self_check(written, path, request.object_id, model) for path in banks}
    with replacing(request.output) as target:
        target.write(draft.read_bytes())
    return BuiltBanks(banks, checks, (told, *_colours_told(model)))


def _built(
    bundle: Bundle,
    path: PathEntry,
    request: BankRequest,
    model: ObjectModel,
    symmetries: Symmetries,
    file: Path,
    progress: Progress,
) -> BuiltBank:
    graph = bundle.manifest.graphs[path.graph].variants["fp32"]
    embedder = OrtSession(bundle.read(graph))
    try:
        sha256, views = bundle.manifest.files[graph].sha256, _views(bundle, path, request)
        built = build_bank(file, embedder, sha256, model, request.object_id, path.crop, views, progress)
    finally:
        embedder.close()
    return replace(built, ceiling=bank_ceiling(bank_from_bytes(file.read_bytes(), file.name, symmetries), model))


def _views(bundle: Bundle, path: PathEntry, request: BankRequest) -> BankRecipe:
    """As the bundle's own bank of the object was made, else as its first one; what was asked for takes precedence."""
    predecessor = path.banks.get(str(request.object_id))
    own = predecessor or next(iter(path.banks.values()), None)
    try:
        made = recipe_of_bank(bank_from_bytes(bundle.read(own), own)) if own else BankRecipe()
    except BankError:  # of an older format, which is what it is built again for
        made = BankRecipe()
    assert path.matcher is not None  # the manifest's cross-check
    return replace(
        made,
        sphere=request.sphere or made.sphere,
        in_plane_steps=request.in_plane_steps or made.in_plane_steps,
        distance_m=made.distance_m if predecessor and not request.replace_model else None,  # else of another size
        search=search_of(bundle.manifest.graphs[path.matcher].inputs),
    )


def _with_banks(manifest: Manifest, object_id: int, banks: dict[str, tuple[str, BuiltBank]]) -> Manifest:
    """With banks of one object, by path a member and what it holds.

    Matchers' engines take as many views. A threshold that was calibrated on the bank's predecessor goes with that.
    """
    for name, (member, built) in banks.items():
        path, key = manifest.paths[name], str(object_id)
        assert path.matcher is not None  # the manifest's cross-check
        graph = manifest.graphs[path.matcher]
        matcher = replace(graph, views=max(built.views, graph.views or DEFAULT_VIEWS))
        changed = replace(
            path,
            banks=path.banks | {key: member},
            object_ids=path.object_ids if object_id in path.object_ids else (*path.object_ids, object_id),
            rejection={i: rejection for i, rejection in path.rejection.items() if i != key},
        )
        manifest = replace(
            manifest,
            graphs=manifest.graphs | {path.matcher: matcher},
            paths=manifest.paths | {name: changed},
        )
    return manifest


def _with_entry(manifest: Manifest, row: BundledObject) -> Manifest:
    """With an object, which takes the place of the one with its id."""
    entry = replace(row.entry, model=_member_of(manifest, row))
    others = [entry if other.id == entry.id else other for other in manifest.objects]
    known = any(other.id == entry.id for other in manifest.objects)
    return replace(manifest, objects=(*others, *(() if known else (entry,))))


def _member_of(manifest: Manifest, row: BundledObject) -> str:
    own: list[ObjectEntry] = [entry for entry in manifest.objects if entry.id == row.entry.id]
    return own[0].model if own else row.entry.model


def _members(bundle: Bundle) -> dict[str, Content]:
    return {member: bytes(bundle.read(member)) for member in bundle.manifest.files}


def _check_new(manifest: Manifest, object_id: int, name: str) -> None:
    names = {entry.name: entry.id for entry in manifest.objects}
    if object_id < 0 or object_id in names.values():
        taken = f"{object_id}, one of {sorted(names.values())}" if object_id >= 0 else str(object_id)
        raise InputError("object id", got=taken, expected="a new one", remedy="posekit bank build has the old ones.")
    if name in names or len(name) > MOST_NAME or not PLAIN_NAME.fullmatch(name):
        raise InputError(
            "object name", got=repr(name), expected="a new one of letters, digits, - and _", remedy="Choose another."
        )


def _embedding_paths(bundle: Bundle, object_id: int) -> dict[str, PathEntry]:
    """Every bank path. InputError where none of them can take another object."""
    paths = {name: path for name, path in bundle.manifest.paths.items() if path.kind == "bank"}
    if not paths:
        raise InputError(
            f"object {object_id}", got="a bundle without a bank path", expected="one", remedy="Export it with a bank."
        )
    for name, path in paths.items():
        feeds = {spec.name for spec in bundle.manifest.graphs[path.graph].inputs}
        if "label" in feeds and object_id not in path.object_ids:
            raise InputError(
                f"object {object_id} for path {name}",
                got="an embedder that is told which object it sees",
                expected="one that takes any",
                remedy="Train and export it with the new object.",
            )
    return paths


def _folder_beside(output: Path) -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(dir=output.resolve().parent)
    except OSError as error:
        raise OutputError(
            f"output {output}", got=error, expected="a writable folder with room", remedy="Choose another place."
        ) from error


def _bank_path(bundle: Bundle, request: BankRequest) -> tuple[str, PathEntry]:
    """The path whose bank it is: the one named, or the first that has a bank of the object."""
    for name, path in bundle.manifest.paths.items():
        if str(request.object_id) in path.banks and request.path in (None, name):
            return name, path
    having = {name: sorted(map(int, path.banks)) for name, path in bundle.manifest.paths.items() if path.banks}
    raise InputError(
        f"bank of object {request.object_id}" + (f" for path {request.path!r}" if request.path else ""),
        got="no such bank in the bundle",
        expected=f"one of {having}" if having else "a bundle with a bank path",
        remedy="posekit bank add adds an object; see posekit inspect for objects and paths.",
    )
