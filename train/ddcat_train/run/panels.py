"""Panels: predictions for some images, clean and attacked, at one step of the training."""

import numpy as np
import torch
from torch import Tensor

from ddcat.classes import Classes, colourise
from ddcat.metrics import confusion_counts, pixel_accuracy
from ddcat_train.attacks import bim, eval_mode
from ddcat_train.config import AttackConfig
from ddcat_train.data import Dataset
from ddcat_train.data.dataset import U8
from ddcat_train.data.loader import evaluation_batches
from ddcat_train.losses import valid_pixels
from ddcat_train.methods import MicroBatch
from ddcat_train.methods.ddcat import divide_pixels
from ddcat_train.networks import Segmenter
from ddcat_train.pixels import nearest_8_bit, to_pixels
from ddcat_train.run.image_grid import Picture, draw_sheet

__all__ = ["draw_panels"]

_IMAGES = 4
_HEADINGS = ("input", "attacked", "prediction for input", "prediction for attacked", "truth")
_DIVISION_HEADINGS = ("M: changed by attack", "p for input", "p for attacked")


def draw_panels(
    network: Segmenter,
    dataset: Dataset,
    *,
    attack: AttackConfig,
    device: torch.device,
    dtype: torch.dtype,
    batch_size: int,
    title: str,
) -> U8:
    """
    Attack some whole images, the same ones every time, and draw a row for each.

    A row is the image, the attacked image, the predictions of the main branch for both, and the truth. A network with a mask
    branch adds M, the pixels whose combined prediction the attack changes (Alg. 2), and p, those that the mask branch gives to
    the auxiliary branch, for both images.

    Nothing is changed: the network is in eval() mode, no parameter gets a gradient, and no random number is drawn.

    Parameters
    ----------
    attack : AttackConfig
        BIM; it always starts at x, as in the evaluation.
    dtype : torch.dtype
        Of the images that the network takes.
    batch_size : int
        The largest number of images at once.

    Returns
    -------
    (H, W, 3) uint8

    Raises
    ------
    DataError
        Where a pair cannot be read.
    """
    attack = attack.model_copy(update={"start": "clean"})
    rows: list[list[Picture]] = []
    for names, images, labels in evaluation_batches(dataset, batch_size=batch_size, limit=_IMAGES):
        columns = _columns(network, images.to(device, dtype), labels.to(device), attack, dataset.classes)
        named = [columns[0][index]._replace(caption=name) for index, name in enumerate(names)]
        rows += [list(row) for row in zip(named, *columns[1:], strict=True)]
    headings = (*_HEADINGS, *_DIVISION_HEADINGS)[: len(rows[0])]
    how = f"attacked by BIM: epsilon {attack.epsilon:.4g}, n = {attack.steps}"
    return draw_sheet(f"{title}; {how}", headings, rows, dataset.classes)


def _columns(network: Segmenter, images: Tensor, labels: Tensor, attack: AttackConfig, classes: Classes) -> list[list[Picture]]:
    divided: list[list[Picture]] = []
    if "mask" in network.heads:
        everything = MicroBatch(  # marked, and attacked to the last image
            images, labels, torch.zeros(len(images), dtype=torch.int64), 0, valid_pixels(labels).clamp(min=1), labels.numel()
        )
        division = divide_pixels(network, everything, attack=attack, mark_adversarial=True, predict_mask=True)
        attacked = division.images
        chosen = _chosen(network, images), _chosen(network, attacked)
        divided = [_mask_panels(masks) for masks in (division.masks, *chosen)]
    else:
        attacked = bim(network, images, labels, **attack.model_dump())
    return [
        _photographs(images),
        _photographs(attacked),
        _predictions(network, images, labels, classes),
        _predictions(network, attacked, labels, classes),
        [Picture(colourise(one, classes), "") for one in labels.cpu().numpy()],
        *divided,
    ]


def _photographs(images: Tensor) -> list[Picture]:
    return [Picture(one, "", smooth=True) for one in to_pixels(nearest_8_bit(images))]


def _predictions(network: Segmenter, images: Tensor, labels: Tensor, classes: Classes) -> list[Picture]:
    with torch.no_grad(), eval_mode(network):
        predictions = network(images).argmax(1).cpu().numpy()
    pairs = zip(labels.cpu().numpy(), predictions, strict=True)
    shares = [pixel_accuracy(confusion_counts(truth, labelled, len(classes))) for truth, labelled in pairs]
    captions = ["no pixel is labelled" if np.isnan(share) else f"{share:.1%} right" for share in shares]
    return [Picture(colourise(one, classes), caption) for one, caption in zip(predictions, captions, strict=True)]


def _chosen(network: Segmenter, images: Tensor) -> Tensor:
    with torch.no_grad(), eval_mode(network):
        chosen: Tensor = network(images, ("mask",))["mask"].argmax(1)
    return chosen


def _mask_panels(masks: Tensor) -> list[Picture]:
    """Draw masks: white where a mask is 1, black elsewhere."""
    pixels = (masks.to(torch.uint8) * 255)[..., None].expand(-1, -1, -1, 3).cpu().numpy()
    return [
        Picture(one, f"{share:.1%} of the pixels")
        for one, share in zip(pixels, masks.float().mean((1, 2)).tolist(), strict=True)
    ]
