"""`ddcat fidelity`: whether an engine labels as the PyTorch main branch does, on clean and attacked images; and its report."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from ddcat.bundle import Bundle
from ddcat.classes import IGNORE_INDEX
from ddcat.engines import Engine
from ddcat.engines.errors import InputError
from ddcat.metrics import Counts, confusion_counts
from ddcat.schema import Fraction, StrictModel
from ddcat_bench.attack.results import AttackName
from ddcat_bench.attack.scoring import count_each, grey_levels, predict
from ddcat_bench.attack.suites import BIM
from ddcat_bench.describe import describe_bundle, describe_data, describe_environment, describe_reference
from ddcat_bench.errors import BenchError
from ddcat_bench.inputs import engine_batch_size, main_branch
from ddcat_bench.result_schema import BundleEntry, CheckpointEntry, DataEntry, Environment, Scores
from ddcat_bench.templates import render
from ddcat_train.attacks import trajectory
from ddcat_train.data import Dataset
from ddcat_train.data.loader import evaluation_batches
from ddcat_train.pixels import to_8_bit, to_pixels
from ddcat_train.reference import Reference

__all__ = ["PROTOCOL", "STEPS", "FidelityResult", "FidelityRow", "compare", "fidelity_markdown"]

PROTOCOL = (
    "This is a comparison, not a gate: nothing is passed or refused. The engine and the PyTorch main branch label the same "
    "8-bit images, clean and attacked. The attacks are made on the PyTorch main branch, and the perturbation is rounded toward "
    "zero to whole grey levels. An attack made on the engine itself could find more."
)

STEPS = (0, 3, 7)  # of BIM: clean images, the attack of the paper's training, its strongest in evaluation


class FidelityRow(StrictModel):
    """The engine and the PyTorch model on the same 8-bit images."""

    name: AttackName
    epsilon: float
    alpha: float
    steps: int
    grey_levels: float
    pixels: int = Field(ge=1)
    differing: int = Field(description="Pixels with two different labels.")
    agreement: Fraction = Field(description="Share of all pixels with the same label.")
    counted_pixels: int = Field(ge=1, description="Pixels that are not ignored.")
    counted_differing: int
    counted_agreement: Fraction
    image_differing: tuple[int, ...] = Field(description="Pixels with two different labels, of each image.")
    engine: Scores
    pytorch: Scores

    @property
    def label(self) -> str:
        """Heading of its row: clean, n = 3."""
        return "clean" if self.name == "clean" else f"n = {self.steps}"


class FidelityResult(StrictModel):
    """The result of `ddcat fidelity`."""

    schema_version: Literal[1] = 1
    kind: Literal["fidelity"] = "fidelity"
    bundle: BundleEntry
    checkpoint: CheckpointEntry
    data: DataEntry
    protocol: str
    rows: tuple[FidelityRow, ...]
    environment: Environment


class _Tally:
    """Counts of one set of images."""

    def __init__(self) -> None:
        self.pixels = self.counted_pixels = self.counted_differing = 0
        self.differing: list[int] = []
        self.engine: list[Counts] = []
        self.pytorch: list[Counts] = []

    def add(self, truth: npt.NDArray[np.int64], engine: npt.NDArray[np.uint8], pytorch: Tensor, classes: int) -> None:
        """Count a batch: all arguments are (N, H, W)."""
        differs = engine != pytorch.numpy()
        counted = truth != IGNORE_INDEX
        self.pixels += differs.size
        self.counted_pixels += int(counted.sum())
        self.counted_differing += int((differs & counted).sum())
        self.differing += differs.sum((1, 2)).tolist()
        self.engine += [confusion_counts(t, e, classes) for t, e in zip(truth, engine, strict=True)]
        self.pytorch += count_each(torch.from_numpy(truth), pytorch, classes)

    def row(self, steps: int, background: int | None) -> FidelityRow:
        """Compute the figures."""
        engine, pytorch = (Scores.of(np.stack(counts), background) for counts in (self.engine, self.pytorch))
        differing = sum(self.differing)
        epsilon, alpha = (BIM.epsilon, BIM.alpha) if steps else (0.0, 0.0)
        return FidelityRow(
            name="BIM" if steps else "clean",
            epsilon=epsilon,
            alpha=alpha,
            steps=steps,
            grey_levels=float(grey_levels(epsilon)),
            pixels=self.pixels,
            differing=differing,
            agreement=1 - differing / self.pixels,
            counted_pixels=self.counted_pixels,
            counted_differing=self.counted_differing,
            counted_agreement=1 - self.counted_differing / self.counted_pixels,
            image_differing=tuple(self.differing),
            engine=engine,
            pytorch=pytorch,
        )


def compare(
    bundle: Bundle,
    engine: Engine,
    reference: Reference,
    dataset: Dataset,
    *,
    max_images: int | None = None,
    advance: Callable[[int], None] = lambda images: None,
) -> FidelityResult:
    """
    Label the same images with an engine and with the PyTorch main branch on the CPU.

    `advance` is called with the number of finished images. Raises BenchError if the engine does not take the size of an image,
    or every pixel is ignored; DataError, EngineError.
    """
    began = time.monotonic()
    cpu = torch.device("cpu")
    network = main_branch(reference, cpu)
    classes = len(dataset.classes)
    tallies = {steps: _Tally() for steps in STEPS}
    evaluated_names: list[str] = []
    for names, images, labels in evaluation_batches(dataset, batch_size=engine_batch_size(bundle), limit=max_images):
        pixels = images.contiguous(memory_format=torch.channels_last)
        for steps, adversarial, _ in trajectory(
            network, pixels, labels, epsilon=BIM.epsilon, alpha=BIM.alpha, steps=STEPS[-1], start=BIM.start
        ):
            if steps in tallies:
                received = to_8_bit(adversarial, pixels)  # at step 0 the clean image, which has 8 bits
                engine_labels = _infer(engine, received, bundle, names)
                tallies[steps].add(labels.numpy(), engine_labels, predict(network, received), classes)
        evaluated_names += names
        advance(len(names))
    return FidelityResult(
        bundle=describe_bundle(bundle, engine),
        checkpoint=describe_reference(reference),
        data=describe_data(dataset, evaluated_names, usual_list=bundle.manifest.data.list_sha256),
        protocol=PROTOCOL,
        rows=tuple(tally.row(steps, dataset.classes.background) for steps, tally in tallies.items()),
        environment=describe_environment(cpu, time.monotonic() - began),
    )


def _infer(engine: Engine, received: Tensor, bundle: Bundle, names: list[str]) -> npt.NDArray[np.uint8]:
    try:
        return engine.infer(to_pixels(received)).labels
    except InputError as cause:
        raise BenchError(
            f"{bundle.path} does not take {names[0]}: {cause}; export again with dynamic sizes, or use images of its size"
        ) from cause


def fidelity_markdown(result: FidelityResult) -> str:
    """Write how an engine and the PyTorch main branch agree."""
    return render(Path(__file__).with_name("fidelity.md"), result=result)
