"""What is seen of answers, against loops over pixels and the definitions; and that looking never holds anybody up."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from prometheus_client.parser import text_string_to_metric_families

from ddcat.engines import Outputs, answer_statistics
from ddcat.engines.answer_statistics import describe, psi, statistics_of
from ddcat_serve.observe.drift_monitor import MIN_IMAGES, DriftMonitor
from tests.bundles import with_golden
from tests.serve.payloads import as_png
from tests.serve.processes import wait_for

LABELS = arrays(np.uint8, st.tuples(st.integers(1, 70), st.integers(1, 70)), elements=st.integers(0, 3))
COUNTS = arrays(np.int64, 5, elements=st.integers(0, 1000)).filter(lambda counts: counts.sum() > 0)


@settings(max_examples=40, deadline=None)
@given(LABELS)
def test_areas_and_boundaries_are_those_counted_pixel_by_pixel(labels: np.ndarray) -> None:
    found = describe(labels, 4)
    height, width = labels.shape
    assert found.classes.tolist() == [int((labels == label).sum()) for label in range(4)]
    edges = [
        [
            (x + 1 < width and labels[y, x] != labels[y, x + 1]) or (y + 1 < height and labels[y, x] != labels[y + 1, x])
            for x in range(width)
        ]
        for y in range(height)
    ]
    assert found.density == pytest.approx(np.mean(edges))
    assert found.boundaries.sum() == max(1, height // 32) * max(1, width // 32)
    if height < 64 and width < 64:  # one tile
        part = np.mean([row[: min(32, width)] for row in edges[: min(32, height)]])
        assert (found.boundaries[0] == 1) == (part == 0)
    assert found.confidence is None


def test_one_label_has_no_boundary() -> None:
    found = describe(np.full((64, 96), 2, np.uint8), 4)
    assert found.boundaries.tolist() == [6, 0, 0, 0, 0, 0, 0]
    assert found.density == 0


def test_labels_that_no_class_has_are_left_out() -> None:
    assert describe(np.array([[0, 9], [255, 1]], np.uint8), 2).classes.tolist() == [1, 1]


def test_confidence_is_the_softmax_of_the_logits_or_what_the_engine_says() -> None:
    logits = np.random.default_rng(0).normal(0, 300, (2, 4, 5, 6)).astype(np.float32)  # exp of such would overflow
    exact = np.exp(logits.astype(np.longdouble) - logits.max(1, keepdims=True))
    top = (exact / exact.sum(1, keepdims=True)).max(1).astype(np.float64)
    labels = np.zeros((2, 10, 12), np.uint8)
    for outputs in (Outputs(labels, logits=logits), Outputs(labels, confidence=top.astype(np.float32))):
        for found, expected in zip(statistics_of(outputs, 4), top, strict=True):
            assert found.mean_confidence == pytest.approx(expected.mean(), rel=1e-5)
            assert found.confidence is not None
            assert found.confidence.sum() == 30
            assert abs(found.confidence - np.histogram(expected, 10, (0, 1))[0]).sum() <= 2  # one at an end of a bin
    odd = np.array([[np.nan, -1.0], [2.0, 1.0]], np.float32)
    assert describe(labels[0], 4, odd).confidence.tolist() == [2, 0, 0, 0, 0, 0, 0, 0, 0, 2]  # type: ignore[union-attr]


@given(COUNTS, COUNTS, st.integers(1, 9))
def test_psi_is_a_distance_of_shares(first: np.ndarray, second: np.ndarray, factor: int) -> None:
    assert psi(first, first) == 0
    assert psi(first, second) == pytest.approx(psi(second, first))
    assert psi(first, second) >= 0
    assert psi(first * factor, second) == pytest.approx(psi(first, second))


def test_psi_of_an_example_by_hand() -> None:
    assert psi([1, 1], [9, 1]) == pytest.approx(0.4 * np.log(1.8) - 0.4 * np.log(0.2))
    assert 8 < psi([1, 0], [0, 1]) < 20  # far, and finite


def seen(monitor: DriftMonitor, *labels: np.ndarray) -> None:
    for answer in labels:
        looking = monitor.observe(Outputs(answer[None]))
        assert looking is not None
        looking.result(10)


def test_drift_from_golden_images_and_back() -> None:
    random = np.random.default_rng(0)
    usual = random.integers(0, 2, (64, 64)).astype(np.uint8)
    other = np.full((64, 64), 1, np.uint8)
    monitor = DriftMonitor(2, [describe(usual, 2)])
    seen(monitor, *[usual] * (MIN_IMAGES - 1))
    assert monitor.totals().drift == {}
    seen(monitor, usual)
    assert monitor.totals().drift == pytest.approx({"classes": 0, "boundaries": 0}, abs=1e-9)
    seen(monitor, *[other] * 100)
    drift = monitor.totals().drift
    assert drift["classes"] > 0.25
    assert drift["boundaries"] > 0.25
    seen(monitor, *[usual] * 500)
    assert max(monitor.totals().drift.values()) < 0.1  # what is long ago is forgotten
    found = monitor.totals()
    assert found.images == MIN_IMAGES + 600
    assert found.classes.sum() == 64 * 64 * found.images
    assert found.density.sum() == found.images
    assert found.density[0] == 100
    monitor.close()
    assert monitor.observe(Outputs(usual[None])) is None


def test_without_golden_images_there_is_no_drift() -> None:
    monitor = DriftMonitor(2)
    seen(monitor, *[np.zeros((8, 8), np.uint8)] * MIN_IMAGES)
    assert monitor.totals().images == MIN_IMAGES
    assert monitor.totals().drift == {}
    monitor.close()


def test_a_monitor_that_is_behind_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    usual = answer_statistics.describe
    monkeypatch.setattr(answer_statistics, "describe", lambda *about: go.wait(30) and usual(*about))
    monitor = DriftMonitor(2)
    began = time.monotonic()
    looking = [monitor.observe(Outputs(np.zeros((2, 8, 8), np.uint8))) for _ in range(50)]
    assert time.monotonic() - began < 8
    assert monitor.totals().skipped == 2 * looking.count(None) == 2 * 46
    go.set()
    for future in looking:
        if future is not None:
            future.result(10)
    assert monitor.totals().images == 8
    seen(monitor, np.zeros((8, 8), np.uint8))  # there is room again
    monitor.close()


def test_metrics_say_what_answers_look_like(tmp_path: Path, oracle: Callable, picture: np.ndarray, serving: Callable) -> None:
    client = serving(with_golden(tmp_path / "golden.bundle", oracle, picture).path)

    def metrics() -> dict[tuple[str, str | None], float]:
        return {
            (sample.name, sample.labels.get("class") or sample.labels.get("statistic") or sample.labels.get("le")): sample.value
            for family in text_string_to_metric_families(client.get("/metrics").text)
            for sample in family.samples
        }

    assert metrics()["ddcat_monitored_images_total", None] == 0  # golden images are no traffic
    for sent in range(1, MIN_IMAGES + 1):
        assert client.post("/v1/segment", content=as_png(picture)).status_code == 200
        wait_for(lambda sent=sent: metrics()["ddcat_monitored_images_total", None] >= sent)  # type: ignore[misc]
    found = metrics()
    areas = np.bincount(oracle(picture[None])[0].ravel(), minlength=4)
    for name, area in zip(("night", "red", "green", "blue"), areas.tolist(), strict=True):
        assert found["ddcat_class_pixels_total", name] == MIN_IMAGES * area
    assert found["ddcat_boundary_density_bucket", "+Inf"] == MIN_IMAGES
    assert found["ddcat_pixel_confidence_bucket", "+Inf"] == MIN_IMAGES * picture.shape[0] * picture.shape[1]
    assert found["ddcat_pixel_confidence_bucket", "0.1"] == 0
    assert found["ddcat_drift_psi", "classes"] < 0.01  # the golden images are this one, and it upside down
    assert found["ddcat_drift_psi", "confidence"] < 0.01
    assert found["ddcat_unmonitored_images_total", None] == 0
