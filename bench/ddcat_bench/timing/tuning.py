"""
`ddcat scenarios --p99`: the settings of a server with which an engine answers the most requests within a latency.

Each division of the cores into replicas is timed with all replicas at work. A simulation of their common queue, with the
measured times, then finds the highest rate of requests that keeps the limit. The best setting is confirmed by a real load of
that rate, which is lowered until the limit holds.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from heapq import heapreplace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ddcat.classes import Classes
from ddcat.engines import Engine
from ddcat.schema import StrictModel
from ddcat_bench.errors import BenchError
from ddcat_bench.result_schema import BundleEntry, Environment
from ddcat_bench.templates import render
from ddcat_bench.timing.scenarios import PERCENTILES, Latencies, latencies
from ddcat_serve.http.decoding import decode
from ddcat_serve.http.encoding import encode_mask

__all__ = [
    "BATCHES",
    "TRIALS",
    "Candidate",
    "Confirmed",
    "TuningResult",
    "confirm",
    "divisions",
    "highest_rate",
    "measure_candidates",
    "settings_yaml",
    "simulated_latencies",
    "tuning_markdown",
]

BATCHES = (1, 2, 4, 8)
_FEWEST_CALLS = 10  # of each replica and batch
_REQUESTS = 5000  # of each simulation
TRIALS = 8  # real loads, each of 0.85 times the rate of the one before
_LOWER = 0.85
_BUSY = 0.9  # most of the capacity that is used: a fuller queue needs many more requests to show its p99
_NEARLY = 0.97  # of the best rate: then the setting with fewer replicas, or the smaller batch, is chosen

Seconds = Mapping[int, Sequence[float]]  # of the calls with each number of images
Call = Callable[[Sequence[bytes]], object]  # from image files to mask files


class Candidate(StrictModel):
    """A setting, and what it is expected to reach."""

    threads: int = Field(description="Threads of each replica.")
    replicas: int
    batch: int = Field(description="Most images of a call.")
    seconds: float = Field(description="Median time of a call with so many images, all replicas at work.")
    images_per_second: float = Field(description="Images a second of all replicas, with full batches.")
    rate: float = Field(description="Highest rate, in requests a second, whose simulated p99 is within the limit.")


class Confirmed(StrictModel):
    """The setting that was chosen, and what a real load of it showed."""

    threads: int
    replicas: int
    batch: int
    batch_pixels: int
    rate: float = Field(description="Requests a second that came, by a Poisson process.")
    latencies: Latencies
    hours_per_million: float = Field(description="Hours of this machine for a million masks at this rate.")


class TuningResult(StrictModel):
    """The result of `ddcat scenarios --p99`."""

    schema_version: Literal[1] = 1
    kind: Literal["tuning"] = "tuning"
    bundle: BundleEntry
    height: int
    width: int
    limit: float = Field(description="Most seconds from a request to its mask, for 99 of 100 requests.")
    seed: int
    others: float | None = Field(description="Cores that other processes kept busy meanwhile; null: not known.")
    candidates: tuple[Candidate, ...]
    chosen: Confirmed
    environment: Environment


def divisions(cores: int) -> list[tuple[int, int]]:
    """Return (threads, replicas) for 1, 2, 4, ... threads of each replica and for all cores, with as many replicas as fit."""
    threads = {2**power for power in range(cores.bit_length()) if 2**power <= cores} | {cores}
    return [(count, cores // count) for count in sorted(threads)]


def measure_candidates(
    open_replica: Callable[[int], Engine],
    files: Sequence[bytes],
    classes: Classes,
    *,
    divided: Sequence[tuple[int, int]],
    batches: Sequence[int],
    limit: float,
    seconds: float,
    seed: int = 0,
    advance: Callable[[int], None] = lambda divisions: None,
) -> list[Candidate]:
    """
    Time every setting, and find the highest rate of each.

    Parameters
    ----------
    open_replica : callable
        Opens an engine with so many threads. It is closed here.
    files : sequence of bytes
        Image files of one size that the engine takes; used in turns.
    classes : Classes
        For the masks.
    divided : sequence of (threads, replicas)
    batches : sequence of int
        Numbers of images of a call, ascending, from 1.
    limit : float
        Seconds. Settings whose single call takes longer are left out.
    seconds : float
        Duration of the measurement of each division and batch; ten calls at least.
    advance : callable
        Called after each division.

    Raises
    ------
    BenchError
        If no setting answers a single request within the limit.
    """
    found, fastest = [], float("inf")
    for threads, replicas in divided:
        calls = _open(open_replica, threads, replicas, classes)
        try:
            times: dict[int, list[float]] = {}
            for batch in batches:
                measured = _time_together([call for call, _ in calls], files, batch, seconds)
                if batch == 1:
                    fastest = min(fastest, float(np.quantile(measured, 0.99)))
                if float(np.median(measured)) > limit:
                    break
                times[batch] = measured
                rate = highest_rate(times, replicas, limit, seed=seed)
                if rate > 0:
                    found.append(
                        Candidate(
                            threads=threads,
                            replicas=replicas,
                            batch=batch,
                            seconds=float(np.median(measured)),
                            images_per_second=replicas * batch / float(np.mean(measured)),
                            rate=rate,
                        )
                    )
        finally:
            for _, engine in calls:
                engine.close()
        advance(1)
    if not found:
        raise BenchError(
            f"expected a p99 of at most {1000 * limit:g} ms, got {1000 * fastest:.3g} ms for single requests one after the "
            "other; use a higher limit, int8, smaller images, or a faster machine"
        )
    return found


def confirm(
    candidates: Sequence[Candidate],
    open_replica: Callable[[int], Engine],
    files: Sequence[bytes],
    classes: Classes,
    *,
    size: tuple[int, int],
    limit: float,
    seconds: float,
    seed: int = 0,
    advance: Callable[[int], None] = lambda trials: None,
) -> Confirmed:
    """
    Choose the setting with the highest rate, and lower the rate until a real load keeps the limit.

    The parameters are those of `measure_candidates`; `size` is (height, width) of the files. Each load has as many requests as
    a p99 needs, or more if `seconds` allow.

    Raises
    ------
    BenchError
        If no tried rate keeps the limit.
    """
    best = max(candidate.rate for candidate in candidates)
    chosen = min((one for one in candidates if one.rate >= _NEARLY * best), key=lambda one: (one.replicas, one.batch))
    calls = _open(open_replica, chosen.threads, chosen.replicas, classes)
    rate = chosen.rate
    try:
        for call, _ in calls:
            call(files[:1])
        for _ in range(TRIALS):
            count = max(PERCENTILES[0.99], round(rate * seconds))
            measured = latencies(_load([call for call, _ in calls], files, rate, count, chosen.batch, seed))
            advance(1)
            if measured.p99 is not None and measured.p99 <= limit:
                return Confirmed(
                    threads=chosen.threads,
                    replicas=chosen.replicas,
                    batch=chosen.batch,
                    batch_pixels=chosen.batch * size[0] * size[1],
                    rate=rate,
                    latencies=measured,
                    hours_per_million=1e6 / rate / 3600,
                )
            rate *= _LOWER
    finally:
        for _, engine in calls:
            engine.close()
    raise BenchError(
        f"expected a p99 of at most {1000 * limit:g} ms under a real load, got {1000 * (measured.p99 or 0):.0f} ms at "
        f"{rate / _LOWER:.3g} requests/s; use a higher limit, or a machine that does nothing else"
    )


def highest_rate(times: Seconds, replicas: int, limit: float, *, seed: int = 0) -> float:
    """
    Return the highest rate, in requests a second, whose simulated p99 is within `limit` seconds; 0 if none is.

    It is at most nine tenths of what the largest batches reach.
    """
    largest = max(times)
    low, high = 0.0, _BUSY * replicas * largest / float(np.mean(times[largest]))
    if _p99(times, replicas, high / 1000, seed) > limit:
        return 0.0
    if _p99(times, replicas, high, seed) <= limit:
        return high
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if _p99(times, replicas, middle, seed) <= limit else (low, middle)
    return low


def _p99(times: Seconds, replicas: int, rate: float, seed: int) -> float:
    return float(np.quantile(simulated_latencies(times, replicas, rate, seed=seed), 0.99))


def simulated_latencies(
    times: Seconds, replicas: int, rate: float, *, requests: int = _REQUESTS, seed: int = 0
) -> npt.NDArray[np.float64]:
    """
    Simulate replicas with one queue, to which requests come by a Poisson process.

    A free replica takes all that wait, as many as its largest batch. The time of the call is drawn from the measured times
    of this number of images, or of the next larger one.

    Returns
    -------
    array of shape (requests,)
        Seconds from each arrival to its answer.
    """
    random = np.random.default_rng(seed)
    arrived = np.cumsum(random.exponential(1 / rate, requests))
    sizes = sorted(times)
    draws = random.random(requests)
    free, done, first = [0.0] * replicas, np.empty(requests), 0
    while first < requests:
        start = max(free[0], arrived[first])
        waiting = int(np.searchsorted(arrived, start, side="right")) - first
        taken = min(waiting, sizes[-1])
        measured = times[next(size for size in sizes if size >= taken)]
        end = start + measured[int(draws[first] * len(measured))]
        done[first : first + taken] = end
        heapreplace(free, end)
        first += taken
    return done - arrived


def _open(open_replica: Callable[[int], Engine], threads: int, replicas: int, classes: Classes) -> list[tuple[Call, Engine]]:
    engines = [open_replica(threads) for _ in range(replicas)]
    return [(_from_files(engine, classes), engine) for engine in engines]


def _from_files(engine: Engine, classes: Classes) -> Call:
    def call(files: Sequence[bytes]) -> list[bytes]:
        images = np.stack([decode(file, max_pixels=2**26) for file in files])  # (N, H, W, C)
        return [encode_mask(labels, classes) for labels in engine.infer(images).labels]

    return call


def _time_together(calls: Sequence[Call], files: Sequence[bytes], batch: int, seconds: float) -> list[float]:
    """Return the seconds of calls that all replicas make at once, one after the other each."""
    chosen = [files[place % len(files)] for place in range(batch)]
    barrier = threading.Barrier(len(calls))

    def repeat(call: Call) -> list[float]:
        call(chosen)
        barrier.wait()
        durations: list[float] = []
        while sum(durations) < seconds or len(durations) < _FEWEST_CALLS:
            start = time.perf_counter()
            call(chosen)
            durations.append(time.perf_counter() - start)
        return durations

    with ThreadPoolExecutor(len(calls)) as pool:
        return [duration for durations in pool.map(repeat, calls) for duration in durations]


class _Waiting(NamedTuple):
    due: float
    file: bytes


def _load(calls: Sequence[Call], files: Sequence[bytes], rate: float, count: int, batch: int, seed: int) -> list[float]:
    """Send `count` requests at their times, whether the ones before are answered or not; return the seconds of each."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, count)
    queue: deque[_Waiting | None] = deque()
    ready, durations = threading.Condition(), list[float]()

    def work(call: Call) -> None:
        while True:
            with ready:
                while not queue:
                    ready.wait()
                taken: list[_Waiting] = []
                while queue and len(taken) < batch and (item := queue[0]) is not None:
                    taken.append(item)
                    queue.popleft()
                if not taken:  # the end, which stays in the queue for the others
                    return
            call([item.file for item in taken])
            now = time.perf_counter()
            with ready:
                durations.extend(now - item.due for item in taken)

    with ThreadPoolExecutor(len(calls)) as pool:
        working = [pool.submit(work, call) for call in calls]
        due = time.perf_counter()
        try:
            for place, gap in enumerate(gaps):
                due += gap
                if (early := due - time.perf_counter()) > 0:
                    time.sleep(early)
                with ready:
                    queue.append(_Waiting(due, files[place % len(files)]))
                    ready.notify()
        finally:
            with ready:
                queue.append(None)
                ready.notify_all()
        for worker in working:
            worker.result()
    return durations


def settings_yaml(result: TuningResult) -> str:
    """Write the settings as a file for `ddcat serve --config`."""
    chosen = result.chosen
    servers = "one server" if chosen.replicas == 1 else f"each of {chosen.replicas} servers"
    return (
        f"# by ddcat scenarios --p99 {1000 * result.limit:g}ms, for {servers}\n"
        f"threads: {chosen.threads}\n"
        f"batch_pixels: {chosen.batch_pixels}\n"
    )


def tuning_markdown(result: TuningResult) -> str:
    """Write the answer, and the table of all settings."""
    return render(Path(__file__).with_name("tuning.md"), result=result, calm=(result.others or 0) <= 0.1)
