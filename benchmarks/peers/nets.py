"""The same trained networks as a user runs them without posekit: PyTorch eager, torch.compile, plain ONNX Runtime."""

from __future__ import annotations

import copy
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from posekit.benchmarks.peers.glue import Arrays, Net
from posekit.export.example_feed import EXAMPLE_SIZES, example_feed
from posekit.export.networks.entrance import Entrance
from posekit.export.onnx_from_network import silence
from posekit.export.systems import GraphSource

COMPILE_OPTIONS = {"freezing": True}  # weights become constants: what Inductor offers for inference on a CPU


def eager(source: GraphSource) -> Net:
    """The module itself; uint8 pixels are normalised in torch."""
    return _called(source, source.module.eval())


def compiled(source: GraphSource, feeds: list[Arrays]) -> tuple[Net, float]:
    """torch.compile, and the seconds that it took until every one of `feeds` had run. Raises what it raises."""
    dynamic = any(isinstance(size, str) for spec in source.inputs for size in spec.shape)
    net = _called(source, torch.compile(source.module.eval(), dynamic=dynamic, options=dict(COMPILE_OPTIONS)))
    start = time.perf_counter()
    with silence():
        for feed in feeds:
            net(feed)
    return net, time.perf_counter() - start


def _called(source: GraphSource, module: Any) -> Net:
    def run(feed: Arrays) -> Arrays:
        with torch.no_grad():
            out = module(*(torch.from_numpy(feed[spec.name]) for spec in source.inputs))
        outputs = (out,) if isinstance(out, torch.Tensor) else out
        return {name: tensor.numpy() for name, tensor in zip(source.outputs, outputs, strict=True)}

    return run


def plain_onnxruntime(source: GraphSource, threads: int) -> Net:
    """Exported from normalised float pixels on, as networks usually are; normalised in NumPy. Default options."""
    import onnxruntime

    module = copy.deepcopy(source.module).eval()
    entrance = module.entrance
    assert isinstance(entrance, Entrance)
    module.entrance = torch.nn.Identity()
    gain, offset = entrance.gain.numpy(), entrance.offset.numpy()
    pixels = source.inputs[0].name
    feed = example_feed(source.inputs, EXAMPLE_SIZES)
    feed[pixels] = normalised(feed[pixels], gain, offset, entrance.bgr)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(_exported(source, module, feed), options, providers=["CPUExecutionProvider"])

    def run(feed: Arrays) -> Arrays:
        fed = {spec.name: feed[spec.name] for spec in source.inputs}
        fed[pixels] = normalised(fed[pixels], gain, offset, entrance.bgr)
        return dict(zip(source.outputs, session.run(list(source.outputs), fed), strict=True))

    return run


def _exported(source: GraphSource, module: torch.nn.Module, feed: Arrays) -> bytes:
    """torch.onnx.export, the batch dynamic where the network's is."""
    batch = {0: "batch"} if isinstance(source.inputs[0].shape[0], str) else {}
    with tempfile.TemporaryDirectory(prefix="posekit-peers-") as folder, silence():
        path = Path(folder) / "network.onnx"
        torch.onnx.export(
            module,
            tuple(torch.from_numpy(feed[spec.name]) for spec in source.inputs),
            path,
            dynamo=True,
            external_data=False,
            verbose=False,
            input_names=[spec.name for spec in source.inputs],
            output_names=list(source.outputs),
            dynamic_shapes=tuple(dict(batch) for _ in source.inputs),
        )
        return path.read_bytes()


def normalised(
    pixels_u8: npt.NDArray[np.uint8], gain: npt.NDArray[Any], offset: npt.NDArray[Any], bgr: bool
) -> npt.NDArray[np.float32]:
    """(B, S, S, 3) RGB -> (B, 3, S, S), channels scaled and shifted by gain and offset (1, 3, 1, 1)."""
    x = np.multiply(pixels_u8.transpose(0, 3, 1, 2), gain, dtype=np.float32)
    x += offset
    return np.ascontiguousarray(x[:, ::-1] if bgr else x)
