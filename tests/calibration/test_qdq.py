"""INT8 graphs: what is quantised, how, what is left alone, and that the numbers stay."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper
from toy_networks import WEIGHTED, scenes, toy_network

from posekit.calibration.qdq import quantised_nodes, quantized
from posekit.calibration.ranges import RangeTable, TensorRange, calibrate
from posekit.calibration.sessions import reference_session
from posekit.runtime.errors import PrecisionError

SCENES = scenes(40)
MODELS = {half: toy_network(half) for half in (False, True)}
TABLES = {half: calibrate(model, SCENES.feeds) for half, model in MODELS.items()}
SCALED_AXIS = {"stem": 0, "left": 0, "right": 0, "up": 1, "fc": 1, "fc_transposed": 0, "project": 1}


def initializers(model: onnx.ModelProto) -> dict[str, Any]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def by_name(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {node.name: node for node in model.graph.node}


def producer(model: onnx.ModelProto, tensor: str) -> onnx.NodeProto:
    found: onnx.NodeProto = next(node for node in model.graph.node if tensor in node.output)
    return found


@pytest.mark.parametrize("half", [False, True])
def test_every_weighted_node_and_no_other_is_quantised(half: bool) -> None:
    result = quantized(MODELS[half], TABLES[half])
    assert quantised_nodes(result) == WEIGHTED
    assert quantised_nodes(MODELS[half]) == ()
    onnx.checker.check_model(result, full_check=True)


@pytest.mark.parametrize("half", [False, True])
def test_the_option_set(half: bool) -> None:
    """Explicit int8 zero points of zero; scales of the graph's own type; weights int8 behind a DQ alone, per channel."""
    result = quantized(MODELS[half], TABLES[half])
    constants, nodes = initializers(result), by_name(result)
    for node in result.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert constants[node.input[2]].dtype == np.int8
            assert not constants[node.input[2]].any()
            assert constants[node.input[1]].dtype == (np.float16 if half else np.float32)
    for name in WEIGHTED:
        dequantize = producer(result, nodes[name].input[1])
        axis = next(a.i for a in dequantize.attribute if a.name == "axis")
        assert axis == SCALED_AXIS[name]
        assert constants[dequantize.input[0]].dtype == np.int8
        assert constants[dequantize.input[1]].shape == (constants[dequantize.input[0]].shape[axis],)
        assert not {o.name for o in result.graph.output} & set(nodes[name].output)
    assert constants["fc_b"].dtype == (np.float16 if half else np.float32)
    assert [(e.domain, e.version) for e in result.opset_import] == [("", 19)]
    assert not {f"{name}_w" for name in WEIGHTED} & set(constants)


def test_scales_are_the_table_and_the_weights() -> None:
    result = quantized(MODELS[False], TABLES[False])
    constants, nodes = initializers(result), by_name(result)
    weights = initializers(MODELS[False])
    for name in WEIGHTED:
        activation, weight = (producer(result, nodes[name].input[i]) for i in (0, 1))
        source = by_name(MODELS[False])[name]
        assert constants[activation.input[1]] == pytest.approx(TABLES[False].ranges[source.input[0]].amax / 127)
        true = weights[source.input[1]]
        shape = [-1 if i == SCALED_AXIS[name] else 1 for i in range(true.ndim)]
        scale = constants[weight.input[1]].reshape(shape)
        assert np.abs(constants[weight.input[0]] * scale - true).max() <= scale.max() / 2 * (1 + 1e-5)
        assert (np.abs(constants[weight.input[0]]).max(axis=tuple(np.flatnonzero(np.array(shape) == 1))) == 127).all()


def closeness(source: onnx.ModelProto, quantised: onnx.ModelProto) -> dict[str, tuple[float, float]]:
    """Per output: the median cosine of a crop with the source's, and the RMS of the difference over that of the source."""
    sessions = [reference_session(model) for model in (source, quantised)]
    names = [output.name for output in source.graph.output]
    runs = [[session.run(names, dict(feed)) for feed in SCENES.feeds()] for session in sessions]
    found = {}
    for index, name in enumerate(names):
        a, b = (np.concatenate([outputs[index] for outputs in run]).astype(np.float64) for run in runs)
        a, b = (array.reshape(len(array), -1) for array in (a, b))
        cosines = (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
        found[name] = float(np.median(cosines)), float(np.linalg.norm(a - b) / np.linalg.norm(a))
    return found


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
def test_the_numbers_stay_close(half: bool, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posekit.calibration.ranges.BINS", 512)  # the entropy search takes time with their square
    table = calibrate(MODELS[half], SCENES.feeds, method)
    features, turned = closeness(MODELS[half], quantized(MODELS[half], table)).values()
    assert features[0] > 0.99
    assert turned[1] == 0.0  # geometry is not touched at all


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("which", ["r1_int8_scale", "up_w_scale", "project_w_scale"])
def test_a_hand_broken_scale_is_seen(half: bool, which: str) -> None:
    broken = quantized(MODELS[half], TABLES[half])
    scale = next(tensor for tensor in broken.graph.initializer if tensor.name == which)
    value = numpy_helper.to_array(scale)
    scale.CopyFrom(
        numpy_helper.from_array(
            np.asarray(np.where(np.arange(value.size).reshape(value.shape) % 2, -4, 0.02) * value, value.dtype), which
        )
    )
    assert closeness(MODELS[half], broken)["features"][0] < 0.9


@settings(max_examples=12)
@given(st.sets(st.sampled_from(WEIGHTED)))
def test_excluded_nodes_keep_their_exact_inputs(excluded: set[str]) -> None:
    source = MODELS[True]
    result = quantized(source, TABLES[True], excluded)
    assert quantised_nodes(result) == tuple(name for name in WEIGHTED if name not in excluded)
    before, after = by_name(source), by_name(result)
    for name in excluded:
        assert after[name] == before[name]
    assert set(initializers(result)) >= {f"{name}_w" for name in excluded}


def test_only_a_residual_sum_shares_the_rounded_tensor() -> None:
    result = by_name(quantized(MODELS[False], TABLES[False]))
    assert list(result["bystander"].input) == ["r1"]
    assert list(result["residual"].input) == ["c3", result["left"].input[0]]
    alone = by_name(quantized(MODELS[False], TABLES[False], ["right"]))
    assert list(alone["residual"].input) == ["c3", "r1"]


def test_outputs_and_shared_weights_stay_exact() -> None:
    """A tensor that is both an output and an activation; a weight that two nodes use, of which one is left out."""
    model = toy_network(right_w=np.random.default_rng(1).normal(size=(8, 8, 1, 1)) * 0.3)
    model.graph.output.append(onnx.helper.make_tensor_value_info("r2", TensorProto.FLOAT, None))
    extra = onnx.helper.make_node("Conv", ["r2", "right_w"], ["c3_again"], "again")
    model.graph.node.insert(len(model.graph.node), extra)
    model.graph.output.append(onnx.helper.make_tensor_value_info("c3_again", TensorProto.FLOAT, None))
    table = calibrate(model, SCENES.feeds)
    every = [name for name in (*WEIGHTED, "again") if name != "right"]
    result = quantized(model, table, every)
    figures = closeness(model, result)
    assert quantised_nodes(result) == ("right",)
    assert figures["r2"][1] == 0.0
    assert figures["c3_again"][1] == 0.0


def test_attributes_survive() -> None:
    """ONNX Runtime resets a Gemm's beta even where the bias stays float."""
    (beta,) = (a.f for a in by_name(quantized(MODELS[False], TABLES[False]))["fc"].attribute if a.name == "beta")
    assert beta == 0.5


@pytest.mark.parametrize("reach", [1.0, 5e-3, 1e-3, 2e-5])
def test_small_float16_weights_and_activations_do_not_become_zero(reach: float) -> None:
    """ONNX Runtime's own rule takes a scale of 1 for them."""
    weight = np.random.default_rng(0).normal(size=(8, 8, 1, 1))
    weight *= reach / np.abs(weight).max()
    weight[0] = 0.3
    model = toy_network(half=True, right_w=weight)
    stored = initializers(quantized(model, calibrate(model, SCENES.feeds)))
    true = initializers(model)["right_w"].astype(np.float64)
    scale = stored["right_w_scale"].astype(np.float64).reshape(-1, 1, 1, 1)
    got = stored["right_w_quantized"] * scale
    assert np.abs(got - true).max(axis=(1, 2, 3)) == pytest.approx(0, abs=max(reach, 0.3) / 127)
    smallest = np.abs(got[1:] - true[1:]).max()
    assert smallest <= max(reach / 127, float(np.finfo(np.float16).smallest_subnormal))
    low = TensorRange(reach / 4, 0.0, reach / 4, 0.0)
    table = RangeTable("minmax", 1, calibrate(model, SCENES.feeds).ranges | {"r2": low})
    assert 0 < initializers(quantized(model, table))["r2_int8_scale"] < 0.01


def test_biases_do_not_coarsen_weights() -> None:
    """ONNX Runtime widens a weight's scale for an int32 bias, though the bias stays float."""
    large = toy_network(stem_b=np.full(8, 1e7))
    stored = initializers(quantized(large, calibrate(large, SCENES.feeds)))
    reach = np.abs(initializers(large)["stem_w"]).max(axis=(1, 2, 3))
    assert stored["stem_w_scale"] == pytest.approx(reach / 127)


def test_nodes_without_names_get_their_own() -> None:
    model = toy_network()
    for node in model.graph.node:
        node.ClearField("name")
    result = quantized(model, calibrate(model, SCENES.feeds), ["Conv_4"])
    assert len(quantised_nodes(result)) == len(WEIGHTED) - 1
    assert "Conv_4" not in quantised_nodes(result)


def test_all_excluded_is_the_source() -> None:
    model = toy_network()
    result = quantized(model, TABLES[False], WEIGHTED)
    assert quantised_nodes(result) == ()
    assert [n.op_type for n in result.graph.node] == [n.op_type for n in model.graph.node]
    assert result.graph.initializer == model.graph.initializer


def test_the_source_is_not_changed() -> None:
    model = toy_network()
    before = model.SerializeToString()
    quantized(model, TABLES[False], ["stem"])
    assert model.SerializeToString() == before


def test_equal_input_gives_equal_bytes_in_any_process(tmp_path: Path) -> None:
    script = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from toy_networks import *\nfrom posekit.calibration.qdq import quantized\n"
        "from posekit.calibration.ranges import calibrate\nimport hashlib\n"
        "m = toy_network(True)\nq = quantized(m, calibrate(m, scenes(8).feeds, 'percentile'), ['fc'])\n"
        "print(hashlib.sha256(q.SerializeToString(deterministic=True)).hexdigest())"
    )
    root = Path(__file__).resolve().parents[2]
    digests = {
        subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            check=True,
            cwd=root,
            env={"PYTHONHASHSEED": seed, "PATH": ""},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_what_does_not_fit_is_refused() -> None:
    model, table = MODELS[False], TABLES[False]
    result = quantized(model, table)
    with pytest.raises(PrecisionError, match=r"QuantizeLinear.*Start from"):
        quantized(result, table)
    with pytest.raises(PrecisionError, match="'attention'"):
        quantized(model, table, ["attention"])
    with pytest.raises(PrecisionError, match="no range of 'r1'"):
        quantized(model, RangeTable("minmax", 1, {k: v for k, v in table.ranges.items() if k != "r1"}))
    twice = toy_network()
    twice.graph.node[6].name = "stem"
    with pytest.raises(PrecisionError, match="two nodes called 'stem'"):
        quantized(twice, table)
    old = toy_network(half=True)
    old.opset_import[0].version = 17
    with pytest.raises(PrecisionError, match="opset 17"):
        quantized(old, TABLES[True])
