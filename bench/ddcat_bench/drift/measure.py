"""
`ddcat drift`: how often the server's drift figure gives false alarms, and how often it sees an attack.

The server's own monitor looks at streams of answers from the second half of the split, in their order and shuffled; an alarm is
a moment at which its largest PSI is above a limit. The reference is what the server uses, the clean golden images, or, to see
what more of them would give, all of the first half.

Attacks are made against the network's own labels: PGD away from them; and an adaptive one, which knows of the figure, toward
their mirror image, in which every class has the area that it had, and boundaries are as long.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from ddcat.bundle import Bundle
from ddcat.engines import Engine
from ddcat.engines.answer_statistics import Statistics, golden_statistics, statistics_of
from ddcat.engines.golden import read_golden
from ddcat.metrics import confusion_counts, miou
from ddcat.schema import Fraction, Method, StrictModel
from ddcat_bench.errors import BenchError
from ddcat_bench.result_schema import BundleEntry, Environment
from ddcat_bench.templates import render
from ddcat_serve.observe.drift_monitor import MIN_IMAGES, DriftMonitor
from ddcat_train.attacks import Model, signed_gradient_ascent
from ddcat_train.data import Dataset
from ddcat_train.pixels import to_8_bit, to_pixels, to_planes

__all__ = ["DriftResult", "drift_markdown", "measure_drift"]

STEPS = 20  # of both attacks
STREAMS, LENGTH = 50, 200  # streams of each kind of traffic, and images in each: what came 100 images ago weighs a third
FEWEST = 2 * MIN_IMAGES  # images, so that none comes twice before the monitor speaks
SMALL, LARGE = 0.1, 0.25  # the rules of thumb for a small and a large change

Traffic = Literal["clean", "attack", "adaptive"]
Order = Literal["in order", "shuffled"]


class DriftRow(StrictModel):
    """The monitor's figures for one kind of traffic against one reference."""

    reference: str
    traffic: Traffic
    order: Order = Field(description="In order: as in the split, from another image on in each stream; shuffled: at random.")
    above_small: Fraction = Field(description=f"Share of the moments at which the largest PSI is above {SMALL}.")
    above_large: Fraction = Field(description=f"Share of the moments at which the largest PSI is above {LARGE}: alarms.")
    ever: Fraction = Field(description="Share of the streams with an alarm at any moment.")
    median: float = Field(ge=0, description="Median of the largest PSI.")


class DriftResult(StrictModel):
    """The result of `ddcat drift`."""

    schema_version: Literal[2] = 2
    kind: Literal["drift"] = "drift"
    bundle: BundleEntry
    method: Method = Field(description="Method of the checkpoint's training.")
    data: str
    split: str
    images: int = Field(description="Images of the split that are not golden.")
    epsilon: Fraction
    steps: int = STEPS
    least: int = Field(MIN_IMAGES, description="Images after which the monitor speaks, and then after each.")
    streams: int = STREAMS
    length: int = Field(LENGTH, description="Images of a stream.")
    miou: dict[Traffic, Fraction]
    rows: tuple[DriftRow, ...]
    environment: Environment


def measure_drift(
    bundle: Bundle,
    engine: Engine,
    network: Model,
    dataset: Dataset,
    *,
    epsilon: float,
    advance: Callable[[int], None] = lambda images: None,
) -> tuple[int, dict[Traffic, float], tuple[DriftRow, ...]]:
    """
    Attack each image that is not golden, and let the monitor see streams of the engine's answers.

    `network` is the main branch of the engine's checkpoint on the CPU: images (N, 3, H, W) in [0, 1] to logits. `epsilon` is
    the bound of both attacks, in [0, 1]. `advance` is called with the number of images that are done. Returns the number of
    images, the mIoU of each kind of traffic, and the rows. Raises BenchError if there are no golden images, or too few others.
    """
    classes, examples = len(bundle.manifest.classes), read_golden(bundle)
    known = {example.image.tobytes() for example in examples}  # the reference is no sample
    samples = [sample for sample in map(dataset.read, range(len(dataset))) if sample.image.tobytes() not in known]
    if not examples or len(samples) < FEWEST:
        raise BenchError(
            f"{bundle.path} has {len(examples) // 2} golden images, and {dataset.root} {len(samples)} others: expected 1 or "
            f"more, and {FEWEST} or more"
        )
    statistics: dict[Traffic, list[Statistics]] = {traffic: [] for traffic in get_args(Traffic)}
    counts = {traffic: np.zeros((classes, 3), np.int64) for traffic in statistics}
    for sample in samples:
        images = to_planes(sample.image[None])
        for traffic, sent in _sent(network, images, epsilon).items():
            outputs = engine.infer(to_pixels(to_8_bit(sent, images)))
            statistics[traffic] += statistics_of(outputs, classes)  # of all outputs, as the server does
            counts[traffic] += confusion_counts(sample.labels, outputs.labels[0], classes)
        advance(1)
    half = len(samples) // 2
    golden = list(golden_statistics(bundle, engine, examples))
    references = {f"{len(golden)} golden images": golden, f"{half} clean images": statistics["clean"][:half]}
    later = {traffic: answers[half:] for traffic, answers in statistics.items()}
    rows = tuple(row for name, reference in references.items() for row in _rows(name, reference, later, classes))
    return len(samples), {traffic: miou(counted) for traffic, counted in counts.items()}, rows


def drift_markdown(result: DriftResult) -> str:
    """Write the table."""
    return render(Path(__file__).with_name("drift.md"), result=result, small=SMALL, large=LARGE)


def _sent(network: Model, images: Tensor, epsilon: float) -> dict[Traffic, Tensor]:
    with torch.no_grad():
        own = network(images).argmax(1)
    about: dict[str, Any] = {"epsilon": epsilon, "alpha": 2.5 * epsilon / STEPS, "steps": STEPS}
    return {
        "clean": images,
        "attack": _last(signed_gradient_ascent(network, images, own, **about)),
        "adaptive": _last(signed_gradient_ascent(network, images, own.flip(2), objective=lambda answer: -answer.loss, **about)),
    }


def _last(steps: Iterable[tuple[int, Tensor]]) -> Tensor:
    *_, (_, images) = steps
    return images


def _rows(
    name: str, reference: Sequence[Statistics], statistics: Mapping[Traffic, Sequence[Statistics]], classes: int
) -> Iterator[DriftRow]:
    for traffic, answers in statistics.items():
        for order in get_args(Order):
            streams = [_readings(DriftMonitor(classes, reference), stream) for stream in _streams(answers, order)]
            psis = np.concatenate(streams)
            yield DriftRow(
                reference=name,
                traffic=traffic,
                order=order,
                above_small=float((psis > SMALL).mean()),
                above_large=float((psis > LARGE).mean()),
                ever=float(np.mean([(stream > LARGE).any() for stream in streams])),
                median=float(np.median(psis)),
            )


def _streams(answers: Sequence[Statistics], order: Order) -> Iterator[list[Statistics]]:
    """Return streams of the same answers: rotated in their order, or in random orders."""
    random, rounds = np.random.default_rng(0), -(-LENGTH // len(answers))
    for stream in range(STREAMS):
        if order == "in order":
            places = ((stream * len(answers) // STREAMS + np.arange(LENGTH)) % len(answers)).tolist()
        else:
            places = np.concatenate([random.permutation(len(answers)) for _ in range(rounds)])[:LENGTH].tolist()
        yield [answers[place] for place in places]


def _readings(monitor: DriftMonitor, stream: Iterable[Statistics]) -> npt.NDArray[np.float64]:
    """Largest PSI after each image, once the monitor speaks."""
    readings = []
    for answer in stream:
        monitor.add(answer)
        if drift := monitor.totals().drift:
            readings.append(max(drift.values()))
    return np.array(readings)
