"""The search for a server's settings: its queue is that of theory, a load confirms its answer, and the server takes it."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from ddcat.bundle import Bundle
from ddcat.classes import Classes
from ddcat.engines import Outputs
from ddcat_bench.errors import BenchError
from ddcat_bench.result_io import read_result
from ddcat_bench.timing import tuning
from ddcat_bench.timing.tuning import Candidate, TuningResult, highest_rate, simulated_latencies
from ddcat_serve.settings import read_settings
from tests.commands import call, refusal

FILES = [simplejpeg.encode_jpeg(np.full((8, 8, 3), 255, np.uint8))]


class Sleeper:
    """An engine that takes the same time for every call."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.largest, self.closed = seconds, 0, False

    def infer(self, images: np.ndarray) -> Outputs:
        self.largest = max(self.largest, len(images))
        time.sleep(self.seconds)
        return Outputs(labels=np.zeros(images.shape[:3], np.uint8))

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def classes(make_bundle: Callable[..., Bundle]) -> Classes:
    return make_bundle().manifest.class_table()


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_one_replica_without_batches_is_the_queue_of_theory(load: float) -> None:
    found = simulated_latencies({1: [0.010]}, 1, load / 0.010, requests=200_000)
    # Poisson arrivals and a constant time of service (Pollaczek and Khinchine)
    assert found.mean() == pytest.approx(0.010 * (1 + load / (2 * (1 - load))), rel=0.03)
    assert found.min() == pytest.approx(0.010)


def test_replicas_and_batches_shorten_the_queue() -> None:
    one = simulated_latencies({1: [0.010]}, 1, 90.0)
    two = simulated_latencies({1: [0.010]}, 2, 90.0)
    batched = simulated_latencies({1: [0.010], 4: [0.010]}, 1, 90.0)
    assert np.quantile(two, 0.99) < np.quantile(one, 0.99) / 2
    assert np.quantile(batched, 0.99) <= 0.020 + 1e-9  # what comes during a call leaves with the next one


def test_the_highest_rate_is_where_the_p99_meets_the_limit() -> None:
    times, limit = {1: [0.010], 2: [0.015]}, 0.040
    rate = highest_rate(times, 1, limit)
    assert np.quantile(simulated_latencies(times, 1, rate), 0.99) <= limit
    assert np.quantile(simulated_latencies(times, 1, 1.05 * rate), 0.99) > limit
    assert highest_rate(times, 1, 0.005) == 0
    assert highest_rate(times, 2, 100.0) == pytest.approx(0.9 * 2 * 2 / 0.015)  # a limit that never matters


@pytest.mark.parametrize(("cores", "expected"), [(1, [(1, 1)]), (2, [(1, 2), (2, 1)]), (6, [(1, 6), (2, 3), (4, 1), (6, 1)])])
def test_cores_are_divided(cores: int, expected: list[tuple[int, int]]) -> None:
    assert tuning.divisions(cores) == expected


def test_settings_are_timed_with_all_replicas_at_work(classes: Classes) -> None:
    engines = []

    def open_replica(threads: int) -> Sleeper:
        engines.append(Sleeper(0.020 / threads))
        return engines[-1]

    found = tuning.measure_candidates(
        open_replica, FILES, classes, divided=[(1, 2), (2, 1)], batches=[1, 2], limit=0.200, seconds=0.0  # type: ignore[arg-type]
    )  # fmt: skip
    assert [(one.threads, one.replicas, one.batch) for one in found] == [(1, 2, 1), (1, 2, 2), (2, 1, 1), (2, 1, 2)]
    assert found[0].seconds >= 0.020
    assert found[1].images_per_second > 1.2 * found[0].images_per_second  # a batch takes no longer here
    assert len(engines) == 3
    assert all(engine.closed for engine in engines)
    with pytest.raises(BenchError, match="expected a p99 of at most 1 ms, got"):
        tuning.measure_candidates(open_replica, FILES, classes, divided=[(1, 1)], batches=[1], limit=0.001, seconds=0.0)  # type: ignore[arg-type,return-value]


def candidate(rate: float, *, replicas: int = 1, batch: int = 1) -> Candidate:
    return Candidate(threads=1, replicas=replicas, batch=batch, seconds=0.005, images_per_second=200.0, rate=rate)


def test_a_rate_that_does_not_hold_is_lowered(classes: Classes, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = []

    def load(calls: list[object], files: object, rate: float, count: int, batch: int, seed: int) -> list[float]:
        loads.append((len(calls), rate, batch))
        return [0.010 if rate < 500 else 0.050] * count

    monkeypatch.setattr(tuning, "_load", load)
    engine = Sleeper(0.0)
    chosen = tuning.confirm(
        [candidate(100.0), candidate(600.0, batch=2), candidate(610.0, replicas=2, batch=2)],
        lambda threads: engine, FILES, classes, size=(8, 8), limit=0.030, seconds=0.0,  # type: ignore[arg-type,return-value]
    )  # fmt: skip
    assert loads == [(1, 600.0, 2), (1, pytest.approx(510.0), 2), (1, pytest.approx(433.5), 2)]  # as good, with fewer replicas
    assert (chosen.replicas, chosen.batch, chosen.batch_pixels) == (1, 2, 128)
    assert chosen.rate == pytest.approx(433.5)
    assert (chosen.latencies.requests, chosen.latencies.p99) == (662, pytest.approx(0.010))
    assert chosen.hours_per_million == pytest.approx(1e6 / chosen.rate / 3600)
    assert engine.closed


def test_a_load_answers_every_request_in_batches(classes: Classes) -> None:
    engine = Sleeper(0.005)
    calls = [call for call, _ in tuning._open(lambda threads: engine, 1, 2, classes)]  # type: ignore[arg-type,return-value]
    found = tuning._load(calls, FILES, 2000.0, 60, 4, 0)
    assert len(found) == 60
    assert min(found) >= 0.005
    assert engine.largest == 4


def test_an_engine_that_never_holds_is_refused(classes: Classes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "TRIALS", 2)
    told: list[int] = []
    with pytest.raises(BenchError, match="under a real load"):
        tuning.confirm(
            [candidate(1000.0, batch=8)], lambda threads: Sleeper(0.010), FILES, classes, size=(8, 8),  # type: ignore[arg-type,return-value]
            limit=0.005, seconds=0.0, advance=told.append,
        )  # fmt: skip
    assert told == [1, 1]


def test_the_command_writes_settings_that_the_server_reads(
    make_bundle: Callable[..., Bundle], make_engine: Callable[..., object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bundle, out = make_bundle(), tmp_path / "out"
    monkeypatch.setattr("ddcat.engines.open_engine", lambda opened, threads: make_engine(opened))
    words = ["ddcat", "scenarios", bundle.path, "--p99", "10s", "--seconds", 0.1, "--size", "40x48", "--out", out]
    assert "# tiny: a p99 of 10000 ms" in call(*words).stdout
    result = read_result(out / "tuning.json", TuningResult)
    settings = read_settings(out / "serve.yaml")
    assert settings.threads == result.chosen.threads
    assert settings.batch_pixels == result.chosen.batch * 40 * 48
    assert max(one.rate for one in result.candidates) >= result.chosen.rate
    assert str(out) in refusal(*words)  # there is a result already
    assert "use a time such as 200ms or 1.5s" in refusal(*words[:4], "fast", "--out", tmp_path / "other")
    assert "use a higher limit" in refusal(*words[:4], "0.0001ms", *words[5:9], "--out", tmp_path / "other")
