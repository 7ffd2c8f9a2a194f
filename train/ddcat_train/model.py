"""Training and a trained model in Python: `ddcat.train` and `ddcat.load`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ddcat.bands import form_of, is_image
from ddcat.classes import Classes
from ddcat.metrics import miou, pixel_accuracy
from ddcat_train.checkpoints import load_checkpoint
from ddcat_train.config import load_config
from ddcat_train.data import open_dataset
from ddcat_train.distributed.ranks import check_device
from ddcat_train.errors import AttackError, DataError, TrainError
from ddcat_train.evaluation import evaluate
from ddcat_train.pixels import to_planes
from ddcat_train.reference import Reference
from ddcat_train.run.loop import train as run_training

__all__ = ["Evaluation", "Model", "chosen_device", "load", "train"]


_LEVELS = 16.0  # no image in [0, 1], with whatever noise, has such values


class Evaluation(NamedTuple):
    """
    Scores of a model on a split of its data.

    Attributes
    ----------
    miou, pixel_accuracy : mapping of int to float
        In [0, 1], for each number of attack steps; 0 steps are the clean images.
    images : int
    """

    miou: dict[int, float]
    pixel_accuracy: dict[int, float]
    images: int


class Model:
    """
    The main branch of a checkpoint, or an ONNX file: what an export keeps, in eval() and without gradients of its weights.

    Call it with images (N, 3, H, W) float in [0, 1]; it returns logits (N, K, H, W), differentiable in the images.

    Parameters
    ----------
    reference : Reference
    device : torch.device

    Attributes
    ----------
    reference : Reference
    device : torch.device
    network : torch.nn.Module
    """

    def __init__(self, reference: Reference, device: torch.device) -> None:
        self.reference, self.device = reference, device
        self.network = reference.segmenter().requires_grad_(False).to(device)

    def __call__(self, images: Tensor) -> Tensor:
        """
        Return the logits of images.

        Raises
        ------
        DataError
        """
        if not images.is_floating_point() or images.ndim != 4:
            form = f"{str(images.dtype).removeprefix('torch.')} of shape {tuple(images.shape)}"
            raise DataError(f"images: expected floats in [0, 1] of shape (N, 3, H, W), got {form}; divide 8-bit images by 255")
        if images.device.type == "cpu" and images.numel() and float(images.detach().max()) > _LEVELS:  # a GPU would wait for it
            raise DataError("images: expected values in [0, 1], got levels of 0 to 255; divide them by 255")
        logits: Tensor = self.network(images.to(self.device))
        return logits

    @property
    def classes(self) -> Classes:
        """Names and colours of the classes."""
        return self.reference.classes

    def predict(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """
        Segment an image.

        Parameters
        ----------
        image : (H, W, C) uint8
            RGB, or the bands of its data.

        Returns
        -------
        (H, W) uint8
            The class of each pixel.

        Raises
        ------
        DataError
        """
        channels = self.reference.data.rule.channels
        if not is_image(image, channels):
            expected = f"(height, width, {channels}) {form_of(channels)}"
            raise DataError(f"image: expected a uint8 array {expected}, got {_form(image)}")
        with torch.no_grad():
            labels = self(to_planes(image[None], self.device)).argmax(1)[0]
        return labels.to(torch.uint8).cpu().numpy()

    def evaluate(
        self,
        *,
        data_root: str | Path | None = None,
        split: str | None = None,
        limit: int | None = None,
        steps: Sequence[int] = (0, 3),
        epsilon: float | None = None,
        batch_size: int = 1,
    ) -> Evaluation:
        """
        Score the model on its data, clean and under BIM (Eq. 2 of the paper), whole images at once.

        Parameters
        ----------
        data_root : path, optional
            Where the data set is now; where it was in training by default.
        split : str, optional
            Its validation split by default.
        limit : int, optional
            Number of images, spread evenly over the split; all by default.
        steps : sequence of int
            Numbers of attack steps to score; 0 are the clean images.
        epsilon : float, optional
            Bound in [0, 1] units; that of the training configuration by default. A step is a third of it.
        batch_size : int
            Images at once.

        Raises
        ------
        DataError, AttackError
        """
        if (limit is not None and limit < 1) or batch_size < 1:
            raise DataError(f"limit {limit} and batch_size {batch_size}: expected 1 or more")
        if not steps or min(steps) < 0:
            raise DataError(f"steps {tuple(steps)}: expected numbers of 0 or more, such as (0, 3)")
        data = self.reference.data
        root = data.root if data_root is None else Path(data_root)
        if root is None:
            raise DataError(f"{self.reference.path} does not name a data set: use data_root")
        dataset = open_dataset(data.name, root, split or data.val_split, rule=data.rule)
        if dataset.classes.names != self.classes.names:
            raise DataError(f"{root} has the classes {dataset.classes.names}; the model was trained on {self.classes.names}")
        bound = self.reference.epsilon if epsilon is None else epsilon
        if not 0 <= bound <= 1:
            raise AttackError(f"epsilon {bound:g}: expected a bound in [0, 1], as the values of an image are, such as 8/255")
        result = evaluate(
            self, dataset, epsilon=bound, alpha=bound / 3, steps=steps, batch_size=batch_size, device=self.device, limit=limit
        )
        counts = {n: rows.sum(0) for n, rows in result.counts.items()}
        return Evaluation(
            {n: miou(rows) for n, rows in counts.items()},
            {n: pixel_accuracy(rows) for n, rows in counts.items()},
            len(result.names),
        )


def load(run: str | Path, *, device: str = "auto") -> Model:
    """
    Load a trained model.

    Parameters
    ----------
    run : path
        A run directory, whose best checkpoint is taken, or a checkpoint file.
    device : "auto", "cpu" or "cuda"
        "auto" takes a GPU if there is one.

    Raises
    ------
    CheckpointError
        Where there is none, it is damaged, or it is not one of ours.
    ConfigError
        Where there is no GPU.
    """
    place = chosen_device(device)
    return Model(load_checkpoint(Path(run)), place)


def chosen_device(name: str) -> torch.device:
    """Return where a model computes, for "auto" a GPU if there is one; where "cuda" is not there, raise a `ConfigError`."""
    check_device(name, 1)
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def train(
    config: str | Path,
    out: str | Path,
    *,
    data_root: str | Path | None = None,
    overrides: Sequence[str] = (),
    resume: bool = False,
    device: str = "auto",
) -> Model:
    """
    Train a model in this process, as `ddcat train` does.

    Parameters
    ----------
    config : str or path
        A preset, such as "camvid-ddcat" (`ddcat train --list`), or a configuration file.
    out : path
        Run directory; new, unless `resume`.
    data_root : path, optional
        Where the data set is; what the configuration says by default.
    overrides : sequence of str
        "KEY=VALUE" for single values of the configuration, such as "train.epochs=10".
    resume : bool
        Continue the run in `out`, from its start if it has none yet.
    device : "auto", "cpu" or "cuda"

    Returns
    -------
    Model
        That of the best checkpoint.

    Raises
    ------
    ConfigError, DataError, TrainError
    """
    chosen = list(overrides) if data_root is None else [*overrides, f"data.root={json.dumps(str(data_root))}"]
    outcome = run_training(load_config(str(config), chosen), Path(out), resume=resume, device=device, command="ddcat.train")
    if outcome.signal is not None:
        raise TrainError(f"the training in {out} was stopped at step {outcome.step} of {outcome.steps}; use resume=True")
    return load(out, device=device)


def _form(value: Any) -> str:
    return f"{value.dtype} of shape {value.shape}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
