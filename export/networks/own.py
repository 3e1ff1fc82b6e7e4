"""The user's own network behind posekit's graph contracts.

Its forward, by role; x is (B, 3, H, W) float32 for crops of W x H px, normalised as the recipe says:
embedder        forward(x) -> (B, C, h, w), (B, L, C) or (B, C): descriptors of any length; a map in the aspect ratio of the
                crop, L its places row by row
pose            forward(crops=x, K=..., ...) -> R (B, 3, 3), t (B, 3) in metres, score (B,), egocentric
correspondence  forward(crops=x, ...) -> mask (B, h, w) in 0..1, coords_m (B, h, w, 3) in the object frame
detector        forward(x (1, 3, H, W)) -> boxes (1, K, 4) x0 y0 x1 y1 in input pixels, scores (1, K), labels (1, K) int64
The keywords are the recipe's `feeds`, names of posekit.runtime.crop_batch.FEEDS. Several outputs are a tuple in that order, or
a dict by those names. posekit.export.networks.geometry turns quaternions, 6D rotations, SITE and log-depth into R and t.

`trunk`, in each function below: submodules of the network, by name, that may run in lower precision
(posekit.export.precision.trunk); where none is stated they are found, and the source's `trunk` says which. Exceptions
alone ("-head") are taken from what is found.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from posekit.export.example_feed import EXAMPLE_SIZES, example_feed
from posekit.export.networks.entrance import Entrance
from posekit.export.networks.local_head import places_of_map, unit_descriptors
from posekit.export.networks.matcher import matcher_graph
from posekit.export.precision.trunk import EXCEPT, found_trunk, read_trunk
from posekit.export.systems import GraphSource, PathPlan
from posekit.runtime.crop_batch import FEEDS
from posekit.runtime.errors import ExportError, RecipeError
from posekit.runtime.manifest import Role, SolverEntry
from posekit.runtime.paths import OUTPUTS as PATH_OUTPUTS
from posekit.runtime.tensor import TensorSpec
from posekit.runtime.yolo_decode import Shapes, posekit_shapes

NETWORK = "network"  # the attribute of every wrapper below that holds the user's network

# Role -> outputs with their shapes; a word is any size, equal words equal sizes.
OUTPUTS: dict[Role, Shapes] = {**PATH_OUTPUTS, "detector": posekit_shapes((0, 0), 0)}

DESCRIPTORS = "descriptors: float32 (batch, C, h, w), (batch, L, C) or (batch, C)"
DTYPES = {"labels": torch.int64}  # all others are float32


class OwnEmbedder(nn.Module):
    """crops -> descriptors (B, L, C), unit length per place."""

    def __init__(self, entrance: Entrance, network: nn.Module) -> None:
        super().__init__()
        self.entrance, self.network = entrance, network

    def forward(self, crops: Tensor) -> Tensor:
        (features,) = returned(self.network(self.entrance(crops)), "embedder")
        if features.ndim not in (2, 3, 4):
            raise _breaks(_listed([features], "embedder"), "embedder")
        if features.ndim == 4:
            features = places_of_map(features)
        return unit_descriptors(features if features.ndim == 3 else features[:, None])


class OwnRegressor(nn.Module):
    """Feeds in the order of `names`, to a network that takes them by name."""

    def __init__(self, role: Role, entrance: Entrance, network: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.role, self.entrance, self.network, self.names = role, entrance, network, tuple(names)

    def forward(self, *feeds: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(self.names, feeds, strict=True))
        named["crops"] = self.entrance(named["crops"])
        return returned(self.network(**named), self.role)


class OwnDetector(nn.Module):
    """image -> what the network says."""

    def __init__(self, entrance: Entrance, network: nn.Module) -> None:
        super().__init__()
        self.entrance, self.network = entrance, network

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return returned(self.network(self.entrance(image)), "detector")


def embedder_graphs(
    network: nn.Module,
    entrance: Entrance,
    crop_wh_px: tuple[int, int],
    threshold: float | None,
    trunk: Sequence[str] = (),
) -> dict[str, GraphSource]:
    """ "embedder" and its "matcher"; see posekit.export.networks.matcher for the threshold."""
    crops = (TensorSpec("crops", "uint8", ("batch", *crop_wh_px[::-1], 3)),)
    embedder = GraphSource("embedder", OwnEmbedder(entrance, network), crops, ("descriptors",))
    _, places, channels = trial(embedder)["descriptors"]
    return {"embedder": _with_trunk(embedder, trunk), "matcher": matcher_graph(int(places), int(channels), threshold)}


def regressor_graphs(
    role: Role,
    network: nn.Module,
    entrance: Entrance,
    crop_wh_px: tuple[int, int],
    feeds: Sequence[str],
    trunk: Sequence[str] = (),
) -> dict[str, GraphSource]:
    """One graph named after its role, "pose" or "correspondence"."""
    unknown = sorted(set(feeds) - {"crops", *FEEDS})
    if unknown or "crops" not in feeds or len(set(feeds)) != len(feeds):
        raise RecipeError(
            "feeds of the network",
            got=list(feeds),
            expected=f"crops, and any of {', '.join(FEEDS)}, each once",
            remedy="Correct feeds in the recipe.",
        )
    known = {"crops": ("uint8", (*crop_wh_px[::-1], 3)), **FEEDS}
    inputs = tuple(TensorSpec(name, known[name][0], ("batch", *known[name][1])) for name in feeds)
    source = GraphSource(role, OwnRegressor(role, entrance, network, feeds), inputs, tuple(OUTPUTS[role]))
    trial(source)
    return {role: _with_trunk(source, trunk)}


def detector_graph(
    network: nn.Module, entrance: Entrance, input_wh_px: tuple[int, int], trunk: Sequence[str] = ()
) -> GraphSource:
    """Input `image` uint8 (1, H, W, 3); the outputs of posekit's own detector family."""
    image = TensorSpec("image", "uint8", (1, input_wh_px[1], input_wh_px[0], 3))
    source = GraphSource("detector", OwnDetector(entrance, network), (image,), tuple(OUTPUTS["detector"]))
    trial(source)
    return _with_trunk(source, trunk)


def _with_trunk(source: GraphSource, stated: Sequence[str]) -> GraphSource:
    """Names are the network's own, or as reports have them, from the wrapper on: "backbone" or "network.backbone".

    Exceptions alone are of the trunk that is found.
    """
    own = dict(source.module.get_submodule(NETWORK).named_modules(remove_duplicate=False))

    def from_the_wrapper(name: str) -> str:
        bare = name.removeprefix(EXCEPT)
        whole = bare if bare not in own and f"{bare}.".startswith(f"{NETWORK}.") else f"{NETWORK}.{bare}"
        return f"{EXCEPT * name.startswith(EXCEPT)}{whole}"

    names = tuple(map(from_the_wrapper, stated))
    found = found_trunk(source, NETWORK) if all(name.startswith(EXCEPT) for name in names) else ()
    named = replace(source, trunk=(*found, *names))
    if names:
        read_trunk(named)
    return named


def own_paths(role: Role, solver: SolverEntry | None) -> dict[str, PathPlan]:
    """How the graphs above make a path; keyed like the paths of a system."""
    plans = {
        "embedder": {"bank": PathPlan("bank", "embedder", matcher="matcher")},
        "pose": {"regressor": PathPlan("regressor", "pose")},
        "correspondence": {"solver": PathPlan("correspondence", "correspondence", solver=solver)},
    }
    return plans[role]


def trial(source: GraphSource) -> dict[str, tuple[int, ...]]:
    """Run once and check what comes out: output name -> shape. ExportError where it breaks the role's contract."""
    source.module.eval()
    feed = example_feed(source.inputs, EXAMPLE_SIZES)
    try:
        with torch.inference_mode():
            found = source.module(*(torch.from_numpy(feed[spec.name]) for spec in source.inputs))
    except ExportError:
        raise
    except Exception as error:  # the user's forward may raise anything
        raise _breaks(f"{type(error).__name__}: {str(error)[:200]}", source.role) from error
    tensors = (found,) if isinstance(found, Tensor) else found
    sizes: dict[str, int] = {"batch": EXAMPLE_SIZES["batch"]}
    fits = [_fits(tensor, name, source.role, sizes) for tensor, name in zip(tensors, OUTPUTS[source.role], strict=True)]
    if not all(fits):
        raise _breaks(_listed(tensors, source.role, fits), source.role)
    return {name: tuple(tensor.shape) for name, tensor in zip(OUTPUTS[source.role], tensors, strict=True)}


def returned(found: object, role: Role) -> tuple[Tensor, ...]:
    """What a network gave as the outputs of its role, in order. ExportError, with what it gave, for anything else."""
    names = tuple(OUTPUTS[role])
    if isinstance(found, Mapping) and set(found) == set(names):
        found = tuple(found[name] for name in names)
    several = found.values() if isinstance(found, Mapping) else found
    outputs = tuple(several) if isinstance(several, Iterable) and not isinstance(several, Tensor) else (several,)
    if len(outputs) != len(names) or isinstance(found, Mapping) or not all(isinstance(o, Tensor) for o in outputs):
        keys = [str(key) for key in found] if isinstance(found, Mapping) else None
        raise _breaks(_listed(outputs, role, keys=keys), role)
    return outputs


def _fits(tensor: Tensor, name: str, role: Role, sizes: dict[str, int]) -> bool:
    """sizes: what each word stands for, filled in by the first that has it."""
    pattern = OUTPUTS[role][name]
    return (
        tensor.dtype == DTYPES.get(name, torch.float32)
        and tensor.ndim == len(pattern)
        and all(
            n == (sizes.setdefault(p, n) if isinstance(p, str) else p)
            for n, p in zip(tensor.shape, pattern, strict=True)
        )
    )


def _listed(outputs: Sequence[object], role: Role, fits: Sequence[bool] = (), keys: Sequence[str] | None = None) -> str:
    """Each output as it is: its name or place, type and shape, and whether it is what the role asks for."""
    names = keys or (list(OUTPUTS[role]) if len(outputs) == len(OUTPUTS[role]) else [])
    rows = []
    for i, output in enumerate(outputs):
        name = names[i] if names else f"output {i + 1}"
        is_tensor = isinstance(output, Tensor)
        what = f"{_dtype(output.dtype)} {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        rows.append(f"{name}: {what}" + " (this does not fit)" * (not is_tensor or (bool(fits) and not fits[i])))
    return f"for {EXAMPLE_SIZES['batch']} crops " * (role != "detector") + "; ".join(rows)


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _breaks(got: object, role: Role) -> ExportError:
    outputs = "; ".join(
        f"{name}: {_dtype(DTYPES.get(name, torch.float32))} ({', '.join(map(str, shape))})"
        for name, shape in OUTPUTS[role].items()
    )
    heads = "; posekit.export.networks.geometry turns quaternions, 6D rotations, SITE and log-depth into R and t"
    return ExportError(
        "the network's forward",
        got=got,
        expected=f"of role {role} {DESCRIPTORS if role == 'embedder' else outputs}",
        remedy=f"See posekit.export.networks.own for the contract{heads * (role == 'pose')}.",
    )
