"""Every operator of the differentiable executor, beside ONNX's own reference."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from ddcat_bench.errors import BenchError
from ddcat_bench.gate.twin_nodes import NODES

GENERATOR = np.random.default_rng(0)
MAPS = GENERATOR.normal(size=(2, 4, 6, 5)).astype(np.float32)
ROWS = GENERATOR.normal(size=(3, 4)).astype(np.float32)
POSITIVE = np.abs(MAPS) + 0.1
OTHER = np.roll(MAPS, 1)
WHOLE = GENERATOR.integers(-20, 20, (3, 4))
MASK = MAPS > 0
KERNEL = GENERATOR.normal(size=(6, 2, 3, 3)).astype(np.float32)  # of two groups
BACK = GENERATOR.normal(size=(4, 3, 2, 2)).astype(np.float32)
BIAS = GENERATOR.normal(size=6).astype(np.float32)
SCALES = np.array([0.1, 0.2, 0.05, 0.3], np.float32)
ZEROS = np.array([3, 0, 128, 255], np.uint8)


def whole(*values: int) -> npt.NDArray[np.int64]:
    return np.array(values, np.int64)


CASES: list[tuple[str, list[Any], dict[str, Any]]] = [
    *((name, [MAPS], {}) for name in ("Abs", "Erf", "Exp", "Floor", "Identity", "Neg", "Relu", "Sigmoid", "Tanh", "HardSwish")),
    *((name, [POSITIVE], {}) for name in ("Reciprocal", "Sqrt")),
    *((name, [MAPS, OTHER], {}) for name in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Greater", "Less")),
    *((name, [WHOLE, np.roll(WHOLE, 1)], {}) for name in ("Equal", "GreaterOrEqual", "LessOrEqual")),
    *((name, [MAPS, OTHER, POSITIVE], {}) for name in ("Max", "Min")),
    ("And", [MASK, ~MASK | (OTHER > 0)], {}),
    ("Not", [MASK], {}),
    ("Where", [MASK, MAPS, OTHER], {}),
    ("Pow", [POSITIVE, np.array(1.5, np.float32)], {}),
    ("Div", [WHOLE, np.full_like(WHOLE, 7)], {}),  # toward zero
    ("Clip", [MAPS, np.array(-0.5, np.float32), np.array(0.5, np.float32)], {}),
    ("Clip", [MAPS, None, np.array(0.5, np.float32)], {}),
    ("HardSigmoid", [MAPS], {}),
    ("HardSigmoid", [MAPS], {"alpha": 1 / 6}),
    ("Gelu", [MAPS], {}),
    ("Gelu", [MAPS], {"approximate": "tanh"}),
    ("Softmax", [MAPS], {"axis": 1}),
    ("LayerNormalization", [MAPS, ROWS[0, :1].repeat(5), ROWS[1, :1].repeat(5)], {"epsilon": 1e-3}),
    ("ArgMax", [MAPS], {"axis": 1}),
    ("ArgMax", [MAPS], {"axis": 1, "keepdims": 0}),
    ("Conv", [MAPS, KERNEL, BIAS], {"group": 2, "pads": [2, 2, 2, 2], "strides": [2, 1], "dilations": [2, 2]}),
    ("Conv", [MAPS, KERNEL], {"group": 2}),
    ("ConvTranspose", [MAPS, BACK], {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
    ("MaxPool", [MAPS], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("MaxPool", [MAPS], {"kernel_shape": [2, 2], "dilations": [2, 2]}),
    ("AveragePool", [MAPS], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    ("AveragePool", [MAPS], {"kernel_shape": [3, 2], "pads": [1, 0, 1, 0], "count_include_pad": 1}),
    ("GlobalAveragePool", [MAPS], {}),
    ("MatMul", [MAPS, OTHER.swapaxes(2, 3)], {}),
    ("Gemm", [ROWS, ROWS, ROWS[:, :3]], {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    ("Gemm", [ROWS, ROWS], {"transA": 1}),
    ("ReduceMean", [MAPS, whole(2, 3)], {}),
    ("ReduceMean", [MAPS], {}),
    ("ReduceMax", [MAPS, whole(1)], {"keepdims": 0}),
    ("ReduceSum", [MAPS], {"noop_with_empty_axes": 1}),
    ("Concat", [MAPS, OTHER], {"axis": 1}),
    ("Flatten", [MAPS], {}),
    ("Flatten", [MAPS], {"axis": 2}),
    ("Reshape", [MAPS, whole(0, -1, 5)], {}),
    ("Transpose", [MAPS], {"perm": [0, 2, 3, 1]}),
    ("Shape", [MAPS], {"start": 1, "end": 3}),
    ("Squeeze", [MAPS[:, :1], whole(1)], {}),
    ("Squeeze", [MAPS[:1, :1]], {}),
    ("Unsqueeze", [ROWS, whole(0, -1)], {}),
    ("Expand", [ROWS[:, None], whole(2, 1, 5, 4)], {}),
    ("Gather", [MAPS, np.array([[0, -1], [2, 1]])], {"axis": 1}),
    ("Slice", [MAPS, whole(1, 0), whole(4, 5), whole(1, 3), whole(1, 2)], {}),
    ("Slice", [MAPS, whole(0, 1), whole(2, -1)], {}),
    ("Pad", [MAPS, whole(0, 0, 1, 2, 0, 0, 3, 0), np.array(0.5, np.float32)], {}),
    ("Range", [np.array(2), np.array(11), np.array(3)], {}),
    ("Cast", [MAPS], {"to": TensorProto.INT64}),
    ("Resize", [MAPS, None, None, whole(2, 4, 11, 9)], {"mode": "linear", "coordinate_transformation_mode": "align_corners"}),
    ("QuantizeLinear", [MAPS, SCALES, ZEROS], {"axis": 1}),
    ("QuantizeLinear", [MAPS, SCALES[0], ZEROS[0]], {}),
    ("DequantizeLinear", [GENERATOR.integers(0, 255, (2, 4, 3, 3)).astype(np.uint8), SCALES, ZEROS], {"axis": 1}),
    ("DequantizeLinear", [GENERATOR.integers(0, 255, (2, 4, 3, 3)).astype(np.uint8), SCALES[0]], {}),
]


def named(case: tuple[str, list[Any], dict[str, Any]]) -> str:
    return " ".join([case[0], *map(str, case[2])])


def reference(name: str, inputs: list[Any], attributes: dict[str, Any]) -> npt.NDArray[Any]:
    names = [f"input_{place}" if value is not None else "" for place, value in enumerate(inputs)]
    feeds = {name: value for name, value in zip(names, inputs, strict=True) if name}
    values = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), None) for n, v in feeds.items()]
    node = helper.make_node(name, names, ["found"], **attributes)
    graph = helper.make_graph([node], "one", values, [helper.make_tensor_value_info("found", TensorProto.FLOAT, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)])
    (found,) = ReferenceEvaluator(model).run(None, feeds)
    return np.asarray(found)


def ours(name: str, inputs: list[Any], attributes: dict[str, Any]) -> npt.NDArray[Any]:
    read = {
        attribute.name: helper.get_attribute_value(attribute)
        for attribute in helper.make_node(name, [], [], **attributes).attribute
    }
    return NODES[name]([None if value is None else torch.from_numpy(np.array(value)) for value in inputs], read).numpy()


@pytest.mark.parametrize("case", CASES, ids=named)
def test_it_computes_what_onnx_says(case: tuple[str, list[Any], dict[str, Any]]) -> None:
    found, wanted = ours(*case), reference(*case)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_every_operator_has_a_case() -> None:
    assert set(NODES) == {case[0] for case in CASES}


@pytest.mark.parametrize(
    ("name", "inputs", "attributes"),
    [
        ("Conv", [MAPS, KERNEL], {"group": 2, "pads": [0, 0, 1, 1]}),
        ("Conv", [MAPS, KERNEL], {"group": 2, "auto_pad": "SAME_UPPER"}),
        ("MaxPool", [MAPS], {"kernel_shape": [2, 2], "ceil_mode": 1}),
        ("Resize", [MAPS, None, None, whole(2, 4, 11, 9)], {"mode": "nearest"}),
        ("Slice", [MAPS, whole(5), whole(0), whole(2), whole(-1)], {}),
        ("Pad", [MAPS, whole(0, 0, 1, 1, 0, 0, 1, 1)], {"mode": "reflect"}),
        ("Cast", [MAPS], {"to": TensorProto.FLOAT8E4M3FN}),
    ],
)
def test_what_it_does_not_know_it_refuses(name: str, inputs: list[Any], attributes: dict[str, Any]) -> None:
    with pytest.raises(BenchError, match="the differentiable executor does not know"):
        ours(name, inputs, attributes)
