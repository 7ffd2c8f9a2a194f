"""What is judged by labels alone: PyTorch's main branch of a checkpoint, or the engine of a bundle."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ddcat.bundle import Bundle
from ddcat.choices import Device
from ddcat.engines import open_engine
from ddcat_bench.describe import describe_bundle, describe_reference
from ddcat_bench.inputs import check_sizes, engine_batch_size, main_branch, open_bundle_data, open_split, torch_device
from ddcat_bench.result_schema import BundleEntry, CheckpointEntry
from ddcat_train.data import Dataset
from ddcat_train.pixels import to_planes
from ddcat_train.reference import Reference

__all__ = ["Judged", "Predict", "judged", "open_data"]

Predict = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.integer]]

_BATCH = 8


@dataclass(frozen=True)
class Judged:
    """
    A model or an engine, ready to label.

    Attributes
    ----------
    predict : callable
        Maps images (N, H, W, 3) uint8 to labels (N, H, W).
    digest : str
        SHA-256 of the checkpoint or of the bundle's manifest.
    usual_list : str or None
        SHA-256 of the list of images that it names.
    checkpoint, bundle
        Its description; one of them is None.
    batch_size : int
        Images at once.
    device : torch.device
        Where PyTorch computes.
    """

    predict: Predict
    digest: str
    usual_list: str | None
    checkpoint: CheckpointEntry | None
    bundle: BundleEntry | None
    batch_size: int
    device: torch.device


def open_data(source: Reference | Bundle, *, data_root: Path | None, split: str | None) -> Dataset:
    """
    Open the images that a checkpoint or an engine is judged on.

    Raises
    ------
    BenchError, DataError
    """
    if not isinstance(source, Bundle):
        return open_split(source, data_root=data_root, split=split)
    dataset = open_bundle_data(source, data_root=data_root, split=split)
    check_sizes(source, dataset)
    return dataset


@contextmanager
def judged(source: Reference | Bundle, device: Device = "auto") -> Iterator[Judged]:
    """
    Open what is judged.

    Parameters
    ----------
    source : Reference or Bundle
    device : "auto", "cpu" or "cuda"
        Of a checkpoint.

    Raises
    ------
    DdcatError, EngineError
    """
    if isinstance(source, Bundle):
        with open_engine(source) as engine:
            yield Judged(
                predict=lambda images: engine.infer(images).labels,
                digest=source.digest,
                usual_list=source.manifest.data.list_sha256,
                checkpoint=None,
                bundle=describe_bundle(source, engine),
                batch_size=engine_batch_size(source),
                device=torch.device("cpu"),
            )
        return
    place = torch_device(device)
    network = main_branch(source, place)

    def predict(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.integer]:
        with torch.no_grad():
            labels: npt.NDArray[np.integer] = network(to_planes(images, place)).argmax(1).cpu().numpy()
        return labels

    yield Judged(
        predict=predict,
        digest=source.sha256(),
        usual_list=source.data.list_sha256,
        checkpoint=describe_reference(source),
        bundle=None,
        batch_size=_BATCH,
        device=place,
    )
