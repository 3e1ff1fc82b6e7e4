"""Train the reference detector on whole pictures composed from the view bank.

Usage: python -m posekit.export.reference.train_detector --views DIR --out runs/detector --steps 6000
Stop it at any time; the same command goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from posekit.export.networks.anchor_free import AnchorFree
from posekit.export.reference.compose import (
    Alpha,
    Mask,
    Rgb,
    Views,
    background,
    lit_sprite,
    paste,
    photographed,
    resized,
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
from posekit.export.reference.views import REFERENCE_CAMERA, ViewSet
from posekit.export.systems.anchor_free import DetectionTarget, detection_losses
from posekit.runtime.detection import box_from_mask
from posekit.runtime.detector import iou

INPUT_WH_PX = (320, 240)  # half the reference camera
IMAGE_TO_INPUT = INPUT_WH_PX[0] / REFERENCE_CAMERA.width_px
OBJECT_SHARE, TWIN_SHARE, MAX_CLUTTER = 0.6, 0.1, 6
DISTANCE = (0.85, 1.35)  # factor on the size that the view's depth gives
WANTED, IGNORED = 0.35, 0.12  # visible share of a silhouette above which a thing must be, or may be, found
MAX_THINGS = 8
HELD_OUT_SEED, HELD_OUT_IMAGES = 987654321, 300
SCORE, OVERLAP = 0.3, 0.5


@dataclass(frozen=True, eq=False)
class Scene:
    """pixels: (H, W, 3) uint8.   boxes: (M, 4) of what is visible, edges in pixels.   labels: (M,) int64, -1 padding.
    ignored: (M,) bool.
    """

    pixels: Rgb
    boxes: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    ignored: npt.NDArray[np.bool_]


def training_scene(views: Views, rng: np.random.Generator) -> Scene:
    """Objects and clutter anywhere in the picture, pasted in random order, so that they hide each other."""
    width, height = INPUT_WH_PX
    picture = background(rng, width)[:height].copy()
    owner = np.zeros((height, width), np.int32)
    labels, whole_px = [-1], [0]  # of owner 0, the background
    for view_set, label in _cast(views, rng):
        rgb, alpha = scaled_sprite(view_set, rng)
        x, y = (int(v) for v in rng.uniform((0, 0), INPUT_WH_PX) - np.array(alpha.shape[::-1]) / 2)
        paste(picture, owner, rgb, alpha, (x, y), len(labels))
        labels.append(label)
        whole_px.append(int((alpha > 0.5).sum()))
    return Scene(photographed(picture, rng), *_truth(owner, labels, whole_px))


def _cast(views: Views, rng: np.random.Generator) -> list[tuple[ViewSet, int]]:
    """Who is in the picture, in the order of pasting: each object or not, now and then twice, and clutter."""
    chosen = [
        (s, i) for i, s in enumerate(views.objects) for share in (OBJECT_SHARE, TWIN_SHARE) if rng.random() < share
    ]
    chosen += [(views.clutter, -1)] * int(rng.integers(0, MAX_CLUTTER + 1))
    return [chosen[i] for i in rng.permutation(len(chosen))]


def scaled_sprite(view_set: ViewSet, rng: np.random.Generator) -> tuple[Rgb, Alpha]:
    """A lit view at the size that it has in the input, premultiplied by its coverage (h, w), 0..1."""
    i = int(rng.integers(len(view_set)))
    sprite = lit_sprite(view_set, i, rng)
    scale = IMAGE_TO_INPUT * rng.uniform(*DISTANCE) / float(view_set.arrays["warp"][i][0, 0])
    rgb, alpha = resized(sprite, max(round(scale * len(sprite.mask)), 8))
    quarter_turns = int(rng.integers(4))
    return np.asarray(np.rot90(rgb, quarter_turns)), np.asarray(np.rot90(alpha, quarter_turns))


def _truth(
    owner: npt.NDArray[np.int32], labels: list[int], whole_px: list[int]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Boxes of what is visible, padded to MAX_THINGS."""
    boxes = np.zeros((MAX_THINGS, 4), np.float32)
    kept, ignored = np.full(MAX_THINGS, -1, np.int64), np.zeros(MAX_THINGS, bool)
    row = 0
    for name, (label, whole) in enumerate(zip(labels, whole_px, strict=True)):
        visible: Mask = owner == name
        share = np.count_nonzero(visible) / max(whole, 1)
        if label < 0 or share < IGNORED or row == MAX_THINGS:
            continue
        boxes[row] = box_from_mask(visible) + 0.5
        kept[row], ignored[row] = label, share < WANTED
        row += 1
    return boxes, kept, ignored


class Scenes(IterableDataset[Batch]):
    """Endless batches; every worker and every resumed run draws its own."""

    def __init__(self, views: Path, plan: Plan) -> None:
        self.views, self.plan = views, plan

    def __iter__(self) -> Iterator[Batch]:
        rng = worker_rng(self.plan.seed)
        views = Views.read(self.views)
        while True:
            yield batch_of([training_scene(views, rng) for _ in range(self.plan.batch)])


def batch_of(scenes: list[Scene]) -> Batch:
    """Stack scenes as tensors named like the fields of Scene."""
    names = ("pixels", "boxes", "labels", "ignored")
    return {name: torch.from_numpy(np.stack([getattr(scene, name) for scene in scenes])) for name in names}


def losses_of(network: nn.Module, batch: Batch) -> dict[str, Tensor]:
    assert isinstance(network, AnchorFree)
    target = DetectionTarget(batch["boxes"], batch["labels"], batch["ignored"])
    return detection_losses(*network.maps(batch["pixels"]), target)


@torch.no_grad()
def held_out_figures(network: AnchorFree, views: Views, images: int = HELD_OUT_IMAGES) -> dict[str, str]:
    """Recall, precision and duplicates on composed pictures of a seed of their own (same views, other pictures).

    A detection counts if its class is right and it overlaps the visible box with IoU >= OVERLAP; a second one on the
    same thing is a duplicate, one on an ignored thing is nothing.
    """
    rng = np.random.default_rng(HELD_OUT_SEED)
    device = next(network.parameters()).device
    counts = np.zeros(4, np.int64)
    for _ in range(images):
        scene = training_scene(views, rng)
        out = network(torch.from_numpy(scene.pixels)[None].to(device))
        counts += _judged(scene, *(tensor[0].cpu().numpy() for tensor in out))
    wanted, found, duplicates, false = counts.tolist()
    return {
        "held_out": f"{images} composed pictures, score > {SCORE}, IoU >= {OVERLAP}",
        "recall": f"{found / max(wanted, 1):.4f} of {wanted}",
        "precision": f"{found / max(found + duplicates + false, 1):.4f}",
        "duplicates": str(duplicates),
        "false": str(false),
    }


def _judged(
    scene: Scene, boxes: npt.NDArray[Any], scores: npt.NDArray[Any], labels: npt.NDArray[Any]
) -> npt.NDArray[np.int64]:
    """Wanted, found, duplicate and false ones of a picture; detections come best first."""
    taken: set[int] = set()
    duplicates = false = 0
    for box, label in zip(boxes[scores > SCORE], labels[scores > SCORE], strict=True):
        overlap = iou(box, scene.boxes) * (scene.labels == label)
        best = int(overlap.argmax())
        if overlap[best] < OVERLAP:
            false += 1
        elif best in taken:
            duplicates += not scene.ignored[best]
        else:
            taken.add(best)
    wanted = (scene.labels >= 0) & ~scene.ignored
    return np.array([wanted.sum(), sum(bool(wanted[i]) for i in taken), duplicates, false])


def main(arguments: list[str] | None = None) -> None:
    options = options_from("posekit.export.reference.train_detector", __doc__, 6000, 16, arguments)
    views = Views.read(options.views)
    network = AnchorFree(classes=len(views.objects), input_wh_px=INPUT_WH_PX)
    history = start_from(network, options.start)
    loader = loader_of(Scenes(options.views, options.plan), options.workers)
    train(network, losses_of, loader, options.out, options.plan, options.device)
    facts = {"object_ids": str([s.object_id for s in views.objects]), "views": str(len(views.objects[0]))}
    weights = options.out / "anchor_free.safetensors"
    save_weights(network, weights, options.plan, facts | history | held_out_figures(network, views))
    print(f"wrote {weights}")


if __name__ == "__main__":
    main()
