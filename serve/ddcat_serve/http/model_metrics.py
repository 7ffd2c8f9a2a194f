"""Metrics of the state of a server's models, which are read when Prometheus asks for them."""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from ddcat.engines.answer_statistics import CONFIDENCE, DENSITY
from ddcat_serve.http.server_state import ServerState
from ddcat_serve.inference.repository import Repository
from ddcat_serve.observe.metrics import MODEL

__all__ = ["collect"]


def collect(state: ServerState) -> Iterator[Metric]:
    """Yield metrics of the state of all models and shadows at this moment."""
    waiting = GaugeMetricFamily("ddcat_waiting_pixels", "Pixels in the queue of an engine.", labels=MODEL)
    ready = GaugeMetricFamily("ddcat_model_ready", "Whether a model accepts requests.", labels=MODEL)
    version = GaugeMetricFamily("ddcat_model_version", "The version that answers by default.", labels=("model",))
    passport = GaugeMetricFamily("ddcat_passport_pass", "Whether a model's engine passed the gate.", labels=MODEL)
    images = CounterMetricFamily("ddcat_monitored_images", "Answers that the drift monitor evaluated.", labels=MODEL)
    skipped = CounterMetricFamily(
        "ddcat_unmonitored_images", "Answers that the drift monitor skipped, being busy.", labels=MODEL
    )
    pixels = CounterMetricFamily("ddcat_class_pixels", "Pixels of a class in the answers.", labels=(*MODEL, "class"))
    density = HistogramMetricFamily(
        "ddcat_boundary_density", "Share of an answer's pixels that are at a class boundary.", labels=MODEL
    )
    confidence = HistogramMetricFamily(
        "ddcat_pixel_confidence", "Probability of a pixel's label, if the engine returns it.", labels=MODEL
    )
    drift = GaugeMetricFamily(
        "ddcat_drift_psi",
        "Distance of the newest answers from those to the golden images: for monitoring, not a defence.",
        labels=(*MODEL, "statistic"),
    )
    newest = [list(versions.values())[-1] for versions in state.models.values()]
    for model in state.served:
        labels, answers = (model.name, model.version), model.monitor.totals()
        verdict = model.passport.passport
        waiting.add_metric(labels, model.worker.waiting_pixels)
        ready.add_metric(labels, float(model.ready and not state.draining))
        if model in newest:
            version.add_metric((model.name,), float(model.version))
        passport.add_metric(labels, float(verdict is not None and verdict.verdict == "pass"))
        images.add_metric(labels, answers.images)
        skipped.add_metric(labels, answers.skipped)
        areas = Counter[str]()  # classes with the same name share a series: Prometheus rejects duplicates
        for name, count in zip(model.classes.names, answers.classes.tolist(), strict=True):
            areas[name] += count
        for name, count in areas.items():
            pixels.add_metric((*labels, name), count)
        density.add_metric(labels, _buckets(DENSITY, answers.density.tolist()), answers.density_sum)
        if answers.confidence.any():
            confidence.add_metric(labels, _buckets(CONFIDENCE, answers.confidence.tolist()), answers.confidence_sum)
        for statistic, value in answers.drift.items():
            drift.add_metric((*labels, statistic), value)
    yield from (waiting, ready, version, passport, images, skipped, pixels, density, confidence, drift)
    if state.repository is not None:
        yield from _shadow_metrics(state.repository)


def _shadow_metrics(repository: Repository) -> Iterator[Metric]:
    families = {
        field: CounterMetricFamily(f"ddcat_shadow_{name}", f"{what} that a shadow computed.", labels=MODEL)
        for field, name, what in (
            ("images", "images", "Images"),
            ("failed", "failed_images", "Images, beside those"),
            ("pixels", "pixels", "Pixels"),
            ("equal", "equal_pixels", "Pixels with the label of the answer"),
        )
    }
    for shadow, report in repository.shadows():
        for field, family in families.items():
            family.add_metric((shadow.name, shadow.version), getattr(report, field))
    yield from families.values()


def _buckets(ends: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    """Return cumulative counts, as Prometheus expects them; the last bucket ends at infinity."""
    names = [*map(str, ends[:-1]), "+Inf"]
    return list(zip(names, itertools.accumulate(counts), strict=True))
