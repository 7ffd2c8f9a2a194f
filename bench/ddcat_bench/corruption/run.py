"""Judge a checkpoint or a bundle under corruptions, and publish the result."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ddcat.bundle import Bundle
from ddcat.engines import open_engine
from ddcat.progress import progress
from ddcat_bench.corruption.measure import CorruptionJob, Predict, measure
from ddcat_bench.corruption.report import corruption_brief, corruption_markdown, corruption_plot, corruption_sheet
from ddcat_bench.corruption.results import CorruptionResult
from ddcat_bench.describe import describe_bundle, describe_checkpoint, describe_data, describe_environment
from ddcat_bench.errors import BenchError
from ddcat_bench.inputs import check_sizes, engine_batch_size, main_branch, open_bundle_data, open_split, torch_device
from ddcat_bench.publish import claim, publish
from ddcat_bench.result_schema import BundleEntry, CheckpointEntry
from ddcat_bench.work_units import forget_other, remove_work, work_folder
from ddcat_train.checkpoints import Checkpoint
from ddcat_train.corruptions import CORRUPTIONS
from ddcat_train.data import Dataset
from ddcat_train.pixels import to_planes

__all__ = ["run_corruptions"]


class _Judged(NamedTuple):
    predict: Predict
    digest: str
    usual_list: str | None
    checkpoint: CheckpointEntry | None
    bundle: BundleEntry | None
    batch_size: int
    device: torch.device


def run_corruptions(
    source: Checkpoint | Bundle,
    folder: Path,
    *,
    data_root: Path | None = None,
    split: str | None = None,
    names: Sequence[str] | None = None,
    max_images: int | None = None,
    seed: int = 0,
    device: str = "auto",
    force: bool = False,
) -> CorruptionResult:
    """
    Corrupt, label, count and publish; finished parts are kept beside the result until then.

    Parameters
    ----------
    source : Checkpoint or Bundle
        Of a checkpoint PyTorch's main branch is judged, of a bundle its engine.
    folder : Path
        Must not exist, or be empty, or hold an earlier result that `force` replaces.
    data_root, split : optional
        Where the images are; those of training by default.
    names : sequence of str, optional
        Keys of `ddcat_train.corruptions.CORRUPTIONS`; all by default.
    max_images : int, optional
    seed : int
    device : "auto", "cpu" or "cuda"
        Of a checkpoint.
    force : bool

    Raises
    ------
    BenchError, DataError, EngineError
    """
    if unknown := [name for name in names or () if name not in CORRUPTIONS]:
        raise BenchError(f"there is no corruption {unknown[0]!r}: use one of {', '.join(CORRUPTIONS)}")
    with claim(folder, "corruptions", force=force):
        if isinstance(source, Bundle):
            dataset = open_bundle_data(source, data_root=data_root, split=split)
            check_sizes(source, dataset)
        else:
            dataset = open_split(source, data_root=data_root, split=split)
        with _judged(source, device) as judged:
            job = CorruptionJob(
                judged.predict,
                judged.digest,
                dataset,
                names=tuple(names or CORRUPTIONS),
                batch_size=judged.batch_size,
                max_images=max_images,
                seed=seed,
            )
            result, sheet = _measured(job, judged, dataset, work_folder(folder), force=force)
        files = {"corruptions.png": corruption_plot(result), "panels.png": sheet}
        publish(
            folder,
            "corruptions",
            result,
            corruption_markdown(result),
            files,
            shown=corruption_brief(result),
            force=force,
        )
        remove_work(work_folder(folder))
    return result


def _measured(
    job: CorruptionJob, judged: _Judged, dataset: Dataset, work: Path, *, force: bool
) -> tuple[CorruptionResult, bytes]:
    if force:
        forget_other(work, job.identity())
    with progress("corrupting", job.labelled, unit="images") as advance:
        measured = measure(job, work, advance)
    result = CorruptionResult(
        checkpoint=judged.checkpoint,
        bundle=judged.bundle,
        data=describe_data(dataset, measured.images, usual_list=judged.usual_list),
        seed=job.seed,
        clean=measured.clean,
        rows=measured.rows,
        environment=describe_environment(judged.device, measured.seconds),
    )
    return result, corruption_sheet(job, result.title)


@contextmanager
def _judged(source: Checkpoint | Bundle, device: str) -> Iterator[_Judged]:
    if isinstance(source, Bundle):
        with open_engine(source) as engine:
            yield _Judged(
                lambda images: engine.infer(images).labels,
                source.digest,
                source.manifest.data.list_sha256,
                None,
                describe_bundle(source, engine),
                engine_batch_size(source),
                torch.device("cpu"),
            )
        return
    place = torch_device(device)
    network = main_branch(source, place)
    usual = source.description.val

    def predict(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.integer]:
        with torch.no_grad():
            labels: npt.NDArray[np.integer] = network(to_planes(images, place)).argmax(1).cpu().numpy()
        return labels

    yield _Judged(
        predict,
        source.sha256(),
        None if usual is None else usual.list_sha256,
        describe_checkpoint(source),
        None,
        8,
        place,
    )
