"""The temperature of the confidence: fitted as scipy does, a constant of the graph, and of no label."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from ddcat.engines.onnxruntime import OrtGraph
from ddcat_export.errors import ExportError
from ddcat_export.opsets import lowered
from ddcat_export.parity import check_parity, sample_images
from ddcat_export.precision_cast import cast_graph
from ddcat_export.temperature import best_temperature, with_temperature
from ddcat_train.pixels import to_planes
from tests.export.conftest import Smallest

SIZE = (64, 80)


def drawn(temperature: float, *, pixels: int = 200_000, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels that were drawn from softmax(logits / temperature)."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 3, (pixels, classes)).astype(np.float32)
    noise = random.gumbel(size=logits.shape)
    return logits, (logits / temperature + noise).argmax(1)


@pytest.mark.parametrize("true", [0.4, *(pytest.param(true, marks=pytest.mark.slow) for true in (1.0, 2.5))])
def test_the_fit_is_scipy_s_and_finds_the_temperature_that_labels_were_drawn_with(true: float) -> None:
    logits, labels = drawn(true)

    def loss(temperature: float) -> float:
        return -float(np.take_along_axis(log_softmax(logits.astype(np.float64) / temperature, 1), labels[:, None], 1).mean())

    expected = minimize_scalar(loss, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-7}).x
    found = best_temperature(logits, labels)
    assert found == pytest.approx(expected, rel=1e-4)
    assert found == pytest.approx(true, rel=0.02)
    assert best_temperature(logits + 100, labels) == pytest.approx(found, rel=1e-3)  # a softmax knows differences alone


def test_labels_without_a_fault_or_without_a_sense_have_no_temperature() -> None:
    logits, _ = drawn(1.0, pixels=1000)
    with pytest.raises(ExportError, match=r"the best temperature .* is beyond 0\.05: give a number"):
        best_temperature(logits, logits.argmax(1))
    with pytest.raises(ExportError, match=r"the best temperature .* is beyond 20: give a number"):
        best_temperature(logits, logits.argmin(1))
    with pytest.raises(ExportError, match="no pixel of the validation split has a label"):
        best_temperature(logits[:0], np.zeros(0, np.uint8))


@pytest.mark.parametrize("temperature", [0.3, 3.0])
def test_the_graph_divides_on_the_way_to_the_confidence_alone(
    smallest_once: Smallest, graph_of: Callable[..., bytes], temperature: float
) -> None:
    plain = graph_of(confidence=True)
    content = with_temperature(plain, temperature)
    onnx.checker.check_model(onnx.load_model_from_string(content), full_check=True)
    images = sample_images((2, *SIZE), 0)
    logits = smallest_once(to_planes(images)).detach().numpy()
    for graph in (content, lowered(content, 17), cast_graph(content, "fp16")):
        with OrtGraph(plain) as before, OrtGraph(graph) as after:
            one, other = before.run(images), after.run(images)
        if graph is content:
            np.testing.assert_array_equal(one.labels, other.labels)
            np.testing.assert_array_equal(one.logits, other.logits)
        np.testing.assert_allclose(other.confidence, softmax(logits / temperature, 1).max(1), atol=2e-3)
    check_parity(content, smallest_once, ((1, *SIZE),), temperature=temperature)
    with pytest.raises(ExportError, match="its confidence is not that of its label"):
        check_parity(content, smallest_once, ((1, *SIZE),))
