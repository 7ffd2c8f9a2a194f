"""A sheet of what an attack does: images, attacked images, and what a model says of them."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ddcat.classes import colourise
from ddcat.metrics import confusion_counts, pixel_accuracy
from ddcat_bench.attack.scoring import predict
from ddcat_train.attacks import Model, bim
from ddcat_train.data import Dataset
from ddcat_train.data.loader import evaluation_batches
from ddcat_train.pixels import to_8_bit, to_pixels
from ddcat_train.run import image_grid
from ddcat_train.run.image_grid import to_png

__all__ = ["ALPHA", "EPSILON", "STEPS", "Look", "amplified", "attack_sheet", "look_at"]

_GREY = 128  # what no perturbation is shown as
EPSILON, ALPHA, STEPS = 0.03, 0.01, 7  # the paper's, of its strongest in evaluation
_HEADINGS = ("image", "attacked", "perturbation", "prediction for image", "prediction for attacked", "truth")

U8 = npt.NDArray[np.uint8]


def attack_sheet(model: Model, dataset: Dataset, *, title: str, device: torch.device, images: int = 4) -> bytes:
    """
    Draw what BIM with n = 7 does to some images of a split, a row for each (the paper's Figs. 1 and 3). A PNG.

    The model maps images (N, 3, H, W) in [0, 1] to logits (N, K, H, W). The images are spread evenly over the split. The
    columns are: image, attacked image in 8 bits, perturbation, prediction for either, truth.
    """
    rows: list[list[image_grid.Picture]] = []
    for names, clean, labels in evaluation_batches(dataset, batch_size=images, limit=images):
        pixels, targets = clean.to(device, memory_format=torch.channels_last), labels.to(device)
        look = look_at(model, pixels, bim(model, pixels, targets, epsilon=EPSILON, alpha=ALPHA, steps=STEPS))
        for index, (name, original) in enumerate(zip(names, to_pixels(to_8_bit(pixels, pixels)), strict=True)):
            truth = labels[index].numpy().astype(np.uint8)
            perturbation, factor = amplified(original, look.images[index])
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
    whole = f"{title}; attacked by BIM: epsilon {EPSILON:.4g}, n = {STEPS}, in 8 bits"
    return to_png(image_grid.draw_sheet(whole, _HEADINGS, rows, dataset.classes))


class Look(NamedTuple):
    """A model's own attacked images, and its predictions for the clean ones and for those."""

    images: U8  # (N, H, W, 3)
    clean: U8  # (N, H, W)
    attacked: U8  # (N, H, W)


def look_at(model: Model, clean: Tensor, adversarial: Tensor) -> Look:
    """Round the attacked images to 8 bits, as a server would receive them, and predict."""
    received = to_8_bit(adversarial, clean)
    predictions = (predict(model, batch).cpu().numpy().astype(np.uint8) for batch in (to_8_bit(clean, clean), received))
    return Look(to_pixels(received), *predictions)


def amplified(image: U8, attacked: U8) -> tuple[U8, int]:
    """Show a perturbation around grey, as strong as fits into 8 bits, and by what factor that is."""
    difference = attacked.astype(np.int16) - image
    factor = 127 // max(int(np.abs(difference).max()), 1)
    return (_GREY + factor * difference).astype(np.uint8), factor
