"""The contenders of `train_step.py`: our training step, and two baselines."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench.paper.baselines import Baseline
from ddcat.classes import CAMVID, CITYSCAPES, VOC, Classes
from ddcat_bench.timing.pytorch_models import torch_settings
from ddcat_bench.timing.results import Precision
from ddcat_train.checkpoints import load_checkpoint
from ddcat_train.config import Config
from ddcat_train.data.classes_file import CLASSES_FILE, classes_yaml, read_classes
from ddcat_train.data.loader import Batch
from ddcat_train.data.synthetic.render import SCENE_CLASSES
from ddcat_train.run.trainer import Trainer

__all__ = [
    "CONTENDERS",
    "SMALL",
    "Contender",
    "ContenderName",
    "Ours",
    "Plan",
    "contend",
    "draw_batch",
]

ContenderName = Literal["ours", "released", "frugal"]
CONTENDERS: tuple[ContenderName, ...] = ("ours", "released", "frugal")

_CLASSES: dict[str, Classes] = {"voc": VOC, "cityscapes": CITYSCAPES, "camvid": CAMVID, "scenes": SCENE_CLASSES}
STEPS = 1_000_000  # of the run that is made believe: the learning rate stays what it is at the start
SMALL = 33  # the smallest crop


class Contender(Protocol):
    """Takes training steps."""

    def step(self, batch: Batch) -> Tensor:
        """Attack, train, update, and return the loss, () float."""


@dataclass(frozen=True)
class Plan:
    """
    The configuration that is measured.

    Attributes
    ----------
    config : Config
        Configuration of our run, with its precision; only the classes of its data set are used.
    baseline_precision : "fp32", "bf16" or "fp64"
    device : "cpu" or "cuda"
    threads : int
        Threads of PyTorch on the CPU.
    tf32 : bool
        Whether matrix products and convolutions in float32 may round to TF32 on a GPU, for all contenders.
    """

    config: Config
    baseline_precision: Precision
    device: str
    threads: int
    tf32: bool = False

    @property
    def classes(self) -> Classes:
        """Classes of the data set, which need not be there unless it brings its own."""
        data = self.config.data
        return _CLASSES.get(data.name) or read_classes(data.root / CLASSES_FILE)

    def precision(self, name: ContenderName) -> Precision:
        """Return the precision that a contender computes in."""
        return self.config.train.precision if name == "ours" else self.baseline_precision


class Ours:
    """
    `ddcat_train` itself: the very step that a run takes, on a made-up data set.

    Parameters
    ----------
    plan : Plan
    folder : Path
        An empty one, for the data set and for checkpoints.
    """

    def __init__(self, plan: Plan, folder: Path) -> None:
        _write_data(folder / "data", plan.classes)
        config = plan.config
        data = config.data.model_copy(
            update={
                "name": "folder", "root": folder / "data", "train_split": "train", "val_split": "val", "long_side": None,
                "val_long_side": None,
            }
        )  # fmt: skip
        train = config.train.model_copy(update={"epochs": STEPS, "last_batch": "fill"})  # one image fills a batch
        self._folder = folder
        with torch_settings(plan.threads):  # a run forbids TF32: what the plan has set is put back
            self._trainer = Trainer(config.model_copy(update={"data": data, "train": train}), device=plan.device)

    def step(self, batch: Batch) -> Tensor:
        """Take one step of the run."""
        loss = self._trainer.train_step(batch)["loss"]
        assert isinstance(loss, Tensor)
        return loss

    def weights(self) -> Mapping[str, Tensor]:
        """Return the weights as they are, by way of a checkpoint."""
        path = self._folder / "now.safetensors"
        self._trainer.save(path, resumable=False)
        return load_checkpoint(path).part("model.")


def contend(plan: Plan, name: ContenderName, folder: Path, weights: Mapping[str, Tensor] | None = None) -> Contender:
    """
    Make one contender.

    Parameters
    ----------
    plan : Plan
    name : "ours", "released" or "frugal"
    folder : Path
        An empty one.
    weights : mapping of str to Tensor, optional
        Weights of a network of ours that a baseline starts from.
    """
    if name == "ours":
        return Ours(plan, folder)
    baseline = Baseline(
        plan.config,
        name,
        classes=len(plan.classes),
        precision=plan.baseline_precision,
        device=torch.device(plan.device),
        steps=STEPS,
    )
    if weights is not None:
        baseline.load(weights)
    return baseline


def draw_batch(plan: Plan, size: tuple[int, int] | None = None, seed: int = 0) -> Batch:
    """
    Make up a batch: uniform noise, and labels in blocks of 8 x 8 pixels, a tenth of them ignored.

    Parameters
    ----------
    plan : Plan
    size : (height, width), optional
        The configuration's crop by default.
    seed : int
    """
    height, width = size or plan.config.augment.crop
    count, generator = plan.config.train.batch_size, torch.Generator().manual_seed(seed)
    coarse = torch.randint(len(plan.classes), (count, -(-height // 8), -(-width // 8)), generator=generator)
    coarse[torch.rand(coarse.shape, generator=generator) < 0.1] = 255
    labels = coarse.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, :height, :width].contiguous()
    batch = Batch(torch.rand(count, 3, height, width, generator=generator), labels, torch.arange(count))
    return batch.pin_memory() if plan.device == "cuda" else batch


def _write_data(root: Path, classes: Classes) -> None:
    """A data set of one image, which a trainer opens and no step reads."""
    for split in ("train", "val"):
        for kind, shape in (("images", (SMALL, SMALL, 3)), ("labels", (SMALL, SMALL))):
            (root / kind / split).mkdir(parents=True)
            Image.fromarray(np.zeros(shape, np.uint8)).save(root / kind / split / "0.png")
    (root / CLASSES_FILE).write_text(classes_yaml(classes), encoding="utf-8")
