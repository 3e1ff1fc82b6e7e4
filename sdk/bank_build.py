"""Rebuild one object's template bank inside a bundle, with the embedder that the bundle carries."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from posekit.export.bank import BuiltBank, Progress, build_bank
from posekit.export.mesh import Unit, read_mesh
from posekit.export.pack import Content, check_output, pack_bundle
from posekit.export.recipe import BankRecipe
from posekit.runtime.backends.ort import OrtSession
from posekit.runtime.bank import search_of
from posekit.runtime.bundle import Bundle
from posekit.runtime.errors import InputError
from posekit.runtime.manifest import DEFAULT_VIEWS, Manifest, PathEntry


@dataclass(frozen=True)
class BankRequest:
    """What `posekit bank build` was asked.   output: the bundle to write, which may be the one read."""

    bundle: Path
    object_id: int
    mesh: Path
    unit: Unit
    output: Path
    views: BankRecipe
    path: str | None = None


def rebuild_bank(request: BankRequest, progress: Progress) -> BuiltBank:
    """Render the mesh, embed the views, write the bundle anew; everything else in it stays as it is, byte for byte."""
    model = read_mesh(request.mesh, request.unit)
    check_output(request.output)
    with Bundle(request.bundle) as bundle, tempfile.TemporaryDirectory(dir=request.output.resolve().parent) as folder:
        path = _bank_path(bundle, request)
        graph, file = bundle.manifest.graphs[path.graph].variants["fp32"], Path(folder) / "bank.safetensors"
        assert path.matcher is not None  # the manifest's cross-check
        views = replace(request.views, search=search_of(bundle.manifest.graphs[path.matcher].inputs))
        embedder = OrtSession(bundle.read(graph))
        try:
            built = build_bank(
                file,
                embedder,
                bundle.manifest.files[graph].sha256,
                model,
                request.object_id,
                path.crop,
                views,
                progress,
            )
        finally:
            embedder.close()
        manifest = _matching(bundle.manifest, path.matcher, built.views)
        members: dict[str, Content] = {member: bytes(bundle.read(member)) for member in bundle.manifest.files}
        members[path.banks[str(request.object_id)]] = file
        pack_bundle(request.output, manifest, members)
    return built


def _matching(manifest: Manifest, matcher: str, views: int) -> Manifest:
    """With a matcher whose engines take as many views."""
    graph = manifest.graphs[matcher]
    most = max(views, graph.views or DEFAULT_VIEWS)
    return replace(manifest, graphs=manifest.graphs | {matcher: replace(graph, views=most)})


def _bank_path(bundle: Bundle, request: BankRequest) -> PathEntry:
    """The path whose bank it is: the one named, or the first that has a bank of the object."""
    for name, path in bundle.manifest.paths.items():
        if str(request.object_id) in path.banks and request.path in (None, name):
            return path
    having = {name: sorted(map(int, path.banks)) for name, path in bundle.manifest.paths.items() if path.banks}
    raise InputError(
        f"bank of object {request.object_id}" + (f" for path {request.path!r}" if request.path else ""),
        got="no such bank in the bundle",
        expected=f"one of {having}" if having else "a bundle with a bank path",
        remedy="See posekit inspect for objects and paths.",
    )
