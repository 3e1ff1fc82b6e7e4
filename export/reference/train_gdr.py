"""Train the reference GDR-Net (maps and regressor, all three objects) on the view bank.

Usage: python -m posekit.export.reference.train_gdr --views DIR --out runs/gdr --steps 6000
Stop it at any time; the same command goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from posekit.export.networks.entrance import Entrance
from posekit.export.networks.gdr_heads import image_coordinates
from posekit.export.networks.geometry import allo_from_ego, rotation_from_6d, site_from_translation
from posekit.export.reference.compose import TrainingCrop, Views, label_object, training_crop
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
from posekit.export.reference.views import REFERENCE_CAMERA
from posekit.export.systems.gdr_net import GdrNet, GdrTarget, gdr_losses
from posekit.runtime.crop import CropPreset

CROP = CropPreset("dzi", 96, pad=1.5)
OPTIONS: dict[str, Any] = {
    "backbone": "nano",
    "crop_size_px": CROP.side_px,
    "n_objects": 3,
    "regions": 0,
    "head_widths": (96, 64, 32),
    "skips": True,
    "pnp_width": 64,
    "pnp_hidden": (256, 128),
}
# The maps feed PnP and regressor alike, so they weigh more than in the paper; z is in crop sides, about 4.
WEIGHTS = {"xyz": 5.0, "mask": 1.0, "rotation": 1.0, "xy": 1.0, "z": 0.3}
MODEL_POINTS = 500
SHARES = (0.45, 0.33, 0.22)  # of bracket, duckling and bottle: the harder, the more often


class Examples(IterableDataset[Batch]):
    """Endless batches; every worker and every resumed run draws its own."""

    def __init__(self, views: Path, grid: int, plan: Plan) -> None:
        self.views, self.grid, self.plan = views, grid, plan

    def __iter__(self) -> Iterator[Batch]:
        rng = worker_rng(self.plan.seed)
        views = Views.read(self.views)
        while True:
            labels = rng.choice(len(SHARES), self.plan.batch, p=SHARES)
            yield batch_of([training_crop(views, CROP, self.grid, rng, label=int(k)) for k in labels], views)


def batch_of(examples: list[TrainingCrop], views: Views) -> Batch:
    """Stack examples as float32 tensors; coordinates become 0..1 over the object's box."""
    low = np.stack([views.objects[e.label].bbox_min_m for e in examples])
    extents = np.stack([views.objects[e.label].extents_m for e in examples])
    xyz = (np.stack([e.coords_m for e in examples]) - low[:, None, None]) / extents[:, None, None]
    arrays = {
        "crops": np.stack([e.pixels for e in examples]),
        "label": np.array([e.label for e in examples]),
        "mask": np.stack([e.mask for e in examples]).astype(np.float32),
        "xyz": xyz.transpose(0, 3, 1, 2).astype(np.float32),
        "R": np.stack([e.cam_from_obj.R for e in examples]).astype(np.float32),
        "t": np.stack([e.cam_from_obj.t_m for e in examples]).astype(np.float32),
        "box": np.stack([e.box_xyxy_px for e in examples]).astype(np.float32),
        "warp": np.stack([e.warp for e in examples]).astype(np.float32),
        "K": np.stack([e.K for e in examples]).astype(np.float32),
        "extents": extents.astype(np.float32),
    }
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


class Losses:
    """GDR-Net's losses on a batch, weighted."""

    def __init__(self, object_ids: list[int], device: torch.device) -> None:
        models = [label_object(i).model for i in object_ids]
        self.points = torch.stack(
            [torch.from_numpy(m.surface_points(MODEL_POINTS, seed=0)[0].astype(np.float32)) for m in models]
        ).to(device)
        self.entrance = Entrance(mean=(0, 0, 0), std=(1, 1, 1), bgr=True).to(device)
        self.image_wh = torch.tensor([[REFERENCE_CAMERA.width_px, REFERENCE_CAMERA.height_px]], device=device).float()

    def __call__(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        assert isinstance(network, GdrNet)
        size, grid = network.crop_size_px, network.grid
        maps = network.maps(self.entrance(batch["crops"]), batch["label"])
        image_wh = self.image_wh.expand(len(batch["label"]), 2)
        r6, site = network.regress(maps, image_coordinates(batch["warp"], image_wh, size, grid), batch["extents"])
        site_true = site_from_translation(batch["t"], batch["box"], batch["warp"], batch["K"], size, grid)
        target = GdrTarget(batch["R"], batch["t"], batch["mask"], batch["xyz"], self.points[batch["label"]])
        losses = gdr_losses(
            maps,
            rotation_from_6d(r6.float()),
            site.float(),
            target,
            allo_from_ego(batch["R"], batch["t"]),
            site_true,
            batch["extents"],
        )
        return {name: WEIGHTS[name] * loss for name, loss in losses.items()}


def main(arguments: list[str] | None = None) -> None:
    options = options_from("posekit.export.reference.train_gdr", __doc__, 9000, 32, arguments)
    network = GdrNet(**OPTIONS)
    history = start_from(network, options.start)
    views = Views.read(options.views)
    object_ids = [s.object_id for s in views.objects]
    loader = loader_of(Examples(options.views, network.grid, options.plan), options.workers)
    trained = train(network, Losses(object_ids, options.device), loader, options.out, options.plan, options.device)
    weights = options.out / "gdr_net.safetensors"
    facts = {"object_ids": str(object_ids), "views": str(len(views.objects[0]))}
    save_weights(trained, weights, options.plan, facts | history)
    print(f"wrote {weights}")


if __name__ == "__main__":
    main()
