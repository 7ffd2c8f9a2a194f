"""The official node cases of ONNX: the differentiable executor is right or refuses by name."""

import functools
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from onnx import TensorProto, numpy_helper
from onnx.backend.test.case.test_case import TestCase
from onnx.backend.test.loader import load_model_tests

from ddcat_export.errors import ExportError
from ddcat_export.twin.base import NotSupportedError, as_tensor
from ddcat_export.twin.executor import Executor
from ddcat_export.twin.operators import OPERATORS

REFUSAL = "this graph cannot be attacked: the differentiable executor does not support "


@functools.cache
def cases() -> dict[str, list[TestCase]]:
    """Return the cases of the wheel by operator; those that spell a function out in several nodes under ``functions``."""
    grouped: dict[str, list[TestCase]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in load_model_tests(kind="node"):
            nodes = case.model.graph.node
            single = len(nodes) == 1 and not nodes[0].domain
            grouped.setdefault(nodes[0].op_type if single else "functions", []).append(case)
    return grouped


def outcome(case: TestCase) -> str:
    """Run a case: ``right`` or the refusal. What is neither fails."""
    outputs = tuple(value.name for value in case.model.graph.output)
    if case.model.graph.node[0].op_type == "LayerNormalization":
        outputs = outputs[:1]  # the others are statistics for training
    try:
        executor = Executor(case.model, outputs)
        for inputs, wanted in case.data_sets:
            names = [value.name for value in case.model.graph.input]
            values = executor(dict(zip(names, map(tensor, inputs), strict=True)))
            for (name, value), right in zip(values.items(), wanted[: len(outputs)], strict=True):
                check(case, name, value, array(right))
    except ExportError as refusal:
        return str(refusal)
    except NotSupportedError as refusal:  # of an input, which a graph of images never has
        return f"{REFUSAL}{refusal}"
    return "right"


def tensor(value: Any) -> torch.Tensor:
    return as_tensor(value if isinstance(value, TensorProto) else numpy_helper.from_array(np.asarray(value)))


def array(value: Any) -> npt.NDArray[Any]:
    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.asarray(value)


def check(case: TestCase, name: str, value: torch.Tensor, right: npt.NDArray[Any]) -> None:
    assert tuple(value.shape) == right.shape, f"{case.name}: {name}"
    floats = "QuantizeLinear" in [
        node.op_type for node in case.model.graph.node if name in node.output
    ]  # whole numbers, kept as floats for their gradients
    if not floats and right.dtype.name != "bfloat16":
        assert str(value.dtype).removeprefix("torch.") == right.dtype.name, f"{case.name}: {name}"
    got, expected = value.double().numpy(), right.astype(np.float64)
    loose = {"float16": 1e-2, "bfloat16": 2e-2}.get(right.dtype.name, max(case.rtol, 1e-4))
    np.testing.assert_allclose(got, expected, rtol=loose, atol=1e-5, err_msg=f"{case.name}: {name}")


@pytest.mark.parametrize("operator", OPERATORS)
def test_each_case_is_right_or_refused_by_name(operator: str) -> None:
    outcomes = {case.name: outcome(case) for case in cases()[operator]}
    for name, refusal in outcomes.items():
        named = any(word in refusal for word in (operator, "values of type", "which is not a tensor"))
        assert refusal == "right" or (refusal.startswith(REFUSAL) and named), name
    assert "right" in outcomes.values()


def test_functions_in_several_nodes_are_right_or_refused() -> None:
    assert [outcome(case) for case in cases()["functions"]].count("right") >= 100


SMOOTH = [
    "Abs", "Add", "Atan", "AveragePool", "BatchNormalization", "Celu", "Clip", "Concat", "Conv",
    "ConvTranspose", "Cos", "CumSum", "DepthToSpace", "Div", "Dropout", "Einsum", "Elu", "Erf", "Exp", "Expand",
    "Flatten", "Gather", "GatherElements", "GatherND", "Gelu", "Gemm", "GlobalAveragePool", "GlobalMaxPool",
    "GridSample", "GroupNormalization", "HardSigmoid", "HardSwish", "Identity", "InstanceNormalization",
    "LayerNormalization", "LeakyRelu", "Log", "LogSoftmax", "LpNormalization", "MatMul", "Max", "MaxPool", "Mean",
    "Min", "Mish", "Mod", "Mul", "Neg", "PRelu", "Pad", "Pow", "Reciprocal", "ReduceL1", "ReduceL2", "ReduceLogSum",
    "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Relu",
    "Reshape", "Resize", "ScatterElements", "ScatterND", "Selu", "Sigmoid", "Sin", "Slice", "Softmax", "Softplus",
    "Softsign", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Swish", "Tan", "Tanh", "ThresholdedRelu",
    "Tile", "TopK", "Transpose", "Unsqueeze", "Where",
]  # fmt: skip


@pytest.mark.parametrize("operator", SMOOTH)
def test_gradients_are_finite_differences(operator: str) -> None:
    """On the inputs of the cases, slightly moved: at a kink there is no derivative."""
    checked = 0
    for case in cases()[operator]:
        file, names = case.model, [value.name for value in case.model.graph.input]
        try:
            values = dict(zip(names, map(tensor, case.data_sets[0][0]), strict=True))
            executor = Executor(file, (file.graph.output[0].name,))
            executor(values)
        except (ExportError, NotSupportedError):
            continue
        floats = [name for name, value in values.items() if value.is_floating_point() and value.ndim]
        moving = [name for name in floats if name not in ("scales", "roi")]
        generator = torch.Generator().manual_seed(0)
        values.update(
            {name: values[name].double() + 0.01 * torch.rand(values[name].shape, generator=generator) for name in moving}
        )

        def run(*parts: torch.Tensor, executor: Executor = executor, values: Any = values, names: Any = moving) -> Any:
            (result,) = executor({**values, **dict(zip(names, parts, strict=True))}).values()
            return result

        if moving and all(values[name].isfinite().all() and values[name].numel() for name in moving):
            parts = [values[name].clone().requires_grad_() for name in moving]
            assert torch.autograd.gradcheck(run, parts, fast_mode=True), case.name
            checked += 1
    assert checked
