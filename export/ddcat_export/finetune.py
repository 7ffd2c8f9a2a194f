"""
Fine-tuning for int8: weights are trained through the rounding, on images that are attacked through it.

The images are those of the checkpoint's own training: its augmentation, batches, method and attack. But the network that is
attacked and trained is the int8 one. It learns to answer as the fp32 network does: the loss is the divergence of its answers
from those, on the same images.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddcat.manifest_precision import Finetuning
from ddcat_export.bundle_builder import CPU_GRAPH, GRAPH
from ddcat_export.data import check_labels
from ddcat_export.errors import ExportError
from ddcat_export.fake_quantise import FakeQuantised, trained_tensors
from ddcat_export.graph_segmenter import GraphSegmenter
from ddcat_export.progress import Progress, with_progress
from ddcat_export.quantise import quantise
from ddcat_export.twin.twin import Twin
from ddcat_train.checkpoints import Checkpoint
from ddcat_train.choices import Head
from ddcat_train.config import Config, MethodConfig
from ddcat_train.data import AUGMENTATIONS, corrupted, open_dataset
from ddcat_train.data.loader import Batch, train_batches
from ddcat_train.distributed.partition import clean_images
from ddcat_train.losses import pixel_divergence, valid_pixels
from ddcat_train.methods import METHODS, MicroBatch
from ddcat_train.networks import Segmenter
from ddcat_train.optimizer import Gradients, add_gradients, apply_gradients

__all__ = ["finetune"]

_RATE = 0.003  # steps of int8 by which the first update moves a weight; later ones move it by less


def finetune(
    checkpoint: Checkpoint,
    graph: bytes,
    ranges: Mapping[str, float],
    *,
    data_root: Path,
    updates: int,
    size: tuple[int, int] | None,
    unsigned: bool,
    progress: Progress = lambda stage: None,
) -> tuple[bytes, Finetuning]:
    """
    Train the weights of a graph for int8, by Adam, on the CPU. The same arguments give the same weights.

    DDC-AT and its forms divide pixels between branches that the graph does not have: `sat` stands for them, which attacks the
    same images.

    Parameters
    ----------
    checkpoint : Checkpoint
        What the graph was exported from. Its network is the teacher; its configuration says the method, the attack, the data
        and the batches.
    graph : bytes
        From `build_graph` for it.
    ranges : mapping of str to float
        From `measure_ranges`; they stay.
    data_root : Path
        Folder of the data set.
    updates : int
        Number of batches.
    size : (height, width), optional
        The only size that the graph takes, of the crops then. Default: crops as in training.
    unsigned : bool
        Train through the form for runtimes of a CPU: see `quantise`.
    progress : callable, optional
        Called with the current stage.

    Returns
    -------
    graph : bytes
        The fp32 graph with other weights: `quantise` with the same ranges makes of it what was trained.
    finetuning : Finetuning

    Raises
    ------
    ExportError
        If the graph has no weight to train, the loss is not finite, or the int8 graph is not the network that was trained.
    DataError
    """
    config = checkpoint.description.config
    method = _with_one_branch(config.method)
    teacher = checkpoint.segmenter().requires_grad_(requires_grad=False)
    network = FakeQuantised(graph, ranges, trained=trained_tensors(graph, teacher), unsigned=unsigned)
    student = _Student(network, classes=teacher.classes)
    weights = checkpoint.description.class_weights
    balance = None if weights is None else torch.tensor(weights)
    optimizer = torch.optim.Adam(network.parameters(), lr=_RATE)
    batches = _batches(config, data_root, size, updates)
    for done in with_progress(range(updates), "fine-tuning for int8, update", progress):
        batch = next(batches)
        check_labels(batch.labels, teacher.classes, f"{batch.names[0]} or another image of its batch")
        optimizer.param_groups[0]["lr"] = _RATE * (1 - done / updates)
        gradients: list[Gradients] = []
        for micro_batch in _micro_batches(batch, config, balance):
            steps = METHODS[method.name].step(student, micro_batch, attack=config.attack, options=method)
            update = steps[0]._replace(loss=_divergence(teacher, student, micro_batch))
            if not torch.isfinite(update.loss):
                raise ExportError(f"fine-tuning for int8 fails at update {done + 1}: its loss is {update.loss:g}")
            gradients = add_gradients([update], gradients)
        apply_gradients(optimizer, [update], gradients, clip_norm=config.optim.clip_norm)
    tuned = network.graph()
    _check_same(network, quantise(tuned, ranges, unsigned=unsigned), batch.images[:1])
    return tuned, Finetuning(
        steps=updates,
        batch_size=config.train.batch_size,
        method=method.name,
        attack=config.attack.for_method(method).model_dump() if METHODS[method.name].attacks else None,
        graph=CPU_GRAPH if unsigned else GRAPH,
        elements=sum(change.numel() for change in network.parameters()),
        seed=config.seed,
    )


class _Student(GraphSegmenter):
    """Keeps what a method computes its loss of: the forward that names heads, which those of attacks do not."""

    seen: tuple[Tensor, Tensor]  # images and logits

    def forward(self, images: Tensor, heads: Sequence[Head] | None = None) -> Any:
        if heads is None:
            return super().forward(images)
        outputs = super().forward(images, heads)
        self.seen = images, outputs["main"]
        return outputs


def _divergence(teacher: Segmenter, student: _Student, batch: MicroBatch) -> Tensor:
    images, logits = student.seen
    with torch.no_grad():
        wanted = teacher(images)
    labels = batch.labels.repeat(len(images) // len(batch.labels), 1, 1)  # TRADES shows clean and attacked ones together
    return pixel_divergence(wanted, logits, labels, batch.weights).sum() / batch.valid


def _with_one_branch(method: MethodConfig) -> MethodConfig:
    if method.name in ("ddcat", "ddcat-m", "ddcat-n"):
        return MethodConfig(name="sat", deep_weight=0, adversarial_share=method.adversarial_share, split=method.split)
    return method.model_copy(update={"deep_weight": 0.0})


def _batches(config: Config, root: Path, size: tuple[int, int] | None, updates: int) -> Generator[Batch, None, None]:
    data, augment = config.data, config.augment
    crops = AUGMENTATIONS[augment.policy](crop=size or augment.crop, scale=augment.scale, mean=config.fill)
    return train_batches(
        open_dataset(data.name, root, data.train_split, rule=data.rule()),
        corrupted(crops, augment.corruptions, share=augment.corrupted_share),
        batch_size=config.train.batch_size,
        seed=config.seed,
        steps=updates,
        skip_corrupt=data.skip_corrupt,
        drop_last=config.train.last_batch == "drop",
    )


def _micro_batches(batch: Batch, config: Config, weights: Tensor | None) -> Iterator[MicroBatch]:
    """Cut a batch as a training on one device does: see `ddcat_train.run.trainer`."""
    valid, count = valid_pixels(batch.labels, weights), config.train.accumulate
    for first in range(count):
        part = slice(first, None, count)
        yield MicroBatch(
            batch.images[part].to(memory_format=torch.channels_last),
            batch.labels[part],
            batch.seeds[part],
            clean_images(range(config.train.batch_size)[part], config),
            valid.clamp(min=1) if weights is None else valid.clamp(min=torch.finfo(valid.dtype).tiny),
            batch.labels.numel(),
            weights,
        )


def _check_same(network: FakeQuantised, content: bytes, images: Tensor) -> None:
    """Refuse a graph that does not compute what was trained."""
    with torch.no_grad():
        if not torch.equal(network(images), Twin(content)(images)):
            raise ExportError("the int8 graph differs from the network that was fine-tuned: leave --finetune out")
