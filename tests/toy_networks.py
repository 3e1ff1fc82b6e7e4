"""A small network with every kind of node that INT8 meets, in float32 or with a float16 trunk; and crops to feed it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper

from posekit.calibration.feeds import Arrays, Portion, Sample
from posekit.runtime.tensor import TensorSpec

SIZE = 32
CROPS = TensorSpec("crops", "uint8", ("batch", SIZE, SIZE, 3))
K = TensorSpec("K", "float32", ("batch", 3, 3))
WEIGHTED = ("stem", "left", "right", "up", "fc", "fc_transposed", "project")
PRODUCTS = ("attention", "geometry")  # weightless, and a rotation


def toy_network(half: bool = False, seed: int = 0, **weights: np.ndarray) -> onnx.ModelProto:
    """crops, K -> features, geometry. A stem, a residual block, an upsampling, three products with weights, two without.

    half: the trunk in float16, geometry in float32.   weights: replace initializers by name.
    """
    rng = np.random.default_rng(seed)
    dtype: Any = np.float16 if half else np.float32
    made = {
        "stem_w": rng.normal(size=(8, 3, 3, 3)) * 0.4,
        "stem_b": rng.normal(size=8) * 0.1,
        "left_w": rng.normal(size=(8, 8, 3, 3)) * 0.15,
        "right_w": rng.normal(size=(8, 8, 1, 1)) * 0.8,
        "up_w": rng.normal(size=(8, 6, 2, 2)) * 0.3,
        "fc_w": rng.normal(size=(6, 12)) * 0.5,
        "fc_b": rng.normal(size=12) * 0.05,
        "fc_transposed_w": rng.normal(size=(10, 12)) * 0.4,
        "project_w": rng.normal(size=(10, 7)) * np.geomspace(0.05, 2, 7),
    }
    made = {name: weights.get(name, value).astype(dtype) for name, value in made.items()}
    constants = {"scale": np.float32(1 / 255), "turn": np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]], np.float32)}
    nodes = [
        helper.make_node("Cast", ["crops"], ["float"], to=T.FLOAT),
        helper.make_node("Transpose", ["float"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["nchw", "scale"], ["scaled"]),
        helper.make_node("Cast", ["scaled"], ["pixels"], to=T.FLOAT16 if half else T.FLOAT),
        helper.make_node("Conv", ["pixels", "stem_w", "stem_b"], ["c1"], "stem", strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "left_w"], ["c2"], "left", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("Conv", ["r2", "right_w"], ["c3"], "right"),
        helper.make_node("Add", ["c3", "r1"], ["sum"], "residual"),
        helper.make_node("Sigmoid", ["r1"], ["gate"], "bystander"),
        helper.make_node("Mul", ["sum", "gate"], ["gated"]),
        helper.make_node("ConvTranspose", ["gated", "up_w"], ["c4"], "up", strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["c4"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "fc_w", "fc_b"], ["g1"], "fc", beta=0.5),
        helper.make_node("Gemm", ["g1", "fc_transposed_w"], ["g2"], "fc_transposed", transB=1),
        helper.make_node("MatMul", ["g2", "project_w"], ["g3"], "project"),
        helper.make_node("Transpose", ["g3"], ["g3t"]),
        helper.make_node("MatMul", ["g3", "g3t"], ["alike"], "attention"),
        helper.make_node("MatMul", ["alike", "g3"], ["attended"], "attend"),
        helper.make_node("Cast", ["attended"], ["features"], to=T.FLOAT),
        helper.make_node("MatMul", ["K", "turn"], ["turned"], "geometry"),
    ]
    graph = helper.make_graph(
        nodes,
        "toy",
        [
            helper.make_tensor_value_info("crops", T.UINT8, ["batch", SIZE, SIZE, 3]),
            helper.make_tensor_value_info("K", T.FLOAT, ["batch", 3, 3]),
        ],
        [
            helper.make_tensor_value_info("features", T.FLOAT, ["batch", 7]),
            helper.make_tensor_value_info("turned", T.FLOAT, ["batch", 3, 3]),
        ],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in (made | constants).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9, producer_name="toy")
    onnx.checker.check_model(model, full_check=True)
    return model


def scene(seed: int, size: int = SIZE) -> np.ndarray:
    """(size, size, 3) uint8: coloured waves, as smooth as photographs are, with a little sensor noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size] / size
    waves = [np.sin(2 * np.pi * (rng.uniform(-2, 2, 3) * np.stack([x, y, x * y], -1)).sum(-1) + p) for p in range(3)]
    image = 127 + 100 * np.stack(waves, axis=-1) * rng.uniform(0.5, 1, 3) + rng.normal(scale=2, size=(size, size, 3))
    return np.clip(image, 0, 255).astype(np.uint8)


@dataclass(frozen=True, eq=False)
class Recorded:
    """A CalibrationSource of pictures in memory."""

    pictures: Sequence[np.ndarray]
    batch: int = 8
    inputs: tuple[TensorSpec, ...] = (CROPS, K)
    preprocessing: str = "{}"

    def __iter__(self) -> Iterator[Portion]:
        for start in range(0, len(self.pictures), self.batch):
            crops = np.stack(self.pictures[start : start + self.batch])
            feed: Arrays = {"crops": crops, "K": np.tile(np.eye(3, dtype=np.float32), (len(crops), 1, 1))}
            box = np.array([0.0, 0, SIZE, SIZE])
            yield Portion(feed, tuple(Sample(str(start + i), 1, box, None) for i in range(len(crops))))

    def feeds(self) -> Iterator[Arrays]:
        return (portion.feed for portion in self)


def scenes(count: int) -> Recorded:
    return Recorded([scene(seed) for seed in range(count)])
