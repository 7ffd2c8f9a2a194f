"""int8 graphs: their structure, their values against quantisation written out in numpy, and what runtimes make of them."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from ddcat.bundle import Bundle
from ddcat.engines.onnxruntime import OrtGraph
from ddcat.engines.openvino import OpenVinoGraph
from ddcat_export.calibration import measure_ranges
from ddcat_export.errors import ExportError
from ddcat_export.graph_checks import OPSET
from ddcat_export.onnx_export import with_logits
from ddcat_export.parity import sample_images
from ddcat_export.quantise import check_quantised, layers_of, quantise, quantised_tensors

F32 = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def fp32(bundle: Bundle) -> bytes:
    """A ResNet with ASPP: its layers are convolutions."""
    return bundle.files["model.onnx"]


@pytest.fixture(scope="module")
def ranges(fp32: bytes) -> dict[str, float]:
    return measure_ranges(fp32, [sample_images((1, 64, 80), 1)])


@pytest.fixture(scope="module", params=[False, True], ids=["signed", "unsigned"])
def form(request: pytest.FixtureRequest, fp32: bytes, ranges: dict[str, float]) -> tuple[onnx.ModelProto, bool]:
    return onnx.load_model_from_string(quantise(fp32, ranges, unsigned=request.param)), request.param


def constants(model: onnx.ModelProto) -> dict[str, npt.NDArray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


@pytest.mark.parametrize("unsigned", [False, True], ids=["signed", "unsigned"])
@pytest.mark.parametrize("context", ["aspp", "pyramid"])
def test_every_layer_multiplies_bytes_by_bytes(
    fp32: bytes, ranges: dict[str, float], pyramid_graph: bytes, context: str, unsigned: bool
) -> None:
    graph = fp32 if context == "aspp" else pyramid_graph
    ranges = ranges if context == "aspp" else dict.fromkeys(quantised_tensors(graph), 1.0)
    model = onnx.load_model_from_string(quantise(graph, ranges, unsigned=unsigned))
    values = constants(model)
    made_by = {name: node for node in model.graph.node for name in node.output}
    before = {node.name: node for node in onnx.load_model_from_string(graph).graph.node}
    convolutions = [node for node in before.values() if node.op_type == "Conv"]
    # all but the first and the last; a factorised head ends in no convolution, but in a product for each level
    assert len(layers_of(graph)) == len(convolutions) - (2 if context == "aspp" else 0)
    assert {node.name for node in convolutions[1:]} - set(layers_of(graph)) == {
        node.name for node in convolutions if "logits" in node.output
    }
    types, layers = {np.dtype(np.int8)}, layers_of(graph)
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear":
            types.add(values[node.input[2]].dtype)
        if node.name not in layers:
            continue
        maps, weight = (made_by[name] for name in node.input[:2])
        assert (maps.op_type, weight.op_type) == ("DequantizeLinear", "DequantizeLinear")
        data, scales, zeros = (values[name] for name in weight.input)
        assert data.dtype == zeros.dtype == np.int8
        axis = 0 if node.op_type == "Conv" else 1
        assert scales.shape == zeros.shape == data.shape[axis : axis + 1]  # one for each output channel
        assert not zeros.any()
        assert np.abs(data.astype(int)).max(tuple(i for i in range(data.ndim) if i != axis)).max() == 127
        assert node.input[1] not in values  # no float copy
        assert made_by[maps.input[0]].op_type == "QuantizeLinear"
    pairs = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    zeros = {values[node.input[2]].item() for node in pairs}
    assert zeros == ({0, 128} if unsigned else {0})
    assert types == ({np.dtype(np.int8), np.dtype(np.uint8)} if unsigned else {np.dtype(np.int8)})


def test_it_is_about_a_quarter_in_size() -> None:
    content = tiny(channels=256, kernel=3)
    assert len(quantise(content, dict.fromkeys(quantised_tensors(content), 1.0))) < 0.27 * len(content)


def test_the_same_graph_gives_the_same_bytes(fp32: bytes, ranges: dict[str, float]) -> None:
    for unsigned in (False, True):
        again = dict(reversed(ranges.items()))
        assert quantise(fp32, ranges, unsigned=unsigned) == quantise(fp32, again, unsigned=unsigned)


def test_layers_that_are_left_in_float_keep_their_weights(fp32: bytes, ranges: dict[str, float]) -> None:
    first, *_, product = layers_of(fp32)
    model = onnx.load_model_from_string(quantise(fp32, ranges, float_layers=[first, product]))
    values = constants(model)
    kept = {node.name: values[node.input[1]].dtype for node in model.graph.node if node.name in (first, product)}
    assert kept == {first: np.float32, product: np.float32}
    with pytest.raises(ExportError, match="no layer is left to compute in int8"):
        quantise(fp32, ranges, float_layers=layers_of(fp32))
    with pytest.raises(ExportError, match="no layer nobody that could be left"):
        quantise(fp32, ranges, float_layers=["nobody"])


def test_a_range_that_is_not_finite_is_refused(fp32: bytes, ranges: dict[str, float]) -> None:
    with pytest.raises(ExportError, match="is inf: calibrate on images like those of the training"):
        quantise(fp32, {**ranges, quantised_tensors(fp32)[0]: float("inf")})


def replaced(model: onnx.ModelProto, name: str, values: npt.NDArray) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(values, name))


def one_zero_point(model: onnx.ModelProto) -> None:
    name = next(n.input[2] for n in model.graph.node if n.name.endswith("_weight/dequantise") or n.name.startswith("w2"))
    replaced(model, name, np.full_like(constants(model)[name], 1))


def unsigned_bytes(model: onnx.ModelProto) -> None:
    replaced(model, "int8_zero", np.asarray(0, np.uint8))


def shifted_bytes(model: onnx.ModelProto) -> None:
    replaced(model, "int8_zero", np.asarray(3, np.int8))


def scales_of_channels(model: onnx.ModelProto) -> None:
    replaced(model, pair(model).input[1], np.ones(4, np.float32))


def a_scale_of_zero(model: onnx.ModelProto) -> None:
    replaced(model, pair(model).input[1], np.asarray(0, np.float32))


def a_computed_scale(model: onnx.ModelProto) -> None:
    pair(model).input[1] = "div"


def no_zero_point(model: onnx.ModelProto) -> None:
    del pair(model).input[2:]


def pair(model: onnx.ModelProto) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == "QuantizeLinear")


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (one_zero_point, "has zero point 1, expected 0: TensorRT accepts nothing else"),
        (unsigned_bytes, "quantises to uint8, expected int8: TensorRT accepts nothing else"),
        (shifted_bytes, "has zero point 3, expected 0"),
        (scales_of_channels, "has 4 scales for an activation, expected one"),
        (a_scale_of_zero, "has a scale that is not a finite, positive float32"),
        (a_computed_scale, "has a scale or zero point that is not a constant of the graph"),
        (no_zero_point, "has a scale or zero point that is not a constant of the graph"),
    ],
)
def test_a_planted_fault_is_refused(plant: Callable[[onnx.ModelProto], None], message: str) -> None:
    content = tiny()
    model = onnx.load_model_from_string(quantise(content, dict.fromkeys(quantised_tensors(content), 1.0)))
    check_quantised(model)
    plant(model)
    with pytest.raises(ExportError, match=message):
        check_quantised(model)


def test_a_float_graph_is_not_int8() -> None:
    with pytest.raises(ExportError, match="nothing in the graph is quantised"):
        check_quantised(onnx.load_model_from_string(tiny()))


def test_the_form_for_a_cpu_alone_may_be_unsigned(form: tuple[onnx.ModelProto, bool]) -> None:
    model, unsigned = form
    check_quantised(model, unsigned=True)
    if unsigned:
        with pytest.raises(ExportError, match="quantises to uint8, expected int8"):
            check_quantised(model)


def tiny(channels: int = 6, kernel: int = 1, seed: int = 0) -> bytes:
    """Three convolutions with ReLUs between; of the second alone int8 is to be made."""
    random = np.random.default_rng(seed)
    shapes = {"w1": (4, 3, 1, 1), "w2": (channels, 4, kernel, kernel), "w3": (3, channels, 1, 1)}
    if channels > 100:
        shapes |= {"w1": (64, 3, 1, 1), "w2": (channels, 64, kernel, kernel)}
    values = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    values |= {"b2": random.normal(size=channels).astype(np.float32), "levels": np.asarray(255, np.float32)}
    nodes = [
        helper.make_node("Cast", ["image"], ["cast"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Div", ["cast", "levels"], ["div"], "div"),
        helper.make_node("Transpose", ["div"], ["planes"], "planes", perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "w1"], ["a"], "a"),
        helper.make_node("Relu", ["a"], ["x"], "x"),
        helper.make_node("Conv", ["x", "w2", "b2"], ["b"], "b", pads=[kernel // 2] * 4),
        helper.make_node("Relu", ["b"], ["y"], "y"),
        helper.make_node("Conv", ["y", "w3"], ["logits"], "last"),
        helper.make_node("ArgMax", ["logits"], ["highest"], "highest", axis=1, keepdims=0),
        helper.make_node("Cast", ["highest"], ["floats"], "floats", to=TensorProto.FLOAT),
        helper.make_node("Cast", ["floats"], ["labels"], "labels", to=TensorProto.UINT8),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ("batch", "height", "width", 3))],
        [
            helper.make_tensor_value_info("labels", TensorProto.UINT8, ("batch", "height", "width")),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ("batch", 3, "height", "width")),
        ],
        [numpy_helper.from_array(array, name) for name, array in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    content: bytes = model.SerializeToString()
    return content


def rounded(values: F32, scale: npt.ArrayLike) -> F32:
    """What is left of values in signed bytes."""
    return (np.clip(np.rint(values / np.float32(scale)), -128, 127) * np.float32(scale)).astype(np.float32)


def transcribed(content: bytes, images: npt.NDArray[np.uint8], largest: float) -> F32:
    """The logits of `tiny` with its second convolution in int8, every step written out."""
    w = constants(onnx.load_model_from_string(content))
    planes = images.astype(np.float32) / 255  # (N, H, W, 3)
    x = np.maximum(planes @ w["w1"][:, :, 0, 0].T, 0)
    weight = w["w2"][:, :, 0, 0]
    scales = np.abs(weight).max(1, keepdims=True) / 127
    b = rounded(x, largest / 127 or 1.0) @ rounded(weight, scales).T + w["b2"]
    logits: F32 = np.maximum(b, 0) @ w["w3"][:, :, 0, 0].T
    return logits.transpose(0, 3, 1, 2)


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 10**6), share=st.floats(0.3, 1.5))
@example(seed=1206, share=1.0)  # no activation is above 0
def test_values_are_those_of_quantisation_written_out(seed: int, share: float) -> None:
    content, images = tiny(seed=seed), sample_images((2, 5, 7), seed)
    ranges = {name: share * largest for name, largest in measure_ranges(content, [images]).items()}  # below 1: values are cut
    wanted = transcribed(content, images, ranges["x"])
    made = quantise(content, ranges)
    found = ReferenceEvaluator(onnx.load_model_from_string(made)).run(["logits"], {"image": images})
    # OpenVINO is told of floats, for most layers of so small a network are; what it computes in int8 it finds itself
    with OrtGraph(made, threads=1) as ort, OpenVinoGraph(made, precision="fp32", threads=1) as openvino:
        found += [ort.run(images).logits, openvino.run(images).logits]
    w = constants(onnx.load_model_from_string(content))
    # where a value lies at the middle of two bytes, the last bit of a float decides, and the whole byte counts
    quantum = ranges["x"] / 127 * np.abs(w["w3"][:, :, 0, 0]).sum(1).max() * np.abs(w["w2"]).max()
    for logits in found:
        assert np.abs(logits - wanted).max() <= 1.01 * quantum + 1e-5
        assert np.mean(np.abs(logits - wanted) < 1e-5) > 0.95


def test_runtimes_compute_what_onnx_does(fp32: bytes, ranges: dict[str, float]) -> None:
    """Bytes that round the other way grow from layer to layer, but the runtimes are nearer to ONNX than int8 is to fp32."""
    images = sample_images((1, 33, 40), 1)
    with OrtGraph(with_logits(fp32), threads=1) as opened:
        exact = opened.run(images).logits
    assert exact is not None
    for unsigned in (False, True):
        made = with_logits(quantise(fp32, ranges, unsigned=unsigned))
        (wanted,) = ReferenceEvaluator(onnx.load_model_from_string(made)).run(["logits"], {"image": images})
        runtimes = {"ort": OrtGraph(made, threads=1)}
        if unsigned:  # OpenVINO serves no other form
            runtimes["openvino"] = OpenVinoGraph(made, precision="int8", threads=1)
        found = {name: opened.run(images).logits for name, opened in runtimes.items()}
        assert 1e-3 < rms(wanted - exact) / exact.std() < 0.15
        for engine, logits in found.items():
            assert rms(logits - wanted) < 0.75 * rms(wanted - exact), (engine, unsigned)


def rms(values: F32) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
