"""Pictures of what an attack does to models with and without a defence."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ddcat.classes import Classes, colourise
from ddcat.metrics import confusion_counts, pixel_accuracy
from ddcat_bench.attack.panels import ALPHA, EPSILON, STEPS, Look, amplified, look_at
from ddcat_train.attacks import Model, bim
from ddcat_train.data import Dataset
from ddcat_train.data.loader import evaluation_batches
from ddcat_train.pixels import to_8_bit, to_pixels
from ddcat_train.run.image_grid import to_png

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
    epsilon: float = EPSILON,
    alpha: float = ALPHA,
    steps: int = STEPS,
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
            look_at(model, clean, bim(model, clean, labels, epsilon=epsilon, alpha=alpha, steps=steps))
            for model in (undefended, defended)
        )
        originals = to_pixels(to_8_bit(clean, clean))
        for index, name in enumerate(names):
            truth = labels[index].numpy().astype(np.uint8)
            perturbation, factor = amplified(originals[index], bare.images[index])
            pictures = (
                Picture("Image", name, to_png(originals[index])),
                Picture(
                    "Attacked image", f"{attack}, by the gradients of the undefended model", to_png(bare.images[index]), ""
                ),
                Picture(
                    "Perturbation", f"of that attack, times {factor}; grey is none", to_png(perturbation), f"times {factor}"
                ),
                Picture(
                    "Undefended",
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


def _right(truth: U8, look: Look, index: int, classes: Classes) -> str:
    attacked, clean = (
        pixel_accuracy(confusion_counts(truth, labels[index], len(classes))) for labels in (look.attacked, look.clean)
    )
    return f"{attacked:.0%} of the pixels are right, {clean:.0%} without attack"
