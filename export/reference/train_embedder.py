"""Train the reference embedder (template-pose at nano size) on the view bank.

A query is a composed picture; its template is a clean render of a neighbouring view direction, turned like the query.
Half of the pairs of a batch are neighbours of one another, 10 to 50 degrees apart: what a bank must tell apart. Clutter
is an object like any other, so that the descriptors are not about three objects alone.
Usage: python -m posekit.export.reference.train_embedder --views DIR --out runs/embedder --steps 5000
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from posekit.export.bank import place_weights
from posekit.export.losses import template_infonce
from posekit.export.networks.entrance import Entrance
from posekit.export.reference.compose import (
    TrainingCrop,
    Views,
    label_object,
    template_sprite,
    training_crop,
    turned,
)
from posekit.export.reference.training import (
    Batch,
    Plan,
    loader_of,
    options_from,
    save_weights,
    start_from,
    train,
    worker_rng,
)
from posekit.export.reference.views import ViewSet
from posekit.export.systems.template_pose import TemplatePose
from posekit.runtime.crop import CropPreset, Image, crop
from posekit.runtime.detection import box_from_mask
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.pose import Array, Pose, allo_from_ego, rotation_angle_rad, rotation_from_rotvec

CROP = CropPreset("square", 96)
OPTIONS: dict[str, Any] = {"backbone": "nano", "channels": 16, "hidden": 96, "max_pool": True}
TAU = 0.1
CLUTTER_SHARE = 0.25
NEIGHBOUR_RAD = np.radians(8)  # between a query's view direction and its template's
SAME_RAD = np.radians(15)  # nearer views of one object are no negatives of each other
GROUP = 4  # pairs of one object that are drawn near each other


@dataclass(frozen=True, eq=False)
class Allocentric:
    """How a set's views look. R: (N, 3, 3).  direction: (N, 3) from the object to the camera, in its own frame; of a
    freely turning object in the half plane x > 0."""

    R: Array
    direction: Array

    @staticmethod
    def of(view_set: ViewSet) -> Allocentric:
        pairs = zip(view_set.arrays["R"], view_set.arrays["t_m"], strict=True)
        R = np.stack([allo_from_ego(R, t) for R, t in pairs])
        if view_set.object_id > 0 and label_object(view_set.object_id).symmetries.continuous:
            angle = np.arctan2(-R[:, 2, 1], -R[:, 2, 0])
            R = R @ np.stack([rotation_from_rotvec([0, 0, a]) for a in angle])
        return Allocentric(R, -R[:, 2])

    def near(self, i: int, low_rad: float, high_rad: float) -> npt.NDArray[np.int64]:
        """Views whose direction is so far from that of view i."""
        apart = np.arccos(np.clip(self.direction @ self.direction[i], -1, 1))
        return np.flatnonzero((apart >= low_rad) & (apart <= high_rad))


class Pairs(IterableDataset[Batch]):
    """Endless batches of queries and their templates."""

    def __init__(self, views: Path, grid: int, plan: Plan) -> None:
        self.views, self.grid, self.plan = views, grid, plan

    def __iter__(self) -> Iterator[Batch]:
        rng = worker_rng(self.plan.seed)
        views = Views.read(self.views)
        looks = [Allocentric.of(view_set) for view_set in (*views.objects, views.clutter)]
        while True:
            yield _batch(views, looks, self.grid, self.plan.batch, rng)


def _batch(views: Views, looks: list[Allocentric], grid: int, count: int, rng: np.random.Generator) -> Batch:
    queries: list[TrainingCrop] = []
    while len(queries) < count:
        label = len(views.objects) if rng.random() < CLUTTER_SHARE else int(rng.integers(len(views.objects)))
        first = training_crop(views, CROP, grid, rng, label=label)
        queries.append(first)
        around: Sequence[int] | npt.NDArray[np.int64]
        around = looks[label].near(first.view, np.radians(10), np.radians(50)) if label < len(views.objects) else []
        for view in rng.permutation(around)[: GROUP - 1]:
            queries.append(training_crop(views, CROP, grid, rng, label=label, view=int(view)))
    queries = queries[:count]
    made = [_template(views, looks[q.label], q, grid, rng) for q in queries]
    arrays = {
        "queries": np.stack([q.pixels for q in queries]),
        "templates": np.stack([pixels for pixels, _, _ in made]),
        "masks": np.stack([mask for _, mask, _ in made]),
        "negatives": _negatives(views, queries, [R for _, _, R in made]),
    }
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _template(
    views: Views, looks: Allocentric, query: TrainingCrop, grid: int, rng: np.random.Generator
) -> tuple[Image, np.ndarray, Array]:
    """Crop (S, S, 3), mask (L,) and allocentric rotation of a neighbouring view, turned to fit the query."""
    view_set = (*views.objects, views.clutter)[query.label]
    near = looks.near(query.view, 0.0, float(NEIGHBOUR_RAD)) if query.label < len(views.objects) else [query.view]
    view = int(rng.choice(near))
    R_query = allo_from_ego(query.cam_from_obj.R, query.cam_from_obj.t_m)
    between = R_query @ looks.R[view].T
    angle = float(np.arctan2(between[1, 0] - between[0, 1], between[0, 0] + between[1, 1]))
    sprite = turned(template_sprite(view_set, view), angle)
    size = sprite.mask.shape[0]
    camera = Intrinsics(np.array([[600.0, 0, size / 2], [0, 600, size / 2], [0, 0, 1]]), size, size)
    one = crop(sprite.rgb * sprite.mask[..., None], box_from_mask(sprite.mask), camera, CROP)
    mask = place_weights(sprite.mask, one.warp, CROP.wh_px, grid * grid) > 0
    return one.pixels, mask.astype(np.float32), Pose.from_rotvec([0, 0, angle]).R @ looks.R[view]


def _negatives(views: Views, queries: list[TrainingCrop], templates: list[Array]) -> np.ndarray:
    """(B, B) bool: template j shows another object than query i, or the same from elsewhere."""
    clutter = len(views.objects)
    names = [(q.label, views.clutter.arrays["object_id"][q.view] if q.label == clutter else 0) for q in queries]
    out = np.ones((len(queries), len(queries)), dtype=bool)
    for i, query in enumerate(queries):
        R = allo_from_ego(query.cam_from_obj.R, query.cam_from_obj.t_m)
        for j, R_template in enumerate(templates):
            if names[i] == names[j]:  # clutter may look alike from many sides
                out[i, j] = query.label != clutter and bool(rotation_angle_rad(R, R_template) > SAME_RAD)
    return out


class Losses:
    """InfoNCE between queries and templates, place by place under the template's mask."""

    def __init__(self, device: torch.device) -> None:
        self.entrance = Entrance().to(device)

    def __call__(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        both = network(self.entrance(torch.cat([batch["queries"], batch["templates"]])))
        queries, templates = both.chunk(2)
        return {"infonce": template_infonce(queries, templates, batch["masks"], TAU, batch["negatives"])}


def main(arguments: list[str] | None = None) -> None:
    options = options_from("posekit.export.reference.train_embedder", __doc__, 5000, 24, arguments)
    network = TemplatePose(**OPTIONS)
    history = start_from(network, options.start)
    loader = loader_of(Pairs(options.views, network.grid(CROP.side_px), options.plan), options.workers)
    trained = train(network, Losses(options.device), loader, options.out, options.plan, options.device)
    weights = options.out / "embedder.safetensors"
    views = Views.read(options.views)
    save_weights(trained, weights, options.plan, {"views": str(len(views.objects[0])), **history})
    print(f"wrote {weights}")


if __name__ == "__main__":
    main()
