"""Faults that exports really had, each planted into a trained network's bundle: verify passes the bundle as it is, and none of these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import ModelProto, NodeProto, helper, numpy_helper
from trained_bundle import GRAPH, rendered_samples, write_trained_bundle

from posekit.export.pack import Content, pack_bundle
from posekit.export.steps import Steps
from posekit.export.verify.gates import Gates
from posekit.export.verify.samples import Sample
from posekit.export.verify.verify import Verdict, Verification, verify_bundle
from posekit.runtime.bundle import Bundle
from posekit.runtime.manifest import Precision

FIRST, INNER = "network.backbone.conv1/Conv", "network.backbone.layer2.0.conv1/Conv"
Damage = Callable[[ModelProto], None]


@dataclass(frozen=True, eq=False)
class Trained:
    """A sound bundle and what it is verified on. kept: what was observed of fp32, which most faults leave alone."""

    path: Path
    samples: list[Sample]
    kept: Steps

    def verified(self, samples: Sequence[Sample] | None = None) -> Verification:
        return self.verified_with({}, samples=samples)

    def verified_with(
        self, damage: dict[Precision, Damage], folder: Path | None = None, samples: Sequence[Sample] | None = None
    ) -> Verification:
        """Of a bundle with these files damaged."""
        path = self.path
        if damage:
            assert folder is not None
            path = damaged(path, folder / "damaged.posekit", damage)
        with Bundle(path) as bundle:
            return verify_bundle(
                bundle, self.samples if samples is None else samples, Gates(), backends=["onnxruntime"], steps=self.kept
            )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    path = write_trained_bundle(folder, rendered_samples(24, seed=1))
    return Trained(path, rendered_samples(40), Steps(folder / "steps"))


def damaged(path: Path, out: Path, damage: dict[Precision, Damage]) -> Path:
    with Bundle(path) as bundle:
        manifest, graph = bundle.manifest, bundle.manifest.graphs[GRAPH]
        members: dict[str, Content] = {name: bytes(bundle.read(name)) for name in manifest.files}
        for precision, plant in damage.items():
            model = onnx.load_from_string(bytes(bundle.read(graph.variants[precision])))
            plant(model)
            members[graph.variants[precision]] = model.SerializeToString()
    return pack_bundle(out, replace(manifest, files={}), members).path


def only(found: Verification, precision: Precision) -> Verdict:
    (verdict,) = (v for v in found.verdicts if v.precision == precision)
    return verdict


def missed(verdict: Verdict) -> set[str]:
    return {gate.gate for gate in verdict.gates if gate.verdict == "missed"}


# Damage


def node(model: ModelProto, name: str) -> NodeProto:
    found: NodeProto = next(each for each in model.graph.node if each.name == name)
    return found


def maker(model: ModelProto, tensor: str) -> NodeProto:
    found: NodeProto = next(each for each in model.graph.node if tensor in each.output)
    return found


def constant(model: ModelProto, name: str) -> npt.NDArray[Any]:
    return np.array(numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name)))


def put(model: ModelProto, name: str, value: npt.NDArray[np.generic]) -> None:
    """Overwrite a constant, or add one."""
    old = [t for t in model.graph.initializer if t.name == name]
    for tensor in old:
        model.graph.initializer.remove(tensor)
    model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))


def behind(model: ModelProto, tensor: str, op: str, *values: npt.NDArray[np.generic], **attributes: Any) -> None:
    """One more operator behind the node that makes a tensor; all who read the tensor read the new one."""
    source = maker(model, tensor)
    source.output[list(source.output).index(tensor)] = f"{tensor}/before"
    names = [f"{tensor}/{k}" for k in range(len(values))]
    for name, value in zip(names, values, strict=True):
        put(model, name, value)
    at = list(model.graph.node).index(source) + 1
    model.graph.node.insert(
        at, helper.make_node(op, [f"{tensor}/before", *names], [tensor], f"planted/{op} {tensor}", **attributes)
    )


def weight_scale(model: ModelProto) -> str:
    return str(maker(model, node(model, INNER).input[1]).input[1])


def channel_scale_times_16(model: ModelProto) -> None:
    name = weight_scale(model)
    scale = constant(model, name)
    scale[int(np.argmax(scale))] *= 16
    put(model, name, scale)


def layer_scale_times_16(model: ModelProto) -> None:
    name = weight_scale(model)
    put(model, name, constant(model, name) * np.float16(16))


def activation_nodes(model: ModelProto) -> tuple[NodeProto, NodeProto]:
    dequantise = maker(model, node(model, INNER).input[0])
    return maker(model, dequantise.input[0]), dequantise


def activation_scale(model: ModelProto) -> None:
    """A range a sixteenth as wide: nearly everything is clipped."""
    quantise, dequantise = activation_nodes(model)
    put(model, "narrow", constant(model, dequantise.input[1]) / np.float16(16))
    quantise.input[1] = dequantise.input[1] = "narrow"


def dequantiser_scale(model: ModelProto) -> None:
    _, dequantise = activation_nodes(model)
    put(model, "wide", constant(model, dequantise.input[1]) * np.float16(2))
    dequantise.input[1] = "wide"


def zero_point(model: ModelProto, *nodes: NodeProto) -> None:
    put(model, "shifted", np.array(20, np.int8))
    for each in nodes:
        each.input[2] = "shifted"


def bgr(model: ModelProto) -> None:
    name = node(model, FIRST).input[1]
    put(model, name, constant(model, name)[:, ::-1])


def normalised_twice(model: ModelProto) -> None:
    behind(model, maker(model, node(model, FIRST).input[0]).input[0], "Mul", np.array(1 / 255, np.float32))


def channel_zeroed(model: ModelProto) -> None:
    name = node(model, FIRST).input[1]
    weights = constant(model, name)
    weights[int(np.argmax(np.abs(weights).sum(axis=(1, 2, 3))))] = 0
    put(model, name, weights)


def bias_dropped(model: ModelProto) -> None:
    layer = node(model, "network.pnp.fc1/Gemm")
    del layer.input[2]


def fixed(name: str, value: npt.NDArray[np.generic]) -> Damage:
    """An input of the graph that is not read: every reader gets this value, of one row."""

    def plant(model: ModelProto) -> None:
        put(model, "fixed", value[None])
        put(model, "fixed/zero", np.zeros(1, value.dtype))
        same = helper.make_node("Mul", [name, "fixed/zero"], ["fixed/nothing"], "planted/nothing")
        for each in model.graph.node:
            for k, tensor in enumerate(each.input):
                if tensor == name:
                    each.input[k] = "fixed/all"
        model.graph.node.insert(0, same)
        model.graph.node.insert(1, helper.make_node("Add", ["fixed/nothing", "fixed"], ["fixed/all"], "planted/fixed"))

    return plant


def rotation_transposed(model: ModelProto) -> None:
    behind(model, "R", "Transpose", perm=[0, 2, 1])


def batch_reversed(model: ModelProto) -> None:
    for name in ("R", "t", "score"):
        ends = [np.array([value], np.int64) for value in (-1, -(2**31), 0, -1)]
        behind(model, name, "Slice", *ends)


def crops_influence_each_other(model: ModelProto) -> None:
    """Half of the batch's mean in every row of an inner tensor."""
    tensor = node(model, INNER).input[0]
    source = maker(model, tensor)
    source.output[0] = "alone"
    put(model, "first", np.array([0], np.int64))
    put(model, "half", np.array(0.5, constant(model, node(model, INNER).input[1]).dtype))
    at = list(model.graph.node).index(source) + 1
    model.graph.node.insert(at, helper.make_node("ReduceMean", ["alone", "first"], ["mean"], keepdims=1))
    model.graph.node.insert(at + 1, helper.make_node("Mul", ["mean", "half"], ["part"]))
    model.graph.node.insert(at + 2, helper.make_node("Add", ["alone", "part"], [tensor], "planted/Add"))


def saturating(model: ModelProto) -> None:
    """A layer whose float16 output no longer fits, and is divided again in float32: CPUs keep the values in between."""
    layer = node(model, INNER)
    constants = {name: constant(model, name).astype(np.float32) for name in layer.input[1:]}
    factor = np.float32(2.0 ** np.floor(np.log2(60000 / max(np.abs(value).max() for value in constants.values()))))
    for name, value in constants.items():
        put(model, name, (value * factor).astype(np.float16))
    wide = next(each for each in model.graph.node if layer.output[0] in each.input)
    behind(model, wide.output[0], "Mul", np.array(1 / factor, np.float32))


@dataclass(frozen=True)
class Fault:
    """misses: gates, each of which is missed.   told: a part of what is named as cause."""

    precision: Precision
    plant: Damage
    misses: tuple[str, ...]
    told: str = ""


ROTATION = ("rotation_p95_deg",)
FAULTS = {
    "one channel's weight scale times 16": Fault("int8", channel_scale_times_16, ROTATION, f"at {INNER}: "),
    "a zero point in Q and DQ": Fault(
        "int8", lambda m: zero_point(m, *activation_nodes(m)), ("lint_errors",), "lint: "
    ),
    "saturation in float16": Fault("fp16", saturating, ("half_output",), f"in true float16 {INNER} overflows"),
    "score divided by 100": Fault(
        "fp16", lambda m: behind(m, "score", "Div", np.array(100, np.float32)), ("score_p95",), "at output score (with planted/Div score, not in fp32) after"
    ),
    "a batch in reverse": Fault("fp16", batch_reversed, ("batch_rotation_p95_deg", "batch_translation_p95_of_diameter")),
}  # fmt: skip
MORE = {
    "R transposed": Fault("fp16", rotation_transposed, ROTATION, "at output R (with planted/Transpose R, not in fp32) after the last product"),
    "t off behind the last product": Fault(
        "fp16", lambda m: behind(m, "t", "Add", np.array([0, 0, 0.05], np.float32)), ("translation_p95_of_diameter",),
        "after the last product",
    ),
    "a layer's weight scale times 16": Fault("int8", layer_scale_times_16, ROTATION, f"at {INNER}: "),
    "an activation's scale": Fault("int8", activation_scale, ROTATION, f"at {INNER}: "),
    "the scale of DQ alone": Fault("int8", dequantiser_scale, ROTATION, f"at {INNER}: "),
    "a zero point in DQ alone": Fault("int8", lambda m: zero_point(m, activation_nodes(m)[1]), (*ROTATION, "lint_errors")),
    "red and blue swapped": Fault("fp16", bgr, ROTATION, f"at {FIRST}: "),
    "normalised twice": Fault("fp16", normalised_twice, ROTATION),
    "an output channel zeroed": Fault("fp16", channel_zeroed, ROTATION, f"at {FIRST}: "),
    "a bias dropped": Fault("fp16", bias_dropped, ("translation_p95_of_diameter",), "at network.pnp.fc1/Gemm: "),
    "t in millimetres": Fault(
        "fp16", lambda m: behind(m, "t", "Mul", np.array(1000, np.float32)), ("translation_p95_of_diameter",),
        "after the last product",
    ),
    "K ignored": Fault("fp16", fixed("K", np.diag([500, 500, 1]).astype(np.float32)), ("translation_p95_of_diameter",)),
    "the label ignored": Fault("fp16", fixed("label", np.array(1, np.int64)), ROTATION),
    "crops that influence each other": Fault(
        "fp16", crops_influence_each_other, ("batch_rotation_p95_deg",), "(with planted/Add, not in fp32)"
    ),
}  # fmt: skip
EVERY = [
    *(pytest.param(fault, id=name) for name, fault in FAULTS.items()),
    *(pytest.param(fault, id=name, marks=pytest.mark.slow) for name, fault in MORE.items()),
]


def test_the_sound_bundle_passes(trained: Trained) -> None:
    found = trained.verified()
    assert [(v.precision, v.outcome) for v in found.verdicts] == [("fp32", "held"), ("fp16", "held"), ("int8", "held")]
    assert found.passed
    assert all(gate.n >= 32 for v in found.verdicts for gate in v.gates if gate.frames)


@pytest.mark.parametrize("fault", EVERY)
def test_a_planted_fault_is_missed_and_its_cause_is_not_invented(
    fault: Fault, trained: Trained, tmp_path: Path
) -> None:
    found = trained.verified_with({fault.precision: fault.plant}, tmp_path)
    verdict = only(found, fault.precision)
    assert [v.precision for v in found.verdicts if v.outcome != "held"] == [fault.precision]
    assert found.outcome == "missed"
    assert set(fault.misses) <= missed(verdict)
    assert fault.told in "\n".join(verdict.causes)


@pytest.mark.slow
def test_r_transposed_in_every_variant_is_missed_by_fp32_itself(trained: Trained, tmp_path: Path) -> None:
    every: tuple[Precision, ...] = ("fp32", "fp16", "int8")
    found = trained.verified_with(dict.fromkeys(every, rotation_transposed), tmp_path)
    assert [missed(verdict) for verdict in found.verdicts] == [{"true_rotation_p50_deg"}] * 3
    assert not only(found, "fp16").causes  # the file is as good as fp32's


@pytest.mark.slow
@pytest.mark.parametrize("factor", [0.01, 0, 300])
def test_a_score_that_says_nothing_in_every_variant_is_missed_by_fp32_itself(
    factor: float, trained: Trained, tmp_path: Path
) -> None:
    def scaled(model: ModelProto) -> None:
        behind(model, "score", "Mul", np.array(factor, np.float32))

    found = trained.verified_with(dict.fromkeys(("fp32", "fp16", "int8"), scaled), tmp_path)
    assert all("score_p50_min" in missed(verdict) for verdict in found.verdicts)


def test_a_recording_twelve_times_too_dark_decides_nothing(trained: Trained) -> None:
    dark = [replace(sample, image_rgb_u8=sample.image_rgb_u8 // 12) for sample in trained.samples]
    found = trained.verified(dark)
    assert found.outcome != "held"
    undecided = {gate.gate for gate in only(found, "int8").gates if gate.verdict == "undecided"}
    assert "exposed_min" in undecided


@pytest.mark.slow
def test_one_frame_recorded_again_and_again_decides_nothing(trained: Trained) -> None:
    """It passed: each copy was counted as a frame."""
    right, rng = trained.samples[1], np.random.default_rng(0)
    seen_again = [
        replace(
            right,
            image_rgb_u8=np.clip(right.image_rgb_u8 + rng.integers(-1, 2, (480, 640, 3)), 0, 255).astype(np.uint8),
        )
        for _ in range(34)
    ]
    found = trained.verified(seen_again)
    assert {verdict.outcome for verdict in found.verdicts} == {"undecided"}
    assert {gate.frames for gate in only(found, "fp32").gates if gate.unit == "true poses"} == {1}


@pytest.mark.slow
def test_a_recording_of_noise_decides_nothing(trained: Trained) -> None:
    rng = np.random.default_rng(0)
    noise = [
        replace(s, true_pose=None, image_rgb_u8=rng.integers(0, 256, (480, 640, 3), dtype=np.uint8))
        for s in trained.samples
    ]
    found = trained.verified(noise)
    assert only(found, "fp32").outcome == "undecided"
    assert found.outcome != "held"


@pytest.mark.slow
def test_a_recording_that_shows_nothing_decides_nothing(trained: Trained) -> None:
    grey = [replace(sample, image_rgb_u8=np.full_like(sample.image_rgb_u8, 128)) for sample in trained.samples]
    assert trained.verified(grey).outcome != "held"
