"""What a server counts of itself, for Prometheus."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ddcat_serve.worker import Batch

if TYPE_CHECKING:
    from ddcat_serve.context import Context
    from ddcat_serve.models import ServedModel

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

    def count_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
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
