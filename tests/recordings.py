"""Recordings in BOP's layout, drawn on the fly: smooth pictures, each another, one box of one object in each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

K = (150.0, 0.0, 79.5, 0.0, 150.0, 59.5, 0.0, 0.0, 1.0)


def write_recording(root: Path, frames: int, object_id: int = 1, seed: int = 0, z_mm: float = 500) -> Path:
    """160 x 120 px; the box wanders to the right, and the object in its middle, unturned."""
    scene = root / "test" / "000001"
    (scene / "rgb").mkdir(parents=True)
    rng = np.random.default_rng(seed)
    rows: dict[str, Any] = {"scene_camera": {}, "scene_gt": {}, "scene_gt_info": {}}
    for i in range(frames):
        image = cv2.resize(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8), (160, 120))
        cv2.imwrite(str(scene / "rgb" / f"{i:06d}.png"), image)
        rows["scene_camera"][i] = {"cam_K": K}
        t_mm = [z_mm * (10 + i % 90 + 19.5 - K[2]) / K[0], z_mm * (40 + 19.5 - K[5]) / K[4], z_mm]
        gt = {"cam_R_m2c": np.eye(3).ravel().tolist(), "cam_t_m2c": t_mm, "obj_id": object_id}
        rows["scene_gt"][i], rows["scene_gt_info"][i] = [gt], [{"bbox_obj": [10 + i % 90, 40, 40, 40]}]
    for name, content in rows.items():
        (scene / f"{name}.json").write_text(json.dumps(content))
    return root
