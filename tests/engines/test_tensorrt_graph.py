from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from ddcat.engines.errors import EngineError
from ddcat_export.engines.tensorrt.graph import adapt

VERSIONS = ("8.6.1", "10.13.2.6", "11.4.0.106")


def answers(content: bytes, images: np.ndarray) -> list[np.ndarray]:
    found: list[np.ndarray] = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]).run(
        None, {"image": images}
    )
    return found


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("int8", [False, True])
def test_a_fitted_graph_computes_the_same(make_graph: Callable, version: str, int8: bool) -> None:
    graph = make_graph(int8=int8, confidence=not int8)
    fitted = adapt(graph, version, "int8" if int8 else "fp32")
    assert onnx.load_model_from_string(fitted).opset_import[0].version == (17 if version.startswith("8") else 18)
    images = np.random.default_rng(0).integers(0, 256, (2, 9, 10, 3)).astype(np.uint8)
    for ours, theirs in zip(answers(fitted, images), answers(graph, images), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def of_nodes(*nodes: onnx.NodeProto, **constants: np.ndarray) -> bytes:
    """A graph: image -> float, the nodes from `float` to `y`, y -> labels."""
    first = helper.make_node("Cast", ["image"], ["float"], name="first", to=TensorProto.FLOAT)
    last = helper.make_node("Cast", ["y"], ["labels"], name="last", to=TensorProto.UINT8)
    shape = ["batch", "height", "width", 3]
    graph = helper.make_graph(
        [first, *nodes, last],
        "made",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("labels", TensorProto.UINT8, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    content: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()
    return content


def cast(source: str, to: str, dtype: str) -> onnx.NodeProto:
    return node("Cast", [source], [to], name="c", to=TensorProto.DataType.Value(dtype))


def scaled(value: np.float32) -> onnx.NodeProto:
    return node("Constant", [], ["scale"], value=numpy_helper.from_array(np.asarray(value)))


node = helper.make_node
QUANTISE = node("QuantizeLinear", ["float", "scale", "zero"], ["q"], name="q")
DEQUANTISE = node("DequantizeLinear", ["q", "scale", "zero"], ["y"], name="d")
ONE, NIL = np.float32(1), np.int8(0)
SIZES = {"sizes": np.array([1, 4, 4, 3])}
TO_SIZES = ["float", "", "", "sizes"]


@pytest.mark.parametrize(
    ("graph", "version", "fault"),
    [
        (of_nodes(QUANTISE, DEQUANTISE, scale=ONE, zero=NIL), "10.13", None),
        (of_nodes(scaled(ONE), QUANTISE, DEQUANTISE, zero=NIL),
         "10.13", None),
        (of_nodes(scaled(-ONE), QUANTISE, DEQUANTISE, zero=NIL),
         "10.13", "not positive and finite"),
        (of_nodes(cast("whole", "scale", "FLOAT"), QUANTISE, DEQUANTISE, whole=np.int64(1), zero=NIL),
         "10.13", "its scale is computed: use a constant"),
        (of_nodes(QUANTISE, DEQUANTISE, scale=ONE, zero=np.int8(3)),
         "10.13", r"q \(QuantizeLinear\): its zero point is not zero"),
        (of_nodes(QUANTISE, DEQUANTISE, scale=ONE, zero=np.uint8(0)), "10.13", "quantises to uint8: use int8 alone"),
        (of_nodes(node("QuantizeLinear", ["float", "scale"], ["q"]), DEQUANTISE, scale=ONE, zero=NIL), "10.13", "to uint8"),
        (of_nodes(QUANTISE, DEQUANTISE, scale=np.float32(-1), zero=NIL), "10.13", "not positive and finite"),
        (of_nodes(QUANTISE, DEQUANTISE, scale=np.ones(3, np.float32), zero=np.zeros(3, np.int8)), "10.13", "for each channel"),
        (of_nodes(cast("float", "i", "INT32"), cast("i", "y", "INT64")), "11.4",
         r"last \(Cast\): it casts int64 to uint8: only from float32 and float16"),
        (of_nodes(cast("image", "i", "INT64"), cast("i", "y", "FLOAT")),
         "11.4", r"c \(Cast\): it casts uint8 to int64"),
        (of_nodes(cast("float", "b", "UINT8"), cast("b", "y", "FLOAT")),
         "11.4", "only inputs and outputs may be uint8"),
        (of_nodes(cast("float", "b", "DOUBLE"), cast("b", "y", "FLOAT")),
         "11.4", "casts to double: it has no such type"),
        (of_nodes(cast("float", "b", "BFLOAT16"), cast("b", "y", "FLOAT")),
         "8.6.1", "version 8 has no bfloat16"),
        (of_nodes(node("Transpose", ["image"], ["t"], name="t"), cast("t", "y", "FLOAT")), "10.13",
         r"t \(Transpose\): it does not take one of uint8"),
        (of_nodes(node("NonZero", ["float"], ["i"], name="n"), cast("i", "y", "FLOAT")), "10.13",
         r"n \(NonZero\): it is not known to take such a node"),
        (of_nodes(node("Resize", TO_SIZES, ["y"], mode="linear", coordinate_transformation_mode="align_corners"),
                  **SIZES), "10.13", None),
        (of_nodes(node("Resize", TO_SIZES, ["y"], mode="cubic"), **SIZES), "10.13", "resizes by cubic"),
        (of_nodes(node("Resize", TO_SIZES, ["y"], mode="linear", antialias=1), **SIZES), "10.13", "antialias"),
        (of_nodes(node("Shape", ["float"], ["s"]), node("ReduceMax", ["float", "s"], ["y"])), "10.13", "its axes are computed"),
        (of_nodes(node("MaxPool", ["float"], ["y"], kernel_shape=[1, 1], dilations=[2, 2])), "10.13", "pools with dilation"),
        (of_nodes(node("Shape", ["float"], ["s"]), node("Add", ["s", "big"], ["i"]), cast("i", "y", "FLOAT"),
                  big=np.array([2**40] * 4)), "8.6.1", "the constant big is beyond int32"),
        (of_nodes(node("Shape", ["float"], ["s"]), node("Add", ["s", "big"], ["i"]), cast("i", "y", "FLOAT"),
                  big=np.array([2**40] * 4)), "10.13", None),
        (of_nodes(node("Slice", ["float", "start", "big"], ["y"]), start=np.array([0]),
         big=np.array([2**63 - 1])), "8.6.1", None),
        (of_nodes(node("Shape", ["float"], ["s"]), node("ReduceSum", ["s"], ["i"], name="r"),
                  cast("i", "y", "FLOAT")), "8.6.1", r"r \(ReduceSum\): it does not take one of int64"),
    ],
)  # fmt: skip
def test_what_is_taken(graph: bytes, version: str, fault: str | None) -> None:
    if fault is None:
        adapt(graph, version, "fp32")
    else:
        with pytest.raises(EngineError, match=rf"TensorRT {version} does not take the graph: .*{fault}") as refusal:
            adapt(graph, version, "fp32")
        assert "\n" not in str(refusal.value)


def test_the_shape_of_the_image_is_that_of_its_float_form() -> None:
    graph = of_nodes(node("Shape", ["image"], ["s"]), cast("s", "y", "FLOAT"))
    model = onnx.load_model_from_string(graph)
    nodes = [model.graph.node[1], model.graph.node[0], model.graph.node[2], model.graph.node[3]]
    del model.graph.node[:]
    model.graph.node.extend(nodes)  # the shape is asked for before there is a float form
    fitted = adapt(model.SerializeToString(), "10.13", "fp32")
    images = np.zeros((2, 5, 7, 3), np.uint8)
    np.testing.assert_array_equal(answers(fitted, images)[0], [2, 5, 7, 3])
    assert [(n.op_type, n.input[0]) for n in onnx.load_model_from_string(fitted).graph.node[:2]] == [
        ("Cast", "image"), ("Shape", "float"),
    ]  # fmt: skip


def test_an_int8_graph_must_quantise(make_graph: Callable) -> None:
    with pytest.raises(EngineError, match="it has no QuantizeLinear"):
        adapt(make_graph(), "10.13", "int8")


def test_a_graph_that_cannot_be_made_older(make_graph: Callable) -> None:
    model = onnx.load_model_from_string(make_graph())
    model.opset_import[0].version = 20
    model.graph.node.insert(0, node("Gelu", ["weight"], ["unused"]))  # since opset 20
    with pytest.raises(EngineError, match=r"reads ONNX up to opset 17, and the graph of opset 20 cannot be made one: ."):
        adapt(model.SerializeToString(), "8.6.1", "fp32")
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(EngineError, match=r"operators of ONNX alone, and the graph has some of .*com.microsoft"):
        adapt(model.SerializeToString(), "10.13", "fp32")
