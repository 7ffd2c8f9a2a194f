"""Forms of operators that the official cases do not try, drawn at random: as ONNX Runtime computes them, or refused."""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from ddcat_export.errors import ExportError
from ddcat_export.twin.executor import Executor

FEW = settings(max_examples=80, deadline=None, derandomize=True, database=None)
SIDES = st.integers(1, 9)


def maps(*shape: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


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


def compare(operator: str, inputs: list[Any], attributes: dict[str, Any], opset: int = 21) -> str | None:
    """Run both: "alike", the twin's refusal, or None where the runtime computes nothing."""
    file = model(operator, inputs, attributes, opset)
    try:
        session = onnxruntime.InferenceSession(file.SerializeToString(), providers=["CPUExecutionProvider"])
        right = session.run(None, {"input_0": inputs[0]})[0]
    except Exception:  # a form that ONNX does not allow
        return None
    try:
        result = Executor(file, ("result",))({"input_0": torch.from_numpy(inputs[0].copy())})["result"].numpy()
    except ExportError as refusal:
        return str(refusal) if right.size else None
    assert result.shape == right.shape
    np.testing.assert_allclose(result, right, rtol=1e-4, atol=1e-4)
    return "alike"


def check(operator: str, inputs: list[Any], attributes: dict[str, Any], *, refused: bool | None) -> None:
    """Hold a drawn form to be refused where it is said to be, and alike everywhere else; None leaves it open."""
    outcome = compare(operator, inputs, attributes)
    assume(outcome is not None)
    assert refused is None or (outcome != "alike") == refused, outcome


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


def is_unclear(attributes: dict[str, Any], sides: tuple[int, int], *, pool: bool) -> bool:
    """Whether automatic padding is where runtimes differ: windows that skip pixels, and dilated pools."""
    if not attributes.get("auto_pad", "").startswith("SAME"):
        return False
    axes = zip(attributes["kernel_shape"], attributes["strides"], attributes["dilations"], sides, strict=True)
    return any(
        (-(-side // stride) - 1) * stride + (kernel - 1) * dilation + 1 < side or (pool and dilation > 1)
        for kernel, stride, dilation, side in axes
    )


def is_larger(attributes: dict[str, Any], sides: tuple[int, int]) -> bool:
    """Whether a window is larger than the padded map."""
    pads = attributes.get("pads", [0] * 4)
    axes = zip(attributes["kernel_shape"], attributes["dilations"], sides, pads[:2], pads[2:], strict=True)
    automatic = attributes.get("auto_pad", "").startswith("SAME")
    return not automatic and any(
        (kernel - 1) * dilation + 1 > side + begin + end for kernel, dilation, side, begin, end in axes
    )


@FEW
@given(windows(), SIDES, SIDES, st.sampled_from([1, 2]))
def test_convolutions(attributes: dict[str, Any], height: int, width: int, group: int) -> None:
    images, kernel = maps(2, 4, height, width), maps(4, 4 // group, *attributes["kernel_shape"])
    dilated = max(attributes["dilations"]) > 1  # the attributes name the kernel's shape, as those of pools do
    unclear = is_unclear(attributes, (height, width), pool=dilated)
    check("Conv", [images, kernel], {**attributes, "group": group}, refused=unclear)


@FEW
@given(windows(), SIDES, SIDES, st.sampled_from([1, 2]))
def test_transposed_convolutions(attributes: dict[str, Any], height: int, width: int, group: int) -> None:
    images, kernel = maps(2, 4, height, width), maps(4, 2, *attributes["kernel_shape"])
    automatic = attributes.get("auto_pad", "").startswith("SAME")
    check("ConvTranspose", [images, kernel], {**attributes, "group": group, "output_padding": [0, 1]}, refused=automatic)


@FEW
@given(windows(), SIDES, SIDES, st.sampled_from([0, 1]), st.sampled_from([None, 0, 1]))
def test_pools(attributes: dict[str, Any], height: int, width: int, ceil: int, counted: int | None) -> None:
    refused: bool | None = is_unclear(attributes, (height, width), pool=True)
    if counted is not None:
        refused = refused or max(attributes["dilations"]) > 1
    if not refused and is_larger(attributes, (height, width)):
        refused = None  # ONNX does not say what such a window gives
    others = {"ceil_mode": ceil} if counted is None else {"ceil_mode": ceil, "count_include_pad": counted}
    operator = "MaxPool" if counted is None else "AveragePool"
    check(operator, [maps(2, 3, height, width)], {**attributes, **others}, refused=refused)


@FEW
@given(
    st.tuples(SIDES, SIDES),
    st.tuples(st.integers(1, 21), st.integers(1, 21)),
    st.sampled_from(["nearest", "linear", "cubic"]),
    st.sampled_from(["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric"]),
    st.sampled_from(["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]),
    st.booleans(),
)
def test_resizing(
    sides: tuple[int, int], sizes: tuple[int, int], mode: str, corners: str, rounding: str, by_scale: bool
) -> None:
    attributes = {"mode": mode, "coordinate_transformation_mode": corners}
    if mode == "nearest":
        attributes["nearest_mode"] = rounding
    refused = mode == "nearest" and corners == "asymmetric" and rounding == "round_prefer_ceil"
    scales = np.array([1, 1, *(size / side for size, side in zip(sizes, sides, strict=True))], np.float32)
    if by_scale:
        whole_pixels = (scales[2:] * np.array(sides, np.float32)).astype(int).tolist() == list(sizes)
        by_size = corners in ("align_corners", "half_pixel_symmetric")
        check("Resize", [maps(1, 2, *sides), None, scales], attributes, refused=refused or (by_size and not whole_pixels))
    else:
        check("Resize", [maps(1, 2, *sides), None, None, whole(1, 2, *sizes)], attributes, refused=refused)


@FEW
@given(
    st.tuples(st.integers(2, 9), st.integers(2, 9)),
    st.floats(0.5, 3, width=32),
    st.sampled_from(["nearest", "linear", "cubic"]),
    st.sampled_from(["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric"]),
    st.sampled_from([0, 1]),
)
def test_scales_that_leave_a_part_of_a_pixel(
    sides: tuple[int, int], scale: float, mode: str, corners: str, outside: int
) -> None:
    attributes = {"mode": mode, "coordinate_transformation_mode": corners}
    if mode == "cubic":
        attributes |= {"exclude_outside": outside, "cubic_coeff_a": -0.5}
    else:
        attributes["nearest_mode"] = "floor"
    parts = any(abs(side * scale - np.floor(np.float32(side) * np.float32(scale))) > 1e-3 for side in sides)
    assume(parts and 1 not in [int(side * scale) for side in sides])
    kept = any(int(side * scale) == side for side in sides)  # which runtimes take for a copy, or not
    refused = kept or corners in ("align_corners", "half_pixel_symmetric")
    check("Resize", [maps(1, 2, *sides), None, np.array([1, 1, scale, scale], np.float32)], attributes, refused=refused)


@FEW
@given(
    st.lists(st.integers(-1, 3), min_size=4, max_size=4),
    st.sampled_from(["constant", "reflect", "edge", "wrap"]),
    st.sampled_from([None, (2, 3), (-1, -2), (1, 2)]),
)
def test_padding(amounts: list[int], mode: str, axes: tuple[int, int] | None) -> None:
    pads = whole(*amounts) if axes is not None else whole(0, 0, *amounts[:2], 0, 0, *amounts[2:])
    value = np.array(0.5, np.float32) if mode == "constant" else None
    channels = axes == (1, 2) and any(amounts[::2])
    inputs = [maps(2, 3, 5, 4), pads, value, *([whole(*axes)] if axes else [])]
    check("Pad", inputs, {"mode": mode}, refused=mode != "constant" and (channels or min(amounts) < 0))


@pytest.mark.parametrize("axis", [-4, -1, 0, 2])
@pytest.mark.parametrize("index", [whole(), np.array(1), np.array(-1), whole(0, -1), whole(0, 1).reshape(2, 1)])
def test_gathering(axis: int, index: npt.NDArray[np.int64]) -> None:
    assert compare("Gather", [maps(2, 3, 5, 4), index], {"axis": axis}) == "alike"


@pytest.mark.parametrize("operator", ["CastLike", "Trilu"])
def test_gradients_of_what_the_official_cases_try_with_whole_numbers_alone(operator: str) -> None:
    executor = Executor(model(operator, [maps(3, 4), *([maps(1).astype(float)] if operator == "CastLike" else [])], {}))
    values = torch.rand(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda given: executor.double()({"input_0": given})["result"], values)


def test_an_index_beyond_the_end_is_refused() -> None:
    with pytest.raises(ExportError, match="Gather at the node"):
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
    for operator in ("Softmax", "LogSoftmax"):
        assert compare(operator, [maps(2, 3, 4)], {"axis": 1}, opset) == "alike"
        assert compare(operator, [maps(2, 3, 4)], {}, opset) == "alike"  # of another axis before opset 13


def test_an_opset_that_says_otherwise_is_refused() -> None:
    with pytest.raises(ExportError, match=r"Clip of opset 10; it supports the operator of opsets 11 to 28"):
        Executor(model("Clip", [maps(2, 3)], {"min": 0.0}, 10))


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes", "opset"),
    [
        ("Squeeze", [maps(1, 3, 1)], {"axes": [0]}, 11),
        ("Unsqueeze", [maps(2, 3)], {"axes": [0, 2]}, 11),
        ("ReduceSum", [maps(2, 3, 4)], {"axes": [1], "keepdims": 0}, 12),
        ("ReduceMean", [maps(2, 3, 4)], {"axes": [-1]}, 17),
        ("ReduceMax", [maps(2, 3, 4)], {}, 11),
        ("Split", [maps(4, 3)], {"split": [4]}, 11),
        ("Split", [maps(4, 3)], {}, 13),
        ("Dropout", [maps(2, 3)], {"ratio": 0.3}, 11),
        ("Dropout", [maps(2, 3)], {}, 13),
        ("BatchNormalization", [maps(2, 3, 4, 5), *[np.abs(maps(3)) + 0.1] * 4], {"epsilon": 1e-2}, 11),
        ("GroupNormalization", [maps(2, 6, 4, 5), maps(3), maps(3)], {"num_groups": 3}, 18),
        ("Pad", [maps(1, 2, 5, 4), whole(0, 0, 1, 2, 0, 0, 2, 1)], {"mode": "reflect"}, 11),
        ("Clip", [maps(2, 3), np.array(-0.5, np.float32)], {}, 11),
        ("GridSample", [maps(1, 2, 5, 4), maps(1, 3, 3, 2)], {"mode": "bicubic"}, 16),
        ("Resize", [maps(1, 2, 5, 4), maps(0), np.array([1, 1, 2, 2], np.float32)], {"mode": "linear"}, 11),
        ("QuantizeLinear", [20 * maps(3, 3), np.array(0.1, np.float32), np.array(3, np.uint8)], {}, 11),
    ],
)
def test_older_forms(operator: str, inputs: list[Any], attributes: dict[str, Any], opset: int) -> None:
    assert compare(operator, inputs, attributes, opset) == "alike"


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes"),
    [
        ("Conv", [maps(1, 2, 5), maps(2, 2, 3)], {}),
        ("MaxPool", [maps(1, 2, 4, 4, 4)], {"kernel_shape": [2, 2, 2]}),
        ("MaxPool", [maps(1, 2, 1, 1)], {"kernel_shape": [2, 1], "dilations": [2, 1], "strides": [2, 1], "pads": [1, 0, 1, 0]}),
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
        ("Slice", [maps(4, 5), whole(1, -2), whole(*[np.iinfo(np.int64).max] * 2)], {}),
        ("Slice", [maps(4, 5), whole(*[np.iinfo(np.int64).min] * 2), whole(-1, 9), None, whole(2, 3)], {}),
        ("Slice", [maps(4, 5), whole(3), whole(1), whole(0), whole(-1)], {}),
        ("Slice", [maps(4, 5), whole(-1), whole(np.iinfo(np.int64).min), whole(1), whole(-2)], {}),
        ("GridSample", [maps(1, 2, 5, 4), maps(1, 3, 3, 2)], {"mode": "cubic", "align_corners": 1}),
        ("InstanceNormalization", [maps(2, 3, 1, 4), maps(3), maps(3)], {}),
        ("CumSum", [maps(2, 7), np.array(-1)], {"reverse": 1, "exclusive": 1}),
        ("DepthToSpace", [maps(1, 8, 2, 3)], {"blocksize": 2, "mode": "CRD"}),
        ("SpaceToDepth", [maps(1, 2, 4, 6)], {"blocksize": 2}),
        ("ScatterND", [maps(4, 3), whole(2, 0).reshape(2, 1), maps(2, 3)], {}),
        ("Trilu", [maps(3, 4), np.array(1)], {"upper": 0}),
        ("Resize", [maps(2, 3, 7), None, None, whole(2, 3, 9)], {"mode": "linear"}),
        ("Resize", [maps(1, 2, 3, 4, 5), None, None, whole(1, 2, 6, 7, 8)], {"mode": "linear"}),
        ("Resize", [maps(1, 2, 4, 5), None, None, whole(8, 7)], {"mode": "linear", "axes": [3, 2]}),
    ],
)
def test_other_forms(operator: str, inputs: list[Any], attributes: dict[str, Any]) -> None:
    assert compare(operator, inputs, attributes) == "alike"


def chosen(constants: bool) -> onnx.ModelProto:
    """An If whose condition comes of the image's size, and whose branches read the values around them."""
    branches = {
        name: helper.make_graph(
            [helper.make_node(operator, ["twice", *others], [f"{name}_out"])],
            name, [], [helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(maps(1, 4), "own")] if others else [],
        )
        for name, operator, others in (("then_branch", "Mul", ["own"]), ("else_branch", "Exp", []))
    }  # fmt: skip
    size = [helper.make_node("Shape", ["input_0"], ["shape"]), helper.make_node("Gather", ["shape", "first"], ["rows"])]
    nodes = [
        helper.make_node("Add", ["input_0", "input_0"], ["twice"]),
        *([] if constants else size),
        helper.make_node("Equal", ["rows", "two"], ["condition"]),
        helper.make_node("If", ["condition"], ["result"], **branches),
    ]
    numbers = {"first": 0, "two": 2} | ({"rows": 2} if constants else {})
    graph = helper.make_graph(
        nodes, "one", [helper.make_tensor_value_info("input_0", TensorProto.FLOAT, ["rows of it", 4])],
        [helper.make_tensor_value_info("result", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array(value), name) for name, value in numbers.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


@pytest.mark.parametrize("constants", [False, True])
@pytest.mark.parametrize("rows", [2, 3])
def test_a_choice_runs_the_branch_that_its_condition_names(constants: bool, rows: int) -> None:
    file, values = chosen(constants), maps(rows, 4)
    session = onnxruntime.InferenceSession(file.SerializeToString(), providers=["CPUExecutionProvider"])
    (right,) = session.run(None, {"input_0": values})
    result = Executor(file)({"input_0": torch.from_numpy(values)})["result"]
    np.testing.assert_allclose(result.numpy(), right, rtol=1e-6)


def test_the_constants_of_a_branch_move_with_the_others() -> None:
    executor = Executor(chosen(constants=False)).double()
    values = torch.rand(2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda given: executor({"input_0": given})["result"], values)
