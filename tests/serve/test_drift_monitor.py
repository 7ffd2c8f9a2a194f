"""What the monitor sums up of answers, and that looking at them never holds anybody up."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from ddcat.engines import Outputs, answer_statistics
from ddcat.engines.answer_statistics import describe
from ddcat_serve.observe.drift_monitor import MIN_IMAGES, DriftMonitor
from tests.bundles import with_golden
from tests.serve.payloads import as_png
from tests.serve.processes import wait_for


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
