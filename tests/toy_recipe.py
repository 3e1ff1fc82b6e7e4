"""A whole recipe at toy size, with variants: one pose regressor, one mesh, one recording."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import trimesh
from recordings import write_recording

FRAMES = 72  # half to calibrate on, half to verify on
Z_MM = 472  # where the seed's weights put the object in nearly every crop, give or take 4 mm
NETS = """
import torch
from torch import nn

class Regressor(nn.Module):
    "Looks at the picture; no rotation, and a distance between 0.4 and 0.6 m."
    def __init__(self):
        super().__init__()
        stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU())
        self.trunk = nn.Sequential(stem, nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 8)))
        self.out = nn.Linear(8, 1)
    def forward(self, crops, box, K):
        z = 0.5 + 0.1 * torch.tanh(self.out(self.trunk(crops)))[:, 0]
        centre = (box[:, :2] + box[:, 2:]) / 2
        xy = (centre - K[:, :2, 2]) / torch.stack([K[:, 0, 0], K[:, 1, 1]], dim=1) * z[:, None]
        R = torch.eye(3).expand(len(crops), 3, 3) * (1 + 0 * z)[:, None, None]
        return R, torch.cat([xy, z[:, None]], dim=1), torch.sigmoid(crops.mean(dim=(1, 2, 3)))
"""
RECIPE = """
name = "toy"
default_path = "guess"
[[objects]]
id = 1
name = "brick"
mesh = "brick.ply"
unit = "m"
[[networks]]
name = "guess"
network = "precisionnets:Regressor"
role = "pose"
feeds = ["crops", "box", "K"]
trunk = ["trunk"]
checkpoint = "guess.safetensors"
crop = {rule = "square", size_px = 32}
[precision]
variants = ["fp16", "int8"]
[calibration]
source = "recording"
"""


@contextmanager
def write_workshop(folder: Path) -> Iterator[Path]:
    """The recipe's path; while the block lasts, its network can be imported."""
    from safetensors.torch import save_file

    (folder / "precisionnets.py").write_text(NETS)
    trimesh.creation.box((0.2, 0.1, 0.1)).export(folder / "brick.ply")
    write_recording(folder / "recording", FRAMES, z_mm=Z_MM)
    sys.path.insert(0, str(folder))
    try:
        import precisionnets  # type: ignore[import-not-found]

        torch.manual_seed(1)
        save_file(precisionnets.Regressor().state_dict(), folder / "guess.safetensors")
        recipe = folder / "toy.toml"
        recipe.write_text(RECIPE)
        yield recipe
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("precisionnets", None)
