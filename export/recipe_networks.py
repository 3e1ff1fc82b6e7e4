"""The networks that a recipe names: constructed, filled with their weights, and split into graphs and paths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from posekit.export.bank_recipe import BankRecipe
from posekit.export.checkpoint import load_checkpoint, network_from_factory
from posekit.export.fingerprint import code, fingerprint, user_code
from posekit.export.networks.entrance import Entrance
from posekit.export.networks.matcher import FlatMatcher, matcher_graph
from posekit.export.networks.own import detector_graph, embedder_graphs, own_paths, regressor_graphs
from posekit.export.recipe import DetectorRecipe, ExportRecipe, NetworkRecipe
from posekit.export.recipe_keys import RANDOM
from posekit.export.systems import GraphSource, PathPlan, system_named
from posekit.runtime.bank import Search
from posekit.runtime.crop import PRESETS, CropPreset
from posekit.runtime.errors import RecipeError

DETECTOR = "detector"


@dataclass(frozen=True, eq=False)
class TracedFrom:
    """What a graph is exported from. key: fingerprint of all that its fp32 file follows from."""

    graph: GraphSource
    key: str


@dataclass(frozen=True, eq=False)
class Network:
    """A network with its weights, as graphs to export and paths over them.

    origin: of the weights, for provenance.  key: fingerprint of all that the graphs follow from.
    """

    graphs: dict[str, GraphSource]
    paths: Mapping[str, PathPlan]
    crop: CropPreset
    origin: str
    key: str = ""


def check_default_path(recipe: ExportRecipe) -> None:
    """RecipeError unless it is a path of one of the networks."""
    names = []
    for entry in recipe.networks:
        if entry.system is not None:
            paths = system_named(entry.system).paths
        else:
            assert entry.role is not None  # the recipe's cross-check
            paths = own_paths(entry.role, entry.solver)
        names += [path_name(entry, name, paths) for name in paths]
    if recipe.default_path not in names:
        raise RecipeError(
            f"{recipe.path}: default_path",
            got=repr(recipe.default_path),
            expected=f"one of {', '.join(names)}",
            remedy="Name a path of this recipe.",
        )


def path_name(entry: NetworkRecipe, name: str, paths: Mapping[str, PathPlan]) -> str:
    """A network with one path gives it its own name."""
    return entry.name if len(paths) == 1 else f"{entry.name}.{name}"


def built_network(recipe: ExportRecipe, entry: NetworkRecipe) -> Network:
    """Construct and fill one network. Raises RecipeError, CheckpointError, ExportError."""
    crop = PRESETS[entry.crop] if isinstance(entry.crop, str) else entry.crop
    if entry.system is not None:
        system = system_named(entry.system)
        crop = crop or system.crop
        if not crop.is_square:
            raise _wrong(entry, f"a crop of {crop.written_size}", f"a square one, which {entry.system} is made for")
        network, origin = _weighted(recipe, entry, lambda: _constructed(entry, system.network))
        graphs = _searching(_normalised(system.graphs(network, crop), entry), entry.bank.search)
        return Network(graphs, system.paths, crop, origin, _key(entry, origin))
    assert entry.network is not None  # the recipe's cross-check
    assert entry.role is not None
    assert crop is not None
    name = entry.network
    network, origin = _weighted(recipe, entry, lambda: network_from_factory(name, entry.options, recipe.folder))
    entrance = Entrance(**entry.normalise.stated)
    if entry.role == "embedder":
        graphs = embedder_graphs(network, entrance, crop.wh_px, entry.threshold, entry.trunk)
        graphs = _searching(graphs, entry.bank.search)
    else:
        graphs = regressor_graphs(entry.role, network, entrance, crop.wh_px, entry.feeds, entry.trunk)
    return Network(graphs, own_paths(entry.role, entry.solver), crop, origin, _key(entry, origin))


def _normalised(graphs: dict[str, GraphSource], entry: NetworkRecipe | DetectorRecipe) -> dict[str, GraphSource]:
    """A system's graphs, whose entrances take what the recipe states and keep the rest. RecipeError if that is theirs."""
    modules = (module for source in graphs.values() for module in source.module.modules())
    entrances = [module for module in modules if isinstance(module, Entrance)]
    before = [entrance.stated for entrance in entrances]
    for entrance in entrances:
        entrance.state(**entry.normalise.stated)
    if entry.normalise.stated and before == [entrance.stated for entrance in entrances]:
        own = ", ".join(f"{name} {value}" for name, value in before[0].items())
        raise _wrong(entry, f"normalise as {entry.system} has it already", f"other numbers than its own {own}, or none")
    return graphs


def _searching(graphs: dict[str, GraphSource], search: Search) -> dict[str, GraphSource]:
    """With the matcher that the recipe's banks are made for."""
    flat = graphs.get("matcher")
    if flat is None:
        return graphs
    assert isinstance(flat.module, FlatMatcher)
    _, places, channels = flat.inputs[0].shape
    return graphs | {"matcher": matcher_graph(int(places), int(channels), flat.module.threshold, search)}


def _weighted(
    recipe: ExportRecipe, entry: NetworkRecipe | DetectorRecipe, make: Callable[[], nn.Module]
) -> tuple[nn.Module, str]:
    """A network with its weights, and where these are from."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(entry.seed)
        network = make().eval()
    if entry.checkpoint == RANDOM:
        return network, f"random weights (seed {entry.seed}), not for use"
    assert entry.checkpoint is not None  # the recipe's cross-check
    path = recipe.resolve(entry.checkpoint)
    digest = load_checkpoint(network, path, key=entry.checkpoint_key, prefix=entry.checkpoint_prefix)
    return network, f"sha256 {digest}"


def _constructed(entry: NetworkRecipe | DetectorRecipe, make: Callable[..., nn.Module]) -> nn.Module:
    try:
        return make(**entry.options)
    except (
        TypeError,
        ValueError,
        LookupError,
        ArithmeticError,
        RuntimeError,
    ) as error:  # torch refuses in any of these
        raise _wrong(entry, f"options {entry.options}: {error}", f"options of {entry.system}") from error


def detector_network(recipe: ExportRecipe, entry: DetectorRecipe) -> tuple[TracedFrom, str]:
    """A detector of posekit's own family, a system of ours or the user's network, and where its weights are from.

    Raises as `built_network` does.
    """
    if entry.system is not None:
        system = system_named(entry.system)
        network, origin = _weighted(recipe, entry, lambda: _constructed(entry, system.network))
        graphs = _normalised(system.graphs(network, system.crop), entry)
        return TracedFrom(graphs[DETECTOR], _key(entry, origin)), origin
    assert entry.network is not None  # the recipe's cross-check
    assert entry.input_wh_px is not None
    name = entry.network
    network, origin = _weighted(recipe, entry, lambda: network_from_factory(name, entry.options, recipe.folder))
    entrance = Entrance(**entry.normalise.stated)
    return TracedFrom(detector_graph(network, entrance, entry.input_wh_px), _key(entry, origin)), origin


def _key(entry: NetworkRecipe | DetectorRecipe, origin: str) -> str:
    """What views a bank has, solvers and thresholds do not change a graph."""
    if isinstance(entry, NetworkRecipe):
        entry = replace(entry, bank=BankRecipe(search=entry.bank.search), solver=None, objects=())
    else:
        entry = replace(entry, labels=None, objects={}, variants=None, score_threshold=None, iou_threshold=None)
    return fingerprint(code(), user_code() if entry.network else "", entry, origin)


def _wrong(entry: NetworkRecipe | DetectorRecipe, got: object, expected: object) -> RecipeError:
    what = f"network {entry.name!r}" if isinstance(entry, NetworkRecipe) else DETECTOR
    return RecipeError(what, got=got, expected=expected, remedy="Correct the recipe.")
