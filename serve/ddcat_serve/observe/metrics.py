"""Metrics of a server, for Prometheus."""

from collections.abc import Callable, Iterable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from ddcat_serve.observe.usage import Batch

__all__ = ["CONTENT_TYPE", "MODEL", "Metrics"]

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_IMAGES = (1, 2, 4, 8, 16, 32, 64)
MODEL = ("model", "version")


class Metrics:
    """Metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter("ddcat_requests", "Answered requests.", ("route", "method", "status"), registry=self._registry)
        self._seconds = Histogram(
            "ddcat_request_seconds", "Time from request to answer.", ("route",), buckets=_SECONDS, registry=self._registry
        )
        self._batch = Histogram("ddcat_batch_images", "Images per batch.", MODEL, buckets=_IMAGES, registry=self._registry)
        self._engine = Histogram(
            "ddcat_engine_seconds", "Time of a batch in the engine.", MODEL, buckets=_SECONDS, registry=self._registry
        )
        self._pixels = Counter("ddcat_pixels", "Pixels that were computed.", MODEL, registry=self._registry)
        self._failed = Counter("ddcat_failed_requests", "Requests that the engine failed on.", MODEL, registry=self._registry)
        self._asked = Counter(
            "ddcat_abstaining_pixels", "Pixels of answers that were asked to abstain.", MODEL, registry=self._registry
        )
        self._abstained = Counter("ddcat_abstained_pixels", "Pixels that were left unanswered.", MODEL, registry=self._registry)
        self._swaps = Counter(
            "ddcat_swaps", "Changes of the version that answers, unloading included.", ("model",), registry=self._registry
        )
        self._refused = Counter(
            "ddcat_refused_loads", "Bundles that were refused instead of loaded.", ("model",), registry=self._registry
        )

    def count_request(self, route: str, method: str, status: int | str, seconds: float) -> None:
        """Count an answered request; for gRPC the status is the name of its code."""
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def count_batch(self, name: str, version: str, batch: Batch) -> None:
        """Count a batch that a model's engine computed."""
        self._batch.labels(name, version).observe(batch.images)
        self._engine.labels(name, version).observe(batch.seconds)
        self._pixels.labels(name, version).inc(batch.pixels)
        # 0, too: Prometheus sees no increase in a series that begins with it
        self._failed.labels(name, version).inc(batch.failed)
        self.count_abstained(name, version, 0, 0)

    def count_abstained(self, name: str, version: str, pixels: int, unanswered: int) -> None:
        """Count the pixels of an answer that was asked to abstain, and those of them that it left unanswered."""
        self._asked.labels(name, version).inc(pixels)
        self._abstained.labels(name, version).inc(unanswered)

    def expect_swaps(self, name: str) -> None:
        """Report swaps and refusals of a model, none so far: Prometheus sees no increase in a series that begins with it."""
        self._swaps.labels(name)
        self._refused.labels(name)

    def count_swap(self, name: str) -> None:
        """Count a change of the version that answers."""
        self._swaps.labels(name).inc()

    def count_refused_load(self, name: str) -> None:
        """Count a bundle that was refused."""
        self._refused.labels(name).inc()

    def watch(self, read: Callable[[], Iterable[Metric]]) -> None:
        """Report these metrics, too, as they are at each scrape."""
        self._registry.register(_StateCollector(read))

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class _StateCollector(Collector):
    def __init__(self, read: Callable[[], Iterable[Metric]]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        return self._read()
