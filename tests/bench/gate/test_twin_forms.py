"""Forms of operators that the official cases do not try, drawn at random: as ONNX Runtime computes them, or refused."""

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from ddcat_bench.errors import BenchError
from ddcat_bench.gate.twin import Executor

GENERATOR = np.random.default_rng(0)
FEW = settings(max_examples=80, deadline=None)
SIDES = st.integers(1, 9)


def maps(*shape: int) -> npt.NDArray[np.float32]:
    return GENERATOR.normal(size=shape).astype(np.float32)


def whole(*values: int) -> npt.NDArray[np.int64]:
    return np.array(values, np.int64)


def model(operator: str, inputs: list[Any], attributes: dict[str, Any], opset: int = 21) -> onnx.ModelProto:
    """One node, whose first input is the graph's and the others are constants; float64 comes out, whatever it makes."""
    names = [f"input_{place}" if value is not None else "" for place, value in enumerate(inputs)]
    nodes = [
        helper.make_node(operator, names, ["made"], name="the node", **attributes),
        helper.make_node("Cast", ["made"], ["result"], to=TensorProto.DOUBLE),
    ]
    first = helper.make_tensor_value_info("input_0", helper.np_dtype_to_tensor_dtype(inputs[0].dtype), None)
    result = helper.make_tensor_value_info("result", TensorProto.DOUBLE, None)
    constants = [numpy_helper.from_array(value, name) for name, value in zip(names[1:], inputs[1:], strict=True) if name]
    graph = helper.make_graph(nodes, "one", [first], [result], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def compare(operator: str, inputs: list[Any], attributes: dict[str, Any], opset: int = 21) -> str:
    """Run both. They are alike, or one of them refuses: the runtime does where ONNX does not allow a form."""
    file = model(operator, inputs, attributes, opset)
    try:
        session = onnxruntime.InferenceSession(file.SerializeToString(), providers=["CPUExecutionProvider"])
        right = session.run(None, {"input_0": inputs[0]})[0]
    except Exception:
        return "refused by the runtime"
    try:
        result = Executor(file, ("result",))({"input_0": torch.from_numpy(inputs[0].copy())})["result"].numpy()
    except BenchError as refusal:
        return str(refusal)
    assert result.shape == right.shape
    np.testing.assert_allclose(result, right, rtol=1e-4, atol=1e-4)
    return "alike"


@st.composite
def windows(draw: st.DrawFn) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "kernel_shape": draw(st.lists(st.integers(1, 3), min_size=2, max_size=2)),
        "strides": draw(st.lists(st.integers(1, 3), min_size=2, max_size=2)),
        "dilations": draw(st.one_of(st.just([1, 1]), st.lists(st.integers(1, 2), min_size=2, max_size=2))),
    }
    automatic = draw(st.sampled_from(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if automatic == "NOTSET":
        attributes["pads"] = draw(st.lists(st.integers(0, 2), min_size=4, max_size=4))
    else:
        attributes["auto_pad"] = automatic
    return attributes


def test_convolutions() -> None:
    outcomes: Counter[str] = Counter()

    @FEW
    @given(windows(), SIDES, SIDES, st.sampled_from([1, 2]), st.booleans())
    def check(attributes: dict[str, Any], height: int, width: int, group: int, transposed: bool) -> None:
        kernel = maps(4, 2 if transposed else 4 // group, *attributes["kernel_shape"])
        if transposed:
            attributes = {**attributes, "output_padding": [0, 1]}
        outcomes[
            compare(
                "ConvTranspose" if transposed else "Conv", [maps(2, 4, height, width), kernel], {**attributes, "group": group}
            )
        ] += 1

    check()
    assert outcomes["alike"] > 10, outcomes


def test_pools() -> None:
    outcomes: Counter[str] = Counter()

    @FEW
    @given(windows(), SIDES, SIDES, st.sampled_from([0, 1]), st.sampled_from([None, 0, 1]))
    def check(attributes: dict[str, Any], height: int, width: int, ceil: int, counted: int | None) -> None:
        operator = "MaxPool" if counted is None else "AveragePool"
        others = {"ceil_mode": ceil} if counted is None else {"ceil_mode": ceil, "count_include_pad": counted}
        outcomes[compare(operator, [maps(2, 3, height, width)], {**attributes, **others})] += 1

    check()
    assert outcomes["alike"] > 10, outcomes


def test_resizing() -> None:
    outcomes: Counter[str] = Counter()

    @FEW
    @given(
        st.tuples(SIDES, SIDES),
        st.tuples(st.integers(1, 21), st.integers(1, 21)),
        st.sampled_from(["nearest", "linear", "cubic"]),
        st.sampled_from(["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric"]),
        st.sampled_from(["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]),
        st.booleans(),
    )
    def check(sides: tuple[int, int], sizes: tuple[int, int], mode: str, corners: str, rounding: str, by_scale: bool) -> None:
        attributes = {"mode": mode, "coordinate_transformation_mode": corners}
        if mode == "nearest":
            attributes["nearest_mode"] = rounding
        images = maps(1, 2, *sides)
        if by_scale:
            scales = np.array([1, 1, *(size / side for size, side in zip(sizes, sides, strict=True))], np.float32)
            outcomes[compare("Resize", [images, None, scales], attributes)] += 1
        else:
            outcomes[compare("Resize", [images, None, None, whole(1, 2, *sizes)], attributes)] += 1

    check()
    assert outcomes["alike"] > 10, outcomes


def test_padding() -> None:
    outcomes: Counter[str] = Counter()

    @FEW
    @given(
        st.lists(st.integers(-1, 3), min_size=4, max_size=4),
        st.sampled_from(["constant", "reflect", "edge", "wrap"]),
        st.sampled_from([None, (2, 3), (-1, -2), (1, 2)]),
    )
    def check(amounts: list[int], mode: str, axes: tuple[int, int] | None) -> None:
        pads = whole(*amounts) if axes is not None else whole(0, 0, *amounts[:2], 0, 0, *amounts[2:])
        value = np.array(0.5, np.float32) if mode == "constant" else None
        outcomes[compare("Pad", [maps(2, 3, 5, 4), pads, value, *([whole(*axes)] if axes else [])], {"mode": mode})] += 1

    check()
    assert outcomes["alike"] > 10, outcomes


@pytest.mark.parametrize("axis", [-4, -1, 0, 2])
@pytest.mark.parametrize("index", [whole(), np.array(1), np.array(-1), whole(0, -1), whole(0, 1).reshape(2, 1)])
def test_gathering(axis: int, index: npt.NDArray[np.int64]) -> None:
    assert compare("Gather", [maps(2, 3, 5, 4), index], {"axis": axis}) == "alike"


def test_an_index_beyond_the_end_is_refused() -> None:
    with pytest.raises(BenchError, match="Gather at the node"):
        Executor(model("Gather", [maps(2, 3), whole(3)], {"axis": 0}))({"input_0": torch.zeros(2, 3)})


@pytest.mark.parametrize("axis", [-3, 0, 1])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("count", [1, 3])
def test_quantising(axis: int, dtype: type, count: int) -> None:
    values = 20 * maps(3, 3, 3, 2)
    scale, zero = np.linspace(0.1, 0.3, count, dtype=np.float32), np.full(count, 3, dtype)
    steps = [scale, zero] if count > 1 else [scale[0], zero[0]]
    assert compare("QuantizeLinear", [values, *steps], {"axis": axis}) == "alike"
    assert compare("DequantizeLinear", [values.astype(dtype), *steps], {"axis": axis}) == "alike"


@pytest.mark.parametrize("opset", [11, 12, 13, 21])
def test_an_operator_is_computed_as_its_opset_says(opset: int) -> None:
    outcome = compare("Softmax", [maps(2, 3, 4)], {"axis": 1}, opset)
    assert outcome == "alike" if opset >= 13 else f"Softmax of opset {opset}" in outcome


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes"),
    [
        ("Conv", [maps(1, 2, 5), maps(2, 2, 3)], {}),
        ("MaxPool", [maps(1, 2, 4, 4, 4)], {"kernel_shape": [2, 2, 2]}),
        ("GlobalAveragePool", [maps(1, 2, 3, 4, 5)], {}),
        ("Clip", [maps(2, 3)], {}),
        ("Clip", [maps(2, 3), None, np.array(0.5, np.float32)], {}),
        ("Squeeze", [maps(1, 3, 1)], {}),
        ("Unsqueeze", [maps(2, 3), whole(0, -1)], {}),
        ("Expand", [maps(2, 1, 3), whole(1, 4, 1)], {}),
        ("Div", [whole(-7, 7, 9), whole(2, -2, 4)], {}),
        ("ReduceL2", [maps(2, 3, 4), whole(1, -1)], {"keepdims": 0}),
        ("LayerNormalization", [maps(2, 3, 4), maps(4), maps(4)], {"epsilon": 1e-3}),
        ("Split", [maps(4, 3)], {"num_outputs": 1}),
    ],
)
def test_other_forms(operator: str, inputs: list[Any], attributes: dict[str, Any]) -> None:
    assert compare(operator, inputs, attributes) == "alike"
