"""What is judged by labels alone: PyTorch's main branch of a checkpoint, or the engine of a bundle."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ddcat import provenance
from ddcat.bundle import Bundle
from ddcat.choices import Device
from ddcat.engines import Engine, open_engine
from ddcat.engines.cores import physical_cores
from ddcat_bench.describe import describe_bundle, describe_reference, versions
from ddcat_bench.inputs import check_sizes, engine_batch_size, main_branch, open_bundle_data, open_split, torch_device
from ddcat_bench.result_schema import BundleEntry, CheckpointEntry
from ddcat_bench.tiled import as_served
from ddcat_train.data import Dataset
from ddcat_train.pixels import to_planes
from ddcat_train.reference import Reference

__all__ = ["Judged", "JudgedJob", "Predict", "judged", "open_data"]

Predict = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.integer]]

_BATCH = 8


@dataclass(frozen=True)
class JudgedJob:
    """What is judged on which images; a kind of judging adds its own."""

    predict: Predict  # maps images (N, H, W, 3) uint8 to labels (N, H, W)
    judged: str  # SHA-256 of the checkpoint or of the bundle's manifest
    dataset: Dataset
    batch_size: int = _BATCH  # images of a part of the work
    max_images: int | None = None  # most images, spread evenly over the split
    seed: int = 0

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.dataset) if self.max_images is None else min(self.max_images, len(self.dataset))

    def identity(self) -> dict[str, Any]:
        """Return everything that the counts depend on, as JSON."""
        return {
            "judged": self.judged,
            "data": self.dataset.list_sha256(),
            "long_side": self.dataset.long_side,
            "images": self.images,
            "batch": self.batch_size,
            "seed": self.seed,
            "versions": versions(),
            "code": provenance.git_commit(),
        }


@dataclass(frozen=True)
class Judged:
    """A model or an engine, ready to label."""

    predict: Predict  # maps images (N, H, W, 3) uint8 to labels (N, H, W)
    digest: str  # SHA-256 of the checkpoint or of the bundle's manifest
    usual_list: str | None  # SHA-256 of the list of images that it names
    checkpoint: CheckpointEntry | None  # its description; one of them is None
    bundle: BundleEntry | None
    batch_size: int  # images of a batch
    at_once: int  # images that one of the threads labels at once: together they hold no more than one batch
    device: torch.device  # where PyTorch computes
    threads: int = 1  # threads that may call `predict` at the same time, each with an engine of its own; others wait


def open_data(source: Reference | Bundle, *, data_root: Path | None, split: str | None) -> Dataset:
    """Open the images that a checkpoint or an engine is judged on. Raises BenchError, DataError."""
    if not isinstance(source, Bundle):
        return open_split(source, data_root=data_root, split=split)
    dataset = open_bundle_data(source, data_root=data_root, split=split)
    check_sizes(source, dataset, cut=True)
    return dataset


@contextmanager
def judged(source: Reference | Bundle, device: Device = "auto", *, threads: int = 1) -> Iterator[Judged]:
    """
    Open what is judged; a checkpoint on `device`.

    `threads` would call `predict` at the same time: an engine on a CPU is opened once for each of them, up to the number of
    cores, which they share. Another engine, and a network in PyTorch, answers one at a time. Raises DdcatError, EngineError.
    """
    if isinstance(source, Bundle):
        with ExitStack() as stack:
            cores = physical_cores()
            count = min(threads, cores) if "CPU" in source.manifest.engine.provider else 1
            share = None if count == 1 else cores // count
            engines = [stack.enter_context(open_engine(source, threads=share)) for _ in range(count)]
            yield Judged(
                predict=_in_turn([_labels_of(as_served(engine, source.manifest)) for engine in engines]),
                digest=source.digest,
                usual_list=source.manifest.data.list_sha256,
                checkpoint=None,
                bundle=describe_bundle(source, engines[0]),
                batch_size=engine_batch_size(source),
                at_once=max(source.manifest.shapes.batch.minimum, -(-engine_batch_size(source) // count)),
                device=torch.device("cpu"),
                threads=count,
            )
        return
    place = torch_device(device)
    network = main_branch(source, place)

    def predict(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.integer]:
        with torch.no_grad():
            labels: npt.NDArray[np.integer] = network(to_planes(images, place)).argmax(1).cpu().numpy()
        return labels

    yield Judged(
        predict=_in_turn([predict]),
        digest=source.sha256(),
        usual_list=source.data.list_sha256,
        checkpoint=describe_reference(source),
        bundle=None,
        batch_size=_BATCH,
        at_once=_BATCH,
        device=place,
    )


def _labels_of(engine: Engine) -> Predict:
    return lambda images: engine.infer(images).labels


def _in_turn(predictors: Sequence[Predict]) -> Predict:
    """Give each caller the next free one of several that do the same; a thread waits while all are in use."""
    free: Queue[Predict] = Queue()
    for predictor in predictors:
        free.put(predictor)

    def predict(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.integer]:
        predictor = free.get()
        try:
            return predictor(images)
        finally:
            free.put(predictor)

    return predict
