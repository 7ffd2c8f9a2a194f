"""Metrics of a server, for Prometheus."""

import itertools
from collections import Counter as Counts
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from ddcat.engines.answer_statistics import CONFIDENCE, DENSITY
from ddcat_serve.observe.drift_monitor import Totals
from ddcat_serve.observe.usage import Batch

__all__ = ["CONTENT_TYPE", "Metrics", "ModelState", "ShadowState"]

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_IMAGES = (1, 2, 4, 8, 16, 32, 64)
_MODEL = ("model", "version")


class ModelState(NamedTuple):
    """
    State of a model at the moment of a scrape.

    Attributes
    ----------
    name, version : str
    class_names : sequence of str
    ready : bool
        Whether it accepts requests.
    passed : bool
        Whether its engine passed the gate.
    waiting_pixels : int
        Pixels in its queue.
    answers : Totals
        Statistics of its answers.
    newest : bool
        Whether requests without a version get it.
    """

    name: str
    version: str
    class_names: Sequence[str]
    ready: bool
    passed: bool
    waiting_pixels: int
    answers: Totals
    newest: bool


class ShadowState(NamedTuple):
    """
    State of a model that computes beside the one that answers, at the moment of a scrape.

    Attributes
    ----------
    name, version : str
    images, failed : int
        Images that were compared, and those that it failed on.
    pixels, equal : int
        Pixels that were compared, and those with equal labels.
    """

    name: str
    version: str
    images: int
    failed: int
    pixels: int
    equal: int


class Metrics:
    """Metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter("ddcat_requests", "Answered requests.", ("route", "method", "status"), registry=self._registry)
        self._seconds = Histogram(
            "ddcat_request_seconds", "Time from request to answer.", ("route",), buckets=_SECONDS, registry=self._registry
        )
        self._batch = Histogram("ddcat_batch_images", "Images per batch.", _MODEL, buckets=_IMAGES, registry=self._registry)
        self._engine = Histogram(
            "ddcat_engine_seconds", "Time of a batch in the engine.", _MODEL, buckets=_SECONDS, registry=self._registry
        )
        self._pixels = Counter("ddcat_pixels", "Pixels that were computed.", _MODEL, registry=self._registry)
        self._failed = Counter("ddcat_failed_requests", "Requests that the engine failed on.", _MODEL, registry=self._registry)
        self._asked = Counter(
            "ddcat_abstaining_pixels", "Pixels of answers that were asked to abstain.", _MODEL, registry=self._registry
        )
        self._abstained = Counter(
            "ddcat_abstained_pixels", "Pixels that were left unanswered.", _MODEL, registry=self._registry
        )
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

    def watch(
        self, read_states: Callable[[], Iterable[ModelState]], read_shadows: Callable[[], Iterable[ShadowState]] = tuple
    ) -> None:
        """Report the state of the models at each scrape."""
        self._registry.register(_ModelCollector(read_states, read_shadows))

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class _ModelCollector(Collector):
    def __init__(
        self, read_states: Callable[[], Iterable[ModelState]], read_shadows: Callable[[], Iterable[ShadowState]]
    ) -> None:
        self._read_states, self._read_shadows = read_states, read_shadows

    def collect(self) -> Iterator[Metric]:
        """Read the states of the models and of their shadows now."""
        yield from self._collect_models()
        yield from self._collect_shadows()

    def _collect_shadows(self) -> Iterator[Metric]:
        families = {
            field: CounterMetricFamily(f"ddcat_shadow_{name}", f"{what} that a shadow computed.", labels=_MODEL)
            for field, name, what in (
                ("images", "images", "Images"),
                ("failed", "failed_images", "Images, beside those"),
                ("pixels", "pixels", "Pixels"),
                ("equal", "equal_pixels", "Pixels with the label of the answer"),
            )
        }
        for shadow in self._read_shadows():
            for field, family in families.items():
                family.add_metric((shadow.name, shadow.version), getattr(shadow, field))
        yield from families.values()

    def _collect_models(self) -> Iterator[Metric]:
        waiting = GaugeMetricFamily("ddcat_waiting_pixels", "Pixels in the queue of an engine.", labels=_MODEL)
        ready = GaugeMetricFamily("ddcat_model_ready", "Whether a model accepts requests.", labels=_MODEL)
        version = GaugeMetricFamily("ddcat_model_version", "The version that answers by default.", labels=("model",))
        passport = GaugeMetricFamily("ddcat_passport_pass", "Whether a model's engine passed the gate.", labels=_MODEL)
        images = CounterMetricFamily("ddcat_monitored_images", "Answers that the drift monitor evaluated.", labels=_MODEL)
        skipped = CounterMetricFamily(
            "ddcat_unmonitored_images", "Answers that the drift monitor skipped, being busy.", labels=_MODEL
        )
        pixels = CounterMetricFamily("ddcat_class_pixels", "Pixels of a class in the answers.", labels=(*_MODEL, "class"))
        density = HistogramMetricFamily(
            "ddcat_boundary_density", "Share of an answer's pixels that are at a class boundary.", labels=_MODEL
        )
        confidence = HistogramMetricFamily(
            "ddcat_pixel_confidence", "Probability of a pixel's label, if the engine returns it.", labels=_MODEL
        )
        drift = GaugeMetricFamily(
            "ddcat_drift_psi",
            "Distance of the newest answers from those to the golden images: for monitoring, not a defence.",
            labels=(*_MODEL, "statistic"),
        )
        for state in self._read_states():
            labels, answers = (state.name, state.version), state.answers
            waiting.add_metric(labels, state.waiting_pixels)
            ready.add_metric(labels, float(state.ready))
            if state.newest:
                version.add_metric((state.name,), float(state.version))
            passport.add_metric(labels, float(state.passed))
            images.add_metric(labels, answers.images)
            skipped.add_metric(labels, answers.skipped)
            areas = Counts[str]()  # classes with the same name share a series: Prometheus rejects duplicates
            for name, count in zip(state.class_names, answers.classes.tolist(), strict=True):
                areas[name] += count
            for name, count in areas.items():
                pixels.add_metric((*labels, name), count)
            density.add_metric(labels, _buckets(DENSITY, answers.density.tolist()), answers.density_sum)
            if answers.confidence.any():
                confidence.add_metric(labels, _buckets(CONFIDENCE, answers.confidence.tolist()), answers.confidence_sum)
            for statistic, value in answers.drift.items():
                drift.add_metric((*labels, statistic), value)
        yield from (waiting, ready, version, passport, images, skipped, pixels, density, confidence, drift)


def _buckets(ends: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    """Return cumulative counts, as Prometheus expects them; the last bucket ends at infinity."""
    names = [*map(str, ends[:-1]), "+Inf"]
    return list(zip(names, itertools.accumulate(counts), strict=True))
