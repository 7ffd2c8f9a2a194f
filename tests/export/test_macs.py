"""Multiply-adds, by hand."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ddcat_export.errors import ExportError
from ddcat_export.macs import multiply_adds


def graph(nodes: list[tuple[str, str, tuple[int, ...], dict[str, object]]]) -> bytes:
    """A chain of nodes on the planes of an image, each with a weight: (operator, where the weight stands, its shape, ...)."""
    made = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["x0"], perm=[0, 3, 1, 2]),
    ]
    weights = []
    for index, (operator, place, shape, options) in enumerate(nodes):
        weights.append(numpy_helper.from_array(np.ones(shape, np.float32), f"w{index}"))
        inputs = [f"x{index}", f"w{index}"] if place == "right" else [f"w{index}", f"x{index}"]
        made.append(helper.make_node(operator, inputs, [f"x{index + 1}"], name=f"n{index}", **options))
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", "height", "width", 3])
    last = helper.make_tensor_value_info(f"x{len(nodes)}", TensorProto.FLOAT, None)
    whole = helper.make_graph(made, "g", [image], [last], weights)
    content: bytes = helper.make_model(whole, opset_imports=[helper.make_opsetid("", 22)]).SerializeToString()
    return content


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([("Conv", "right", (8, 3, 3, 3), {"pads": [1, 1, 1, 1], "strides": [2, 2]})], 8 * 5 * 7 * 3 * 9),
        ([("Conv", "right", (6, 1, 3, 3), {"group": 3})], 6 * 8 * 12 * 9),
        ([("ConvTranspose", "right", (3, 4, 2, 2), {"strides": [2, 2]})], 3 * 10 * 14 * 4 * 4),
        ([("MatMul", "right", (14, 5), {})], 3 * 10 * 5 * 14),
        ([("MatMul", "left", (6, 10), {})], 3 * 6 * 14 * 10),
        ([("MatMul", "left", (6, 10), {}), ("MatMul", "right", (14, 2), {})], 3 * 6 * 14 * 10 + 3 * 6 * 2 * 14),
    ],
)
def test_they_are_counted_by_shape(nodes: list[tuple[str, str, tuple[int, ...], dict[str, object]]], expected: int) -> None:
    assert multiply_adds(graph(nodes), (10, 14)) == expected


def test_a_product_of_small_weights_counts() -> None:
    model = onnx.load_model_from_string(graph([("MatMul", "right", (14, 5), {})]))
    model.graph.initializer.extend(
        numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in (("a", (10, 6)), ("b", (6, 5)))
    )
    product = helper.make_node("MatMul", ["a", "b"], ["c"], name="product")
    total = helper.make_node("Add", ["x1", "c"], ["sum"])
    model.graph.node.extend([product, total])
    model.graph.output[0].name = "sum"
    assert multiply_adds(model.SerializeToString(), (10, 14)) == 3 * 10 * 5 * 14 + 10 * 5 * 6


def test_a_shape_that_is_not_known_is_refused() -> None:
    model = onnx.load_model_from_string(graph([("MatMul", "left", (6, 4), {})]))
    cast, product = model.graph.node[0], model.graph.node[2]
    places = helper.make_node("NonZero", ["image"], ["places"])  # as many columns as the image has values that are not 0
    cast.input[0], product.input[1] = "places", "float"
    del model.graph.node[:]
    model.graph.node.extend([places, cast, product])
    with pytest.raises(ExportError, match="the shapes of n0 do not follow from the size 10x14"):
        multiply_adds(model.SerializeToString(), (10, 14))
