"""A hand-broken int8 file fails lint and verify, and both name what is broken."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import NodeProto, numpy_helper
from toy_recipe import write_workshop
from typer.testing import CliRunner

from posekit.calibration.feeds import Arrays
from posekit.cli import app
from posekit.export.pack import Content, pack_bundle
from posekit.export.pipeline import export_recipe
from posekit.export.recipe import recipe_from_toml
from posekit.export.verify.causes import Pair, node_errors
from posekit.runtime.backends import BACKENDS
from posekit.runtime.bundle import Bundle

torch.set_num_threads(1)
LAYER = "network.trunk.0.2/Conv"
MEMBER = "graphs/guess.pose.int8.onnx"
INT8 = "openvino" if BACKENDS["openvino"].runs("int8") else "onnxruntime"  # who decides on int8 on this machine
JUDGED = ("--backend", INT8)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with write_workshop(tmp_path_factory.mktemp("workshop")) as recipe:
        export_recipe(recipe_from_toml(recipe), recipe.with_suffix(".posekit"))
        yield recipe.parent


def producer(model: onnx.ModelProto, tensor: str) -> NodeProto:
    found: NodeProto = next(node for node in model.graph.node if tensor in node.output)
    return found


def layer(model: onnx.ModelProto) -> NodeProto:
    found: NodeProto = next(node for node in model.graph.node if node.name == LAYER)
    return found


def shifted(model: onnx.ModelProto) -> None:
    """Activations of the layer are quantised around 127: what TensorRT refuses, and all that is positive is cut off."""
    dequantise = producer(model, layer(model).input[0])
    zero = numpy_helper.from_array(np.array(127, np.int8), "shifted")
    model.graph.initializer.append(zero)
    for node in (dequantise, producer(model, dequantise.input[0])):
        assert len(node.input) == 3
        node.input[2] = zero.name


def swollen(model: onnx.ModelProto) -> None:
    """The layer's weights come out twenty times too large: legal everywhere, and wrong."""
    dequantise = producer(model, layer(model).input[1])
    scale = next(t for t in model.graph.initializer if t.name == dequantise.input[1])
    larger = numpy_helper.from_array(numpy_helper.to_array(scale) * 20, "swollen")
    model.graph.initializer.append(larger)
    dequantise.input[1] = larger.name


def broken(workshop: Path, out: Path, damage: Callable[[onnx.ModelProto], None]) -> Path:
    with Bundle(workshop / "toy.posekit") as bundle:
        members: dict[str, Content] = {name: bytes(bundle.read(name)) for name in bundle.manifest.files}
        model = onnx.load_from_string(bytes(bundle.read(MEMBER)))
        damage(model)
        members[MEMBER] = model.SerializeToString()
        return pack_bundle(out, bundle.manifest, members).path


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [*map(str, arguments)])


def test_a_legal_but_wrong_file_is_caught_by_verify_which_names_the_layer(workshop: Path, tmp_path: Path) -> None:
    bundle = broken(workshop, tmp_path / "x.posekit", swollen)
    result = run("verify", bundle, workshop / "recording", *JUDGED, "-o", tmp_path / "report")
    assert result.exit_code == 1, result.output
    assert f"guess int8 on {INT8}: the numbers leave those of fp16 at {LAYER}: " in result.stdout
    report = json.loads((tmp_path / "report" / "verification.json").read_text())
    (verdict,) = (v for v in report["verdicts"] if v["precision"] == "int8")
    assert LAYER in verdict["causes"][-1]
    assert LAYER in (tmp_path / "report" / "verification.md").read_text()
    assert run("lint", bundle).exit_code == 0


def test_a_broken_file_fails_both_and_verify_says_what_lint_says(workshop: Path, tmp_path: Path) -> None:
    bundle = broken(workshop, tmp_path / "x.posekit", shifted)
    linted = run("lint", bundle)
    assert linted.exit_code == 1
    assert "zero point" in linted.stdout.lower()
    gate = ("--gate", "translation_p95_of_diameter=0.001")  # a toy that sees next to nothing loses little by it
    result = run("verify", bundle, workshop / "recording", *JUDGED, *gate)
    assert result.exit_code == 1, result.output
    assert f"guess int8 on {INT8}: lint_errors is 1, limit 0, judged on " in result.stdout
    assert f"guess int8 on {INT8}: lint: " in result.stdout
    assert f"the numbers leave those of fp16 at {LAYER}: " in result.stdout


def test_the_layers_of_a_sound_file_stay_near(workshop: Path) -> None:
    with Bundle(workshop / "toy.posekit") as bundle:
        entry = bundle.manifest.graphs["guess.pose"]
        models: dict[str, onnx.ModelProto] = {
            name: onnx.load_from_string(bytes(bundle.read(member))) for name, member in entry.variants.items()
        }
    rng = np.random.default_rng(0)
    feed: Arrays = {
        "crops": rng.integers(0, 255, (1, 32, 32, 3), dtype=np.uint8),
        "box": np.array([[10, 10, 50, 50]], np.float32),
        "K": np.array([[[150, 0, 80], [0, 150, 60], [0, 0, 1]]], np.float32),
    }
    for other, least, most in (("fp32", 0.0, 0.0), ("fp16", 1e-6, 0.01), ("int8", 1e-6, 0.2)):
        nodes = node_errors(Pair(models["fp32"], models[other], [feed]))
        assert {"network.trunk.0.0/Conv", LAYER} <= {each.node for each in nodes}
        assert least <= max(each.error for each in nodes) <= most
