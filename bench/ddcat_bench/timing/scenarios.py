"""
`ddcat scenarios`: an engine as its users meet it, after MLPerf Inference's single stream, server and offline.

The engine answers one batch at a time, as in a server of one device. Open loop: requests come when they come, whether the ones
before are answered or not, so that what waits is counted.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import simplejpeg  # type: ignore[import-untyped]
from pydantic import Field

from ddcat.bundle import Bundle
from ddcat.classes import Classes
from ddcat.engines import Engine
from ddcat.schema import StrictModel
from ddcat_bench.result_schema import BundleEntry, Environment
from ddcat_bench.templates import render
from ddcat_bench.timing.cpu_contention import watch_contention
from ddcat_bench.timing.speed import Inputs
from ddcat_serve.http.decoding import decode
from ddcat_serve.http.encoding import encode_mask

__all__ = [
    "BOUNDARIES",
    "LOADS",
    "PERCENTILES",
    "Latencies",
    "Scenario",
    "ScenariosResult",
    "draw_files",
    "latencies",
    "run_scenarios",
    "scenarios_markdown",
]

LOADS = (0.5, 0.7, 0.9)  # of the engine's capacity: one over the mean time of a call
PERCENTILES: Mapping[float, int] = {0.5: 10, 0.9: 64, 0.99: 662}  # and the number of requests that each needs
_BATCHES = (1, 2, 4, 8)
_FEWEST = 10
_QUALITY = 90

Boundary = Literal["arrays", "files"]
BOUNDARIES: Mapping[Boundary, str] = {
    "arrays": "from a uint8 array to uint8 labels, both in memory",
    "files": "from the bytes of a JPEG file to those of a palette PNG",
}

Images = npt.NDArray[np.uint8]


class Latencies(StrictModel):
    """Seconds from a request to its answer; a percentile that so few requests do not tell is null."""

    requests: int
    mean: float
    p50: float | None
    p90: float | None
    p99: float | None
    longest: float


class Scenario(StrictModel):
    """One scenario at one boundary."""

    name: Literal["single stream", "server", "offline"]
    boundary: Boundary
    batch: int
    load: float | None = Field(
        description="Requests a second that come, as a share of the capacity; null: as quick as possible."
    )
    offered: float | None = Field(description="The same in requests a second.")
    images_per_second: float = Field(description="Images a second that were answered.")
    latencies: Latencies | None = Field(description="Latencies; null: offline has none.")


class ScenariosResult(StrictModel):
    """The result of `ddcat scenarios`."""

    schema_version: Literal[1] = 1
    kind: Literal["scenarios"] = "scenarios"
    bundle: BundleEntry
    height: int
    width: int
    seconds: float = Field(description="Seconds that each scenario lasted, about.")
    seed: int
    others: float | None = Field(description="Cores that others kept busy meanwhile; null: not known.")
    steady: bool = Field(
        description="True where the single stream's mean was the same before and after all others, within 10 %."
    )
    rows: tuple[Scenario, ...]
    environment: Environment


class Clock(NamedTuple):
    """Time, and a way to let it pass."""

    now: Callable[[], float] = time.perf_counter
    sleep: Callable[[float], None] = time.sleep


def latencies(seconds: Sequence[float]) -> Latencies:
    """Summarise; none is left out."""
    p50, p90, p99 = (
        float(np.quantile(seconds, share)) if len(seconds) >= least else None for share, least in PERCENTILES.items()
    )
    return Latencies(requests=len(seconds), mean=float(np.mean(seconds)), p50=p50, p90=p90, p99=p99, longest=max(seconds))


def draw_files(inputs: Inputs) -> list[bytes]:
    """Write each image of the batches as a JPEG file: what requests hold."""
    return [simplejpeg.encode_jpeg(image, quality=_QUALITY) for batch in inputs.batches for image in batch]


def run_scenarios(
    bundle: Bundle,
    engine: Engine,
    files: Sequence[bytes],
    *,
    seconds: float,
    seed: int = 0,
    clock: Clock = Clock(),  # noqa: B008 -- a tuple
    advance: Callable[[int], None] = lambda scenarios: None,
) -> tuple[tuple[Scenario, ...], float | None, bool]:
    """
    Run all scenarios at both boundaries, each for so many seconds and ten requests at least.

    `files` are JPEG files of one size that the engine takes; they come in turns. `advance` is called after each scenario.
    Returns `rows`, `others` and `steady` as `ScenariosResult` has them.
    """
    classes = bundle.manifest.class_table()
    watch = watch_contention()
    rows: list[Scenario] = []
    steady = True
    for boundary in BOUNDARIES:
        serve = _server(boundary, engine, files, classes)
        serve(0)
        alone = _single_stream(serve, seconds, clock)
        mean = float(np.mean(alone))
        rows.append(_row("single stream", boundary, alone, sum(alone)))
        advance(1)
        for load in LOADS:
            rows.append(_serve_poisson(boundary, serve, load / mean, load, seconds, seed, clock))
            advance(1)
        if boundary == "arrays":
            rows += [
                _offline(engine, files, batch, seconds, clock) for batch in _BATCHES if batch in bundle.manifest.shapes.batch
            ]
            advance(1)
        again = float(np.mean(_single_stream(serve, seconds / 2, clock)))
        steady &= max(mean, again) <= 1.1 * min(mean, again)
    return tuple(rows), watch(), steady


def arrivals(rate: float, seconds: float, seed: int) -> Iterator[float]:
    """Return the arrival times of a Poisson process until `seconds`, ten at least."""
    generator = np.random.default_rng(seed)
    at, count = 0.0, 0
    while True:
        at += float(generator.exponential(1 / rate))
        if at > seconds and count >= _FEWEST:
            return
        count += 1
        yield at


def _server(boundary: Boundary, engine: Engine, files: Sequence[bytes], classes: Classes) -> Callable[[int], object]:
    if boundary == "files":
        return lambda index: encode_mask(
            engine.infer(decode(files[index % len(files)], max_pixels=2**26)[None]).labels[0], classes
        )
    arrays = [decode(file, max_pixels=2**26)[None] for file in files]
    return lambda index: engine.infer(arrays[index % len(arrays)])


def _single_stream(serve: Callable[[int], object], seconds: float, clock: Clock) -> list[float]:
    durations: list[float] = []
    while sum(durations) < seconds or len(durations) < _FEWEST:
        start = clock.now()
        serve(len(durations))
        durations.append(clock.now() - start)
    return durations


def _serve_poisson(
    boundary: Boundary, serve: Callable[[int], object], rate: float, load: float, seconds: float, seed: int, clock: Clock
) -> Scenario:
    durations = []
    start = clock.now()
    for index, at in enumerate(arrivals(rate, seconds, seed)):
        early = start + at - clock.now()
        if early > 0:
            clock.sleep(early)
        serve(index)
        durations.append(clock.now() - start - at)  # what it waited for others counts
    return _row("server", boundary, durations, clock.now() - start, load=load, offered=rate)


def _offline(engine: Engine, files: Sequence[bytes], batch: int, seconds: float, clock: Clock) -> Scenario:
    arrays = [decode(file, max_pixels=2**26) for file in files]
    stacked = np.stack([arrays[place % len(arrays)] for place in range(batch)])
    engine.infer(stacked)
    start, calls = clock.now(), 0
    while clock.now() - start < seconds or not calls:
        engine.infer(stacked)
        calls += 1
    return Scenario(
        name="offline",
        boundary="arrays",
        batch=batch,
        load=None,
        offered=None,
        images_per_second=calls * batch / (clock.now() - start),
        latencies=None,
    )


def _row(
    name: Literal["single stream", "server"],
    boundary: Boundary,
    durations: Sequence[float],
    seconds: float,
    load: float | None = None,
    offered: float | None = None,
) -> Scenario:
    return Scenario(
        name=name,
        boundary=boundary,
        batch=1,
        load=load,
        offered=offered,
        images_per_second=len(durations) / seconds,
        latencies=latencies(durations),
    )


def scenarios_markdown(result: ScenariosResult) -> str:
    """Write the table, and whether it may be believed."""
    needs = [f"p{100 * share:.0f} needs {count}" for share, count in PERCENTILES.items() if share > 0.5]
    return render(
        Path(__file__).with_name("scenarios.md"),
        result=result,
        calm=result.steady and (result.others or 0) <= 0.1,
        boundaries=BOUNDARIES,
        needs=needs,
    )
