"""What the file says about each convolution and matrix product."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper
from toy_engines import toy_graph

from posekit.export.kernel_types import product_types
from posekit.runtime.errors import ExportError

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
