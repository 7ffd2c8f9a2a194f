from typing import Any

import numpy as np
import pytest

from ddcat_serve.engines import openvino_winograd
from ddcat_serve.engines.openvino_winograd import save_products

ov = pytest.importorskip("openvino")
op = ov.opset13

CHANNELS = 5


@pytest.fixture(autouse=True)
def few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_winograd, "FEWEST_CHANNELS", CHANNELS)


def model_of(weight: np.ndarray, width: int, *, step: int = 1, dilation: int = 1, border: int = 1) -> Any:
    maps = op.parameter([-1, weight.shape[1], -1, width], ov.Type.f32)
    around = [border, border]
    found = op.convolution(maps, op.constant(weight), [step, step], around, around, [dilation, dilation])
    return ov.Model([op.result(op.relu(found))], [maps], "convolution")


def run(model: Any, maps: np.ndarray) -> np.ndarray:
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})
    answer: np.ndarray = compiled([maps])[0]
    return answer


def convolved(maps: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The definition, in float64."""
    padded = np.pad(maps.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    seen = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))  # (N, C, H, W, 3, 3)
    return np.maximum(np.einsum("nchwij,ocij->nohw", seen, weight.astype(np.float64)), 0)


@pytest.mark.parametrize("width", [1, 2, 3, 8, 9])
def test_it_is_the_convolution(width: int) -> None:
    random = np.random.default_rng(width)
    weight = random.standard_normal((4, CHANNELS, 3, 3)).astype(np.float32)
    maps = random.standard_normal((2, CHANNELS, 6, width)).astype(np.float32)
    model = model_of(weight, width)
    assert save_products(model) == 1
    kinds = [list(node.input_value(1).get_shape()) for node in model.get_ops() if node.get_type_name() == "Convolution"]
    assert kinds == [[4, CHANNELS, 3, 1]] * 4
    np.testing.assert_allclose(run(model, maps), convolved(maps, weight), atol=2e-5)


def test_what_it_is_not_for_stays() -> None:
    weight = np.ones((4, CHANNELS, 3, 3), np.float32)
    others = [
        model_of(weight[:, :-1], 8),
        model_of(weight, -1),
        model_of(weight, 8, step=2),
        model_of(weight, 8, dilation=2, border=2),
        model_of(weight, 8, border=0),
        model_of(weight[..., :1, :1], 8, border=0),
    ]
    assert [save_products(model) for model in others] == [0] * 6
