"""What `precision.py` measures: the published systems at full size with random weights, and the reference models."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from posekit.export.pipeline import export_recipe
from posekit.export.recipe import recipe_from_toml
from posekit.export.recipe_networks import Network, built_network
from posekit.export.reference.demo import write_demo
from posekit.export.systems import system_named
from posekit.runtime.bop import objects_from_models_info
from posekit.runtime.bundle import Bundle
from posekit.runtime.manifest import ObjectEntry

SEED = 0
SCENES = 80  # about two objects each, and every other scene is calibrated on
PICTURES = f"{SCENES} ray-traced scenes"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Subject:
    """network: graphs to export, with their weights.  frames: a BOP data set of `objects`.  pictures: what it is, in words.

    bundle: the same network in fp32, through which poses are found, of trained networks.
    paths: graph -> path of that bundle.
    """

    network: Network
    objects: tuple[ObjectEntry, ...]
    frames: Path
    pictures: str
    weights: str
    convolutional: bool = True
    bundle: Bundle | None = None
    paths: Mapping[str, str] = field(default_factory=dict)

    @property
    def trained(self) -> bool:
        return self.bundle is not None


@contextmanager
def full_size(
    frames: Path, progress: Progress, system: str, convolutional: bool = True, distance: str = "", **options: Any
) -> Iterator[Subject]:
    """A published system with random weights. options: of its network; none is the published size.

    distance: head whose last output is how far the object is. Its bias becomes 1, so that objects are in front of the
    camera, as for every trained network: about 0 they are now before, now behind it, and their rotation turns over.
    """
    row = system_named(system)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        network = row.network(**options).eval()
    if distance:
        bias = [parameter for name, parameter in network.named_parameters() if name.startswith(f"{distance}.")][-1]
        with torch.no_grad():
            bias[-1] = 1.0
    facts = objects_from_models_info(frames / "models" / "models_info.json")
    objects = tuple(
        ObjectEntry(id_, f"object {id_}", fact.diameter_m, _triple(fact.bbox_min_m), _triple(fact.bbox_max_m), "")
        for id_, fact in facts.items()
    )
    graphs = {name: source for name, source in row.graphs(network, row.crop).items() if source.trunk}
    weights = f"random, seed {SEED}"
    yield Subject(Network(graphs, row.paths, row.crop, weights), objects, frames, frames.name, weights, convolutional)


@contextmanager
def reference(frames: Path, progress: Progress, name: str) -> Iterator[Subject]:
    """A network of the reference recipe, with its trained weights, on scenes that no training has seen.

    frames: not used: real frames show other objects than these.
    """
    with tempfile.TemporaryDirectory(prefix="posekit-study-") as folder:
        demo = write_demo(Path(folder), progress, SCENES)
        whole = recipe_from_toml(demo.recipe)
        entry = next(entry for entry in whole.networks if entry.name == name)
        network = built_network(whole, entry)
        path = name if len(network.paths) == 1 else f"{name}.{next(iter(network.paths))}"
        recipe = replace(whole, networks=(entry,), detector=None, default_path=path)
        export_recipe(recipe, Path(folder) / "fp32.posekit", progress)
        with Bundle(Path(folder) / "fp32.posekit") as bundle:
            paths = {row.graph.removeprefix(f"{name}."): path for path, row in bundle.manifest.paths.items()}
            own = replace(network, graphs={graph: network.graphs[graph] for graph in paths})
            yield Subject(own, bundle.manifest.objects, demo.scenes, PICTURES, "trained", True, bundle, paths)


SUBJECTS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "tram3d": (full_size, {"system": "tram3d", "convolutional": False}),
    "template-pose": (full_size, {"system": "template-pose"}),
    "gdr-net": (full_size, {"system": "gdr-net", "distance": "pnp.site"}),
    "surfemb-regressor": (full_size, {"system": "surfemb-regressor", "distance": "pnp.z"}),
    "reference-gdr": (reference, {"name": "gdr"}),
    "reference-bank": (reference, {"name": "bank"}),
}


def _triple(values: Any) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in values)
    return x, y, z
