"""What a server counts of itself, for Prometheus."""

import itertools
from collections import Counter as Counts
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from ddcat_serve.inference.engine_worker import Batch
from ddcat_serve.observe.answer_statistics import CONFIDENCE, DENSITY

if TYPE_CHECKING:
    from ddcat_serve.http.server_state import Context
    from ddcat_serve.inference.model_registry import ServedModel

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_IMAGES = (1, 2, 4, 8, 16, 32, 64)
_MODEL = ("model", "version")


class Metrics:
    """All of one server, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "ddcat_requests", "Requests that were answered.", ("route", "method", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "ddcat_request_seconds", "From a request to its answer.", ("route",), buckets=_SECONDS, registry=self._registry
        )
        self._batch = Histogram(
            "ddcat_batch_images", "Images that were computed at once.", _MODEL, buckets=_IMAGES, registry=self._registry
        )
        self._engine = Histogram(
            "ddcat_engine_seconds", "Of a batch in the engine.", _MODEL, buckets=_SECONDS, registry=self._registry
        )
        self._pixels = Counter("ddcat_pixels", "Pixels that were computed.", _MODEL, registry=self._registry)
        self._failed = Counter("ddcat_failed_requests", "Requests that the engine failed on.", _MODEL, registry=self._registry)

    def count_request(self, route: str, method: str, status: int | str, seconds: float) -> None:
        """Count a request that was answered; gRPC's status is the name of its code."""
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def count_batch(self, model: "ServedModel", batch: Batch) -> None:
        """Count what an engine did at once."""
        labels = (model.name, model.version)
        self._batch.labels(*labels).observe(batch.images)
        self._engine.labels(*labels).observe(batch.seconds)
        self._pixels.labels(*labels).inc(batch.pixels)
        if batch.failed:
            self._failed.labels(*labels).inc(batch.failed)

    def watch(self, context: "Context") -> None:
        """Show the state of a server's models whenever it is asked for."""
        self._registry.register(_States(context))
        self._registry.register(_Answers(context))

    def text(self) -> bytes:
        """Write all in Prometheus' text format."""
        return generate_latest(self._registry)


class _States(Collector):
    def __init__(self, context: "Context") -> None:
        self._context = context

    def collect(self) -> Iterator[Metric]:
        """Read the queues and states now."""
        waiting = GaugeMetricFamily("ddcat_waiting_pixels", "Pixels that wait for an engine.", labels=_MODEL)
        ready = GaugeMetricFamily("ddcat_model_ready", "Whether a model takes requests.", labels=_MODEL)
        passport = GaugeMetricFamily("ddcat_passport_pass", "Whether the gate let a model's engine pass.", labels=_MODEL)
        for model in self._context.served:
            labels = (model.name, model.version)
            waiting.add_metric(labels, model.worker.waiting_pixels)
            ready.add_metric(labels, float(model.ready and not self._context.draining))
            found = model.passport.passport
            passport.add_metric(labels, float(found is not None and found.verdict == "pass"))
        yield from (waiting, ready, passport)


class _Answers(Collector):
    """What the monitors have seen: see `ddcat_serve.observe.answer_statistics`."""

    def __init__(self, context: "Context") -> None:
        self._context = context

    def collect(self) -> Iterator[Metric]:
        """Read the monitors now."""
        images = CounterMetricFamily("ddcat_monitored_images", "Answers that the monitor has looked at.", labels=_MODEL)
        skipped = CounterMetricFamily("ddcat_unmonitored_images", "Answers that it had no time for.", labels=_MODEL)
        pixels = CounterMetricFamily("ddcat_class_pixels", "Pixels of a class in the answers.", labels=(*_MODEL, "class"))
        density = HistogramMetricFamily(
            "ddcat_boundary_density", "Share of an answer's pixels that lie at a boundary.", labels=_MODEL
        )
        confidence = HistogramMetricFamily(
            "ddcat_pixel_confidence", "Probability of a pixel's label, where the engine tells it.", labels=_MODEL
        )
        drift = GaugeMetricFamily(
            "ddcat_drift_psi",
            "How far the newest answers are from those to the golden images: monitoring, and no defence.",
            labels=(*_MODEL, "statistic"),
        )
        for model in self._context.served:
            labels, seen = (model.name, model.version), model.monitor.totals()
            images.add_metric(labels, seen.images)
            skipped.add_metric(labels, seen.skipped)
            areas = Counts[str]()  # classes of one name are one series: Prometheus refuses all where one comes twice
            for name, count in zip(model.classes.names, seen.classes.tolist(), strict=True):
                areas[name] += count
            for name, count in areas.items():
                pixels.add_metric((*labels, name), count)
            density.add_metric(labels, _buckets(DENSITY, seen.density.tolist()), seen.density_sum)
            if seen.confidence.any():
                confidence.add_metric(labels, _buckets(CONFIDENCE, seen.confidence.tolist()), seen.confidence_sum)
            for statistic, value in seen.drift.items():
                drift.add_metric((*labels, statistic), value)
        yield from (images, skipped, pixels, density, confidence, drift)


def _buckets(ends: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    """Cumulate counts, as Prometheus has them; the last end is that of the scale."""
    named = [*map(str, ends[:-1]), "+Inf"]
    return list(zip(named, itertools.accumulate(counts), strict=True))
