import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from ddcat.engines.errors import EngineError
from ddcat_export.engines.tensorrt.graph import adapt
from tests.bundles import small_graph


def answers(content: bytes, images: np.ndarray) -> list[np.ndarray]:
    found: list[np.ndarray] = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]).run(
        None, {"image": images}
    )
    return found


@pytest.mark.parametrize("opset", [17, 22])
@pytest.mark.parametrize("int8", [False, True])
def test_a_fitted_graph_computes_the_same(opset: int, int8: bool) -> None:
    graph = small_graph(int8=int8, confidence=not int8)
    fitted = adapt(graph, "TensorRT", opset, int8=int8)
    assert onnx.load_model_from_string(fitted).opset_import[0].version == min(opset, 18)
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


node = helper.make_node
QUANTISE = node("QuantizeLinear", ["float", "scale", "zero"], ["q"], name="q")
DEQUANTISE = node("DequantizeLinear", ["q", "scale", "zero"], ["y"], name="d")
WITHOUT_ZERO = (node("QuantizeLinear", ["float", "scale"], ["q"], name="q"), node("DequantizeLinear", ["q", "scale"], ["y"]))
ONE = np.float32(1)


@pytest.mark.parametrize(
    ("graph", "fault"),
    [
        (of_nodes(QUANTISE, DEQUANTISE, scale=ONE, zero=np.int8(0)), None),
        (of_nodes(QUANTISE, DEQUANTISE, scale=ONE, zero=np.uint8(0)), r"q \(QuantizeLinear\): it quantises to uint8, which"),
        (of_nodes(*WITHOUT_ZERO, scale=ONE), r"q \(QuantizeLinear\): it quantises to uint8, which TensorRT reads as int8"),
        (of_nodes(cast("float", "y", "DOUBLE")), r"c \(Cast\): it computes in float64, which TensorRT reads as float32"),
    ],
)
def test_what_the_parser_would_change_is_refused(graph: bytes, fault: str | None) -> None:
    if fault is None:
        adapt(graph, "TensorRT 10.13", 22, int8=True)
    else:
        with pytest.raises(EngineError, match=rf"^TensorRT 10.13 does not accept the graph: {fault}") as refusal:
            adapt(graph, "TensorRT 10.13", 22, int8=False)
        assert "\n" not in str(refusal.value)


def test_the_shape_of_the_image_is_that_of_its_float_form() -> None:
    graph = of_nodes(node("Shape", ["image"], ["s"]), cast("s", "y", "FLOAT"))
    model = onnx.load_model_from_string(graph)
    nodes = [model.graph.node[1], model.graph.node[0], model.graph.node[2], model.graph.node[3]]
    del model.graph.node[:]
    model.graph.node.extend(nodes)  # the shape is asked for before there is a float form
    fitted = adapt(model.SerializeToString(), "TensorRT 10.13", 22, int8=False)
    images = np.zeros((2, 5, 7, 3), np.uint8)
    np.testing.assert_array_equal(answers(fitted, images)[0], [2, 5, 7, 3])
    assert [(n.op_type, n.input[0]) for n in onnx.load_model_from_string(fitted).graph.node[:2]] == [
        ("Cast", "image"), ("Shape", "float"),
    ]  # fmt: skip


def test_an_int8_graph_must_quantise() -> None:
    with pytest.raises(EngineError, match="it has no QuantizeLinear"):
        adapt(small_graph(), "TensorRT 10.13", 22, int8=True)


def test_a_graph_that_cannot_be_made_older() -> None:
    model = onnx.load_model_from_string(small_graph())
    model.opset_import[0].version = 20
    model.graph.node.insert(0, node("Gelu", ["weight"], ["unused"]))  # since opset 20
    with pytest.raises(EngineError, match=r"reads ONNX up to opset 17, and the graph of opset 20 cannot be converted: ."):
        adapt(model.SerializeToString(), "TensorRT 8.6.1", 17, int8=False)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(EngineError, match=r"only operators of ONNX itself, but the graph has some of .*com.microsoft"):
        adapt(model.SerializeToString(), "TensorRT 10.13", 22, int8=False)
