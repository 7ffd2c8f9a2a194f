"""Calibration in the gate: of both models at the size of the labels, against an optional limit, and in the report."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddcat.engines import Outputs
from ddcat.preprocess import restore
from ddcat_bench.attack.attacks import AttackBatch
from ddcat_bench.errors import BenchError
from ddcat_bench.gate.checks import check_calibration
from ddcat_bench.gate.pool import Targets
from ddcat_bench.gate.reliability import measure_calibration
from ddcat_bench.gate.report import gate_html, gate_markdown
from ddcat_bench.gate.results import Calibration, CalibrationBin, CalibrationRow, GateResult
from ddcat_bench.gate.thresholds import DEFAULT, read_thresholds
from ddcat_bench.gate.words import title
from ddcat_bench.result_io import to_json
from tests.bench.gates import made_gate
from tests.core.test_reliability import transcribed

LIMITS = read_thresholds(DEFAULT, "fp32")


class Engine:
    """An engine that says what it is told to."""

    def __init__(self, confidence: np.ndarray | None) -> None:
        self.confidence = confidence

    def infer(self, images: np.ndarray) -> Outputs:
        return Outputs(images[..., 0] % 3, None, self.confidence)


def targets(reference: Callable[[torch.Tensor], torch.Tensor], confidence: np.ndarray | None) -> Targets:
    given: Any = (reference, None, Engine(confidence))
    return Targets(*given)


@pytest.mark.parametrize("resized", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_it_is_the_error_of_labels_and_confidence_as_they_are_scored(resized: bool, temperature: float) -> None:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (2, 12, 16, 3)).astype(np.uint8)
    logits = torch.from_numpy(random.normal(0, 2, (2, 3, 12, 16)).astype(np.float32))
    sure = random.uniform(0.3, 1, (2, 12, 16)).astype(np.float32)
    full = tuple(random.choice([0, 1, 2, 255], (24, 32) if resized else (12, 16)).astype(np.uint8) for _ in range(2))
    victims = AttackBatch(
        torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255,
        torch.from_numpy(np.stack([restore(each, (12, 16)) for each in full])).long(),
        torch.zeros(2, dtype=torch.int64),
        full_labels=full if resized else None,
    )
    found = measure_calibration(targets(lambda images: logits, sure), [victims], temperature=temperature)
    shares = (logits / temperature).softmax(1).numpy()
    truth = np.stack(full)

    def at_size(maps: np.ndarray) -> np.ndarray:
        return np.stack([restore(each, full[0].shape) for each in maps])

    expected = transcribed(truth, at_size(shares.argmax(1).astype(np.uint8)), at_size(shares.max(1)).astype(np.float64), 15)
    assert found.reference.error == pytest.approx(expected, abs=1e-6)
    assert found.engine is not None
    assert found.engine.error == pytest.approx(
        transcribed(truth, at_size(pixels[..., 0] % 3), at_size(sure).astype(np.float64), 15), abs=1e-6
    )
    assert sum(each.share for each in found.engine.bins) == pytest.approx(1)
    assert measure_calibration(targets(lambda images: logits, None), [victims]).engine is None


def row(error: float) -> CalibrationRow:
    return CalibrationRow(error=error, bins=(CalibrationBin(share=1.0, confidence=0.7 + error, accuracy=0.7),))


FOUND = Calibration(reference=row(0.02), engine=row(0.04))


def test_the_limit_is_optional_and_an_engine_without_confidence_is_inconclusive() -> None:
    assert LIMITS.calibration_error is None
    assert list(check_calibration(FOUND, LIMITS)) == []
    for limit, found, verdict in (
        (0.05, FOUND, "pass"),
        (0.03, FOUND, "refuse"),
        (0.03, FOUND.model_copy(update={"engine": None}), "inconclusive"),
    ):
        (finding,) = check_calibration(found, LIMITS.model_copy(update={"calibration_error": limit}))
        assert (finding.name, finding.verdict) == ("calibration error", verdict)
    assert "export it with --confidence" in finding.reason
    (refused,) = check_calibration(FOUND, LIMITS.model_copy(update={"calibration_error": 0.03}))
    assert refused.found == "0.0400 (PyTorch model: 0.0200)"
    assert title(made_gate(findings=(refused,), verdict="refuse")).startswith(
        "Refused: the calibration error is above its limit."
    )


def test_it_is_in_the_report_and_gates_of_before_are_read() -> None:
    made = made_gate()
    assert made.calibration is None
    assert "Confidence" not in gate_markdown(made)
    with_it = made.model_copy(update={"calibration": FOUND})
    assert "| engine | 0.0400 | 74.00% | 70.00% |" in gate_markdown(with_it)
    page = gate_html(with_it)
    assert page.count("<circle cx=") > gate_html(made).count("<circle cx=")
    assert "Accuracy over confidence of the engine" in page
    assert GateResult.model_validate_json(to_json(with_it)) == with_it


def test_a_limit_of_the_wrong_size_is_refused(tmp_path: Path) -> None:
    text = DEFAULT.read_text().replace("latency: 1.0}", "latency: 1.0, calibration_error: 2}")
    (tmp_path / "limits.yaml").write_text(text)
    with pytest.raises(BenchError, match="calibration_error"):
        read_thresholds(tmp_path / "limits.yaml", "fp32")
