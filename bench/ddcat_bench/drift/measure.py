"""
`ddcat-bench drift`: how often the server's drift figure gives false alarms, and how often it sees an attack.

Windows of images are drawn from the second half of the split; an alarm is a window whose largest PSI is above a limit. The
reference is what the server uses, the clean golden images, or, to see what more of them would give, all of the first half.

Attacks are made against the network's own labels: PGD away from them; and an adaptive one, which knows of the figure, toward
their mirror image, in which every class has the area that it had, and boundaries are as long.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from ddcat.bundle import Bundle
from ddcat.schema import Fraction, Strict
from ddcat.scores import count, miou
from ddcat_bench.entries import BundleEntry, Environment
from ddcat_bench.errors import BenchError
from ddcat_bench.markdown import table
from ddcat_serve.engines import Engine
from ddcat_serve.golden import read_golden
from ddcat_serve.telemetry import Statistics, golden_statistics, psi, statistics_of
from ddcat_train.attacks import Model
from ddcat_train.attacks.core import iterate
from ddcat_train.attacks.quantise import to_8_bit
from ddcat_train.data import Dataset
from ddcat_train.pixels import to_pixels, to_planes

__all__ = ["DriftResult", "drift_markdown", "measure_drift"]

STEPS, WINDOW, WINDOWS = 20, 20, 1000
SMALL, LARGE = 0.1, 0.25  # the rules of thumb for a small and a large change

Traffic = Literal["clean", "attack", "adaptive"]


class DriftRow(Strict):
    """What the windows of one kind of traffic are, against one reference."""

    reference: str
    traffic: Traffic
    above_small: Fraction = Field(description=f"share of windows whose largest PSI is above {SMALL}")
    above_large: Fraction = Field(description=f"share of windows whose largest PSI is above {LARGE}: alarms")
    median: float = Field(ge=0)


class DriftResult(Strict):
    """What `ddcat-bench drift` found."""

    schema_version: Literal[1] = 1
    kind: Literal["drift"] = "drift"
    bundle: BundleEntry
    method: str = Field(description="of the checkpoint's training")
    data: str
    split: str
    images: int = Field(description="of the split that are not golden")
    epsilon: Fraction
    steps: int = STEPS
    window: int = WINDOW
    windows: int = WINDOWS
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
    Attack each image that is not golden, and compare windows of the engine's answers with the references.

    Parameters
    ----------
    bundle : Bundle
    engine : Engine
        Of it.
    network : callable
        Its checkpoint's main branch on the CPU: images (N, 3, H, W) in [0, 1] to logits.
    dataset : Dataset
        A split.
    epsilon : float
        Of both attacks, in [0, 1].
    advance : callable, optional
        Is told the number of images that are done.

    Returns
    -------
    images : int
    miou : dict of str to float
        Of each kind of traffic.
    rows : tuple of DriftRow

    Raises
    ------
    BenchError
        Where there are no golden images, or too few others.
    """
    classes, examples = len(bundle.manifest.classes), read_golden(bundle)
    known = {example.image.tobytes() for example in examples}  # the reference is no sample
    samples = [sample for sample in map(dataset.read, range(len(dataset))) if sample.image.tobytes() not in known]
    if not examples or len(samples) < 2 * WINDOW:
        raise BenchError(
            f"{bundle.path} has {len(examples) // 2} golden images, and {dataset.root} {len(samples)} others: 1 and "
            f"{2 * WINDOW} would be the least"
        )
    found: dict[Traffic, list[Statistics]] = {traffic: [] for traffic in get_args(Traffic)}
    counts = {traffic: np.zeros((classes, 3), np.int64) for traffic in found}
    for sample in samples:
        images = to_planes(sample.image[None])
        for traffic, sent in _sent(network, images, epsilon).items():
            outputs = engine.infer(to_pixels(to_8_bit(sent, images)))
            found[traffic] += statistics_of(outputs, classes)  # of all outputs, as the server does
            counts[traffic] += count(sample.labels, outputs.labels[0], classes)
        advance(1)
    half = len(samples) // 2
    golden = list(golden_statistics(bundle, engine, examples))
    references = {f"{len(golden)} golden images": golden, f"{half} clean images": found["clean"][:half]}
    later = {traffic: answers[half:] for traffic, answers in found.items()}
    rows = tuple(row for name, reference in references.items() for row in _rows(name, reference, later))
    return len(samples), {traffic: miou(counted) for traffic, counted in counts.items()}, rows


def drift_markdown(result: DriftResult) -> str:
    """Write the table."""
    rows = [
        [
            row.reference,
            row.traffic,
            *(f"{value:.3f}" for value in (row.above_large, row.above_small, row.median, result.miou[row.traffic])),
        ]
        for row in result.rows
    ]
    head = ["reference", "traffic", "alarms", f"above {SMALL}", "median PSI", "mIoU"]
    return (
        f"# What the drift figure sees: {result.bundle.name}\n\n"
        f"{result.data}, {result.split}: {result.windows} windows of {result.window} images from the second half of "
        f"{result.images}; attacks at {255 * result.epsilon:.3g}/255 with {result.steps} steps. An alarm is a PSI above "
        f"{LARGE}.\n\n"
        f"{table(head, rows, texts=2)}\n"
        "Monitoring, and no defence: an attacker who knows the figure leaves it as it was.\n"
    )


def _sent(network: Model, images: Tensor, epsilon: float) -> dict[Traffic, Tensor]:
    with torch.no_grad():
        own = network(images).argmax(1)
    about: dict[str, Any] = {"epsilon": epsilon, "alpha": 2.5 * epsilon / STEPS, "steps": STEPS}
    return {
        "clean": images,
        "attack": _last(iterate(network, images, own, **about)),
        "adaptive": _last(iterate(network, images, own.flip(2), objective=lambda answer: -answer.loss, **about)),
    }


def _last(steps: Iterable[tuple[int, Tensor]]) -> Tensor:
    *_, (_, images) = steps
    return images


def _rows(name: str, reference: Sequence[Statistics], found: Mapping[Traffic, Sequence[Statistics]]) -> Iterable[DriftRow]:
    random, expected = np.random.default_rng(0), _shares(reference)
    for traffic, answers in found.items():
        values = []
        for _ in range(WINDOWS):
            window = _shares([answers[place] for place in random.choice(len(answers), WINDOW, replace=False)])
            values.append(max(psi(expected[what], window[what]) for what in window))
        psis = np.array(values)
        yield DriftRow(
            reference=name,
            traffic=traffic,
            above_small=float((psis > SMALL).mean()),
            above_large=float((psis > LARGE).mean()),
            median=float(np.median(psis)),
        )


def _shares(answers: Sequence[Statistics]) -> dict[str, npt.NDArray[np.float64]]:
    """Mean share of each bin, every image alike, as the monitor has it."""
    each = [answer.distributions() for answer in answers]
    return {name: np.mean([counts[name] / counts[name].sum() for counts in each], 0) for name in each[0]}
