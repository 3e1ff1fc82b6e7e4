"""Whether the rules tell the truth: TensorRT-RTX compiles the bad graphs, ONNX Runtime loads them. No GPU is needed."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from lint_cases import CASES, Case, graph, half_conv
from onnx import ModelProto

from posekit.export.lint import lint
from posekit.export.lint.operators import INTEGER, UNSUPPORTED

BY_RTX = [case for case in CASES if case.rtx]
BY_ORT = [case for case in CASES if case.ort]


@pytest.fixture(scope="module")
def trt() -> Any:
    """The bindings of TensorRT-RTX."""
    package = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed", exc_type=ImportError)
    return package.tensorrt_rtx


def compiler(trt: Any) -> tuple[Any, Any, Any, list[str]]:
    """(builder, network, parser, errors as they come)."""
    errors: list[str] = []

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                errors.append(message)

    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    return builder, network, trt.OnnxParser(network, log), errors


def refusal(trt: Any, model: ModelProto) -> str | None:
    """What TensorRT-RTX says against a graph; None if it compiles it. Dynamic axes are 1 to 4."""
    builder, network, parser, errors = compiler(trt)
    if not parser.parse(model.SerializeToString()):
        return "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    profile = builder.create_optimization_profile()
    for tensor in map(network.get_input, range(network.num_inputs)):
        profile.set_shape(tensor.name, *(tuple(n if size < 0 else size for size in tensor.shape) for n in (1, 2, 4)))
    config.add_optimization_profile(profile)
    return None if builder.build_serialized_network(network, config) is not None else "; ".join(errors)


def _id(case: Case) -> str:
    return case.rule


@pytest.mark.parametrize("case", BY_RTX, ids=_id)
def test_tensorrt_rtx_does_what_the_rule_says(trt: Any, case: Case) -> None:
    words = refusal(trt, case.bad())
    assert (words is not None) == (case.rtx == "refuses"), words


@pytest.mark.parametrize("case", BY_RTX, ids=_id)
def test_tensorrt_rtx_compiles_the_good_twin(trt: Any, case: Case) -> None:
    assert refusal(trt, case.good()) is None


def test_tensorrt_rtx_has_none_of_the_operators_in_the_table(trt: Any) -> None:
    _, _, parser, _ = compiler(trt)
    missing = [op for op, targets in UNSUPPORTED.items() if "tensorrt-rtx" in targets]
    by_build = {"NonMaxSuppression", "NonZero"}  # parsed, but nothing implements them
    assert [op for op in (*missing, *INTEGER) if parser.supports_operator(op)] == sorted(by_build)
    assert parser.supports_operator("Conv")


@pytest.mark.parametrize("op_type", ["NonZero", "NonMaxSuppression"])
def test_tensorrt_rtx_parses_but_cannot_build(trt: Any, op_type: str) -> None:
    bad = {
        "NonZero": graph("[n] y = NonZero(x)", outputs="int64[2,M] y"),
        "NonMaxSuppression": graph(
            "[n] y = NonMaxSuppression(b, s, k)", "float[1,8,4] b, float[1,1,8] s", "int64[M,3] y", "int64 k = {4}"
        ),
    }
    assert refusal(trt, bad[op_type]) is not None


def loads(model: ModelProto) -> bool:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:  # noqa: BLE001 - its exceptions have no root of their own
        return False
    return True


@pytest.mark.parametrize("case", BY_ORT, ids=_id)
def test_onnx_runtime_does_what_the_rule_says(case: Case) -> None:
    assert loads(case.bad()) == (case.ort == "accepts")


@pytest.mark.parametrize("case", CASES, ids=_id)
def test_onnx_runtime_loads_the_good_twin(case: Case) -> None:
    assert loads(case.good())


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("requantised", [False, True])
def test_onnx_runtime_is_wrong_where_the_rule_says_so(relu: bool, requantised: bool) -> None:
    """The truth is the graph as written, without optimisers; with the one optimiser off, it is that again."""
    model = half_conv(requantised, relu)
    flagged = "onnxruntime-fp16-scales" in {finding.rule for finding in lint(model, ["onnxruntime-cpu"])}
    x = np.random.default_rng(0).uniform(-0.4, 0.4, (3, 2, 4, 4)).astype(np.float16)

    def outputs(level: Any = None, **how: Any) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        if level is not None:
            options.graph_optimization_level = level
        content = model.SerializeToString()
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"], **how)
        return session.run(None, {"x": x})[0].astype(np.float64)

    truth = outputs(onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL)
    error, held = (
        np.abs(found - truth).max() / np.abs(truth).max()
        for found in (outputs(), outputs(disabled_optimizers=["WeightBiasQuantization"]))
    )
    assert flagged == requantised
    assert held < 0.05
    assert (error > 0.2) == flagged
