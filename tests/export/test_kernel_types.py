"""What the file says about each convolution and matrix product."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from toy_engines import compiled, compiled_as_written, rtx_only, toy_graph

from posekit.export.kernel_types import as_chosen, product_types
from posekit.runtime.engines.kernels import check_kernels
from posekit.runtime.errors import EngineError, ExportError

NUMBERS = {"fp32": "Float", "fp16": "Half", "int8": "Int8", "int8-fp32": "Int8"}


@pytest.mark.parametrize("precision", NUMBERS)
def test_each_product_has_the_type_of_its_numbers(precision: str) -> None:
    number = NUMBERS[precision]
    assert product_types(onnx.load_from_string(toy_graph(precision))) == {"conv": number, "matmul": number}


def test_weights_that_are_only_stored_in_int8_are_no_int8_product() -> None:
    model = onnx.load_from_string(toy_graph("int8"))
    matmul = next(node for node in model.graph.node if node.name == "matmul")
    matmul.input[0] = "mean"
    assert product_types(model) == {"conv": "Int8", "matmul": "Half"}


def test_a_node_without_a_name_is_called_as_the_parser_calls_it() -> None:
    model = onnx.load_from_string(toy_graph("fp32"))
    next(node for node in model.graph.node if node.name == "conv").name = ""
    assert set(product_types(model)) == {"node_of_conv", "matmul"}


def products(*nodes: onnx.NodeProto, number: int = TensorProto.FLOAT) -> bytes:
    """x (batch, 16, 8) through these nodes to y; w (8, 12) is a weight."""
    weight = np.random.default_rng(0).normal(size=(8, 12)).astype(helper.tensor_dtype_to_np_dtype(number))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", number, ["batch", 16, 8])],
        [helper.make_tensor_value_info("y", number, ["batch", 16, 12])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.array(0, np.float32), "zero")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def branch(name: str, node: str) -> onnx.GraphProto:
    y = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, ["batch", 16, 12])
    return helper.make_graph([helper.make_node("MatMul", ["x", "w"], [f"{name}_y"], node)], name, [], [y])


def chosen_at_run_time(then: str, otherwise: str) -> tuple[onnx.NodeProto, ...]:
    return (
        helper.make_node("ReduceMax", ["x"], ["most"], "most", keepdims=0),
        helper.make_node("Greater", ["most", "zero"], ["bright"], "bright"),
        helper.make_node(
            "If", ["bright"], ["y"], "if", then_branch=branch("a", then), else_branch=branch("b", otherwise)
        ),
    )


@pytest.mark.parametrize(("number", "name"), [(TensorProto.FLOAT, "Float"), (TensorProto.FLOAT16, "Half")])
def test_an_einsum_is_a_product(number: int, name: str) -> None:
    graph = products(helper.make_node("Einsum", ["x", "w"], ["y"], "sum", equation="bij,jk->bik"), number=number)
    assert product_types(onnx.load_from_string(graph)) == {"sum": name}
    turned = products(
        helper.make_node("Einsum", ["x"], ["turned"], "turn", equation="bij->bji"),
        helper.make_node("Einsum", ["turned", "w"], ["y"], "sum", equation="bji,jk->bik"),
        number=number,
    )
    assert product_types(onnx.load_from_string(turned)) == {"sum": name}


def test_products_in_branches_count() -> None:
    graph = onnx.load_from_string(products(*chosen_at_run_time("one", "other")))
    assert product_types(graph) == {"one": "Float", "other": "Float"}
    assert product_types(onnx.load_from_string(products(*chosen_at_run_time("mm", "mm")))) == {"mm": "Float"}


@rtx_only
@pytest.mark.parametrize(
    "nodes",
    [
        (helper.make_node("Einsum", ["x", "w"], ["y"], "sum", equation="bij,jk->bik"),),
        chosen_at_run_time("one", "other"),
        chosen_at_run_time("mm", "mm"),
    ],
    ids=["einsum", "if", "if with one name"],
)
def test_they_compile_as_written(nodes: tuple[onnx.NodeProto, ...]) -> None:
    kernels = compiled_as_written(products(*nodes)).report.kernels
    assert any(kernel.multiplies and kernel.multiplied == "Float" for kernel in kernels)


@rtx_only
@pytest.mark.parametrize(
    ("chosen", "told"),
    [
        (("conv", "matmul"), "matmul: .* for Int8"),  # one that was to be int8 is back in float
        ((), "conv: .* for Half"),  # one that was to stay in float is int8
    ],
)
def test_an_int8_file_is_held_against_what_was_chosen(chosen: tuple[str, ...], told: str) -> None:
    model = onnx.load_from_string(toy_graph("int8"))
    matmul = next(node for node in model.graph.node if node.name == "matmul")
    matmul.input[0] = "mean"
    plan, types = compiled(model.SerializeToString()), product_types(model)
    check_kernels(plan.report.kernels, types)  # against itself it is what it says
    check_kernels(plan.report.kernels, as_chosen(types, ["conv"]))
    with pytest.raises(EngineError, match=told):
        check_kernels(plan.report.kernels, as_chosen(types, chosen))


def test_types_that_disagree_are_refused() -> None:
    model = onnx.load_from_string(toy_graph("fp32"))
    next(node for node in model.graph.node if node.op_type == "Cast").attribute[0].i = TensorProto.FLOAT16
    with pytest.raises(ExportError, match="types of a graph"):
        product_types(model)
    whole = helper.make_graph(
        [helper.make_node("MatMul", ["a", "a"], ["b"], name="integers")],
        "g",
        [helper.make_tensor_value_info("a", TensorProto.INT32, [2, 2])],
        [helper.make_tensor_value_info("b", TensorProto.INT32, [2, 2])],
    )
    with pytest.raises(ExportError, match="'integers' of no float type"):
        product_types(helper.make_model(whole, opset_imports=[helper.make_opsetid("", 19)], ir_version=9))
