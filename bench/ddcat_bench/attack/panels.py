"""Pictures of what an attack does: images, attacked images, and what models with and without a defence say of them."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ddcat.classes import Classes, colourise
from ddcat.metrics import confusion_counts, pixel_accuracy
from ddcat_bench.attack.scoring import predict
from ddcat_train.attacks import Model, bim
from ddcat_train.data import Dataset
from ddcat_train.data.loader import evaluation_batches
from ddcat_train.pixels import to_8_bit, to_pixels
from ddcat_train.run import image_grid
from ddcat_train.run.image_grid import to_png

__all__ = ["Panel", "Picture", "attack_sheet", "make_panels"]

_GREY = 128  # what no perturbation is shown as
_EPSILON, _ALPHA, _STEPS = 0.03, 0.01, 7
_HEADINGS = ("image", "attacked", "perturbation", "prediction for image", "prediction for attacked", "truth")

U8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Picture:
    """
    One picture of a panel.

    Attributes
    ----------
    title : str
        A few words, the same in every panel.
    caption : str
        Description and, of a prediction, its accuracy.
    png : bytes
        An RGB PNG of the image's size.
    own : str or None
        The part of the caption that is not the same in every panel; None: all of it.
    """

    title: str
    caption: str
    png: bytes
    own: str | None = None


@dataclass(frozen=True)
class Panel:
    """The pictures of one image of a data set."""

    name: str
    pictures: tuple[Picture, ...]


def make_panels(
    undefended: Model,
    defended: Model,
    dataset: Dataset,
    *,
    defence: str,
    images: int = 4,
    epsilon: float = _EPSILON,
    alpha: float = _ALPHA,
    steps: int = _STEPS,
) -> list[Panel]:
    """
    Attack some images of a split, each model by its own gradients, and show what comes of it.

    The attack is BIM from x on. What it gives is rounded to 8 bits, as a server would receive it, and the predictions are those
    for the rounded images.

    Parameters
    ----------
    undefended, defended : callable
        Map images (N, 3, H, W) in [0, 1] to logits (N, K, H, W), on the CPU.
    dataset : Dataset
    defence : str
        Name of `defended`.
    images : int
        Number of images, spread evenly over the split.
    epsilon, alpha, steps
        As for `ddcat_train.attacks.bim`.

    Returns
    -------
    list of Panel
        In the order of the split. Six pictures each: the image; the attacked image and the perturbation, of the undefended
        model; the prediction of either model for its own attacked image; the truth.
    """
    attack = f"BIM, n = {steps}"
    panels = []
    for names, clean, labels in evaluation_batches(dataset, batch_size=images, limit=images):
        bare, robust = (
            _look(model, clean, bim(model, clean, labels, epsilon=epsilon, alpha=alpha, steps=steps))
            for model in (undefended, defended)
        )
        originals = to_pixels(to_8_bit(clean, clean))
        for index, name in enumerate(names):
            truth = labels[index].numpy().astype(np.uint8)
            perturbation, factor = _amplified(originals[index], bare.images[index])
            pictures = (
                Picture("Image", name, to_png(originals[index])),
                Picture(
                    "Attacked image", f"{attack}, by the gradients of the model without defence", to_png(bare.images[index]), ""
                ),
                Picture(
                    "Perturbation", f"of that attack, times {factor}; grey is none", to_png(perturbation), f"times {factor}"
                ),
                Picture(
                    "No defence",
                    f"its prediction for that attacked image: {_right(truth, bare, index, dataset.classes)}",
                    to_png(colourise(bare.attacked[index], dataset.classes)),
                    _right(truth, bare, index, dataset.classes),
                ),
                Picture(
                    defence,
                    f"its prediction under {attack}, by its own gradients: {_right(truth, robust, index, dataset.classes)}",
                    to_png(colourise(robust.attacked[index], dataset.classes)),
                    _right(truth, robust, index, dataset.classes),
                ),
                Picture("Truth", "light grey is ignored", to_png(colourise(truth, dataset.classes)), ""),
            )
            panels.append(Panel(name, pictures))
    return panels


def attack_sheet(model: Model, dataset: Dataset, *, title: str, device: torch.device, images: int = 4) -> bytes:
    """
    Draw what BIM with n = 7 does to some images of a split, a row for each (the paper's Figs. 1 and 3).

    Parameters
    ----------
    model : callable
        Maps images (N, 3, H, W) in [0, 1] to logits (N, K, H, W).
    dataset : Dataset
    title : str
    device : torch.device
    images : int
        Number of images, spread evenly over the split.

    Returns
    -------
    bytes
        A PNG. Columns: image, attacked image in 8 bits, perturbation, prediction for either, truth.
    """
    rows: list[list[image_grid.Picture]] = []
    for names, clean, labels in evaluation_batches(dataset, batch_size=images, limit=images):
        pixels, targets = clean.to(device, memory_format=torch.channels_last), labels.to(device)
        look = _look(model, pixels, bim(model, pixels, targets, epsilon=_EPSILON, alpha=_ALPHA, steps=_STEPS))
        for index, (name, original) in enumerate(zip(names, to_pixels(to_8_bit(pixels, pixels)), strict=True)):
            truth = labels[index].numpy().astype(np.uint8)
            perturbation, factor = _amplified(original, look.images[index])
            shares = [
                pixel_accuracy(confusion_counts(truth, one[index], len(dataset.classes))) for one in (look.clean, look.attacked)
            ]
            captions = ["" if np.isnan(share) else f"{share:.0%} right" for share in shares]
            rows.append(
                [
                    image_grid.Picture(original, name, smooth=True),
                    image_grid.Picture(look.images[index], "", smooth=True),
                    image_grid.Picture(perturbation, f"times {factor}; grey is none"),
                    image_grid.Picture(colourise(look.clean[index], dataset.classes), captions[0]),
                    image_grid.Picture(colourise(look.attacked[index], dataset.classes), captions[1]),
                    image_grid.Picture(colourise(truth, dataset.classes), ""),
                ]
            )
    whole = f"{title}; attacked by BIM: epsilon {_EPSILON:.4g}, n = {_STEPS}, in 8 bits"
    return to_png(image_grid.draw_sheet(whole, _HEADINGS, rows, dataset.classes))


class _Look(NamedTuple):
    """A model's own attacked images, and its predictions for the clean ones and for those."""

    images: U8  # (N, H, W, 3)
    clean: U8  # (N, H, W)
    attacked: U8  # (N, H, W)


def _look(model: Model, clean: Tensor, adversarial: Tensor) -> _Look:
    received = to_8_bit(adversarial, clean)
    predictions = (predict(model, batch).cpu().numpy().astype(np.uint8) for batch in (to_8_bit(clean, clean), received))
    return _Look(to_pixels(received), *predictions)


def _amplified(image: U8, attacked: U8) -> tuple[U8, int]:
    """Show a perturbation around grey, as strong as fits into 8 bits, and by what factor that is."""
    difference = attacked.astype(np.int16) - image
    factor = 127 // max(int(np.abs(difference).max()), 1)
    return (_GREY + factor * difference).astype(np.uint8), factor


def _right(truth: U8, look: _Look, index: int, classes: Classes) -> str:
    attacked, clean = (
        pixel_accuracy(confusion_counts(truth, labels[index], len(classes))) for labels in (look.attacked, look.clean)
    )
    return f"{attacked:.0%} of the pixels are right, {clean:.0%} without attack"
