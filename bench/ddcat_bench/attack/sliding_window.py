"""The released protocol of evaluation: sliding windows, each of them attacked separately."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ddcat.classes import IGNORE_INDEX
from ddcat.metrics import Counts
from ddcat_bench.attack.attacks import AttackBatch, attack
from ddcat_bench.attack.scoring import count_each
from ddcat_bench.attack.suites import AttackSpec
from ddcat_train import imagenet
from ddcat_train.attacks import Model
from ddcat_train.networks.layers import upsample
from ddcat_train.pixels import to_8_bit
from ddcat_train.seeds import derive_seed

__all__ = ["Window", "score_windows", "sized", "windows"]

Crop = tuple[int, int]  # height, width


class Window(NamedTuple):
    """A part of an image: rows and columns."""

    rows: slice
    columns: slice


def windows(height: int, width: int, crop: Crop) -> list[Window]:
    """Lay windows over an image that is at least as large: two thirds of a window apart, the last one shifted inside."""
    return [Window(rows, columns) for rows in _along(height, crop[0]) for columns in _along(width, crop[1])]


def score_windows(
    source: Model,
    target: Model,
    spec: AttackSpec,
    victims: AttackBatch,
    classes: int,
    *,
    crop: Crop,
    base: int | None = None,
    at_base: bool = False,
) -> Counts:
    """
    Attack each window of the images by itself, average the softmax where windows overlap, and count what is left.

    As released: images are resized in floats, softmax values are resized back, and labels are counted as they are in their
    files. Clean images are averaged with their mirror image, attacked ones are not. An image that is smaller than a window is
    set into one: its surroundings have the mean colour and no label.

    Parameters
    ----------
    source, target, spec, victims, classes
        As for `ddcat_bench.attack.scoring.score_whole_images`; the images are of their own size.
    crop : (int, int)
        Height and width of a window.
    base : int, optional
        The longer side that windows are laid over; None: images are as they are.
    at_base : bool
        Count at that size, as the released code does for Cityscapes.

    Returns
    -------
    (2, C, N, K, 3) int64
        For each of the plan's cases: on the windows as they are, and each rounded to 8 bits.
    """
    own = (victims.labels.shape[-2], victims.labels.shape[-1])
    size = sized(own, base)
    # linear and nearest as OpenCV does, without smoothing where it shrinks
    resized = victims if size == own else victims._replace(
        images=upsample(victims.images, size, align_corners=False), labels=_nearest(victims.labels, size)
    )  # fmt: skip
    whole, inside = _set_into(resized, crop)
    rows, columns = whole.labels.shape[-2:]
    sums = torch.zeros((2, len(spec.cases), len(whole.images), classes, rows, columns), device=whole.images.device)
    visits = torch.zeros((rows, columns), device=whole.images.device)
    for index, window in enumerate(windows(rows, columns, crop)):
        part = AttackBatch(
            whole.images[:, :, window.rows, window.columns].contiguous(memory_format=torch.channels_last),
            whole.labels[:, window.rows, window.columns],
            torch.tensor([derive_seed(seed, index) for seed in whole.seeds.tolist()]),
            whole.class_pixels,
        )
        visits[window.rows, window.columns] += 1
        for place, (case, adversarial) in enumerate(zip(spec.cases, attack(source, spec, part), strict=True)):
            for kind, probabilities in enumerate(
                _probabilities(target, adversarial.images, part.images, clean=case.name == "clean")
            ):
                sums[kind, place, :, :, window.rows, window.columns] += probabilities
    averages = (sums / visits)[..., inside.rows, inside.columns].flatten(0, 2)  # (2 * C * N, K, H, W)
    averages = averages if at_base or size == own else upsample(averages, own, align_corners=False)
    labels = resized.labels if at_base else victims.labels
    predictions = averages.argmax(1).view(2, len(spec.cases), *labels.shape)  # (2, C, N, H, W)
    return np.stack([np.stack([np.stack(count_each(labels, case, classes)) for case in kind]) for kind in predictions])


def sized(own: tuple[int, int], base: int | None) -> tuple[int, int]:
    """Height and width of an image whose longer side is resized to `base`."""
    if base is None:
        return own
    height, width = own
    return (base, round(base / height * width)) if height > width else (round(base / width * height), base)


def _nearest(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize labels, (N, H, W), by OpenCV's rule for the nearest."""
    rows, columns = (
        (torch.arange(new, dtype=torch.float64) * (1 / (new / old))).floor().long().clamp(max=old - 1).to(labels.device)
        for new, old in zip(size, labels.shape[-2:], strict=True)
    )
    return labels[:, rows][:, :, columns]


def _probabilities(model: Model, attacked: Tensor, clean_images: Tensor, *, clean: bool) -> Iterator[Tensor]:
    """Softmax of a window's images as they are, and of the 8-bit ones."""
    rounded = to_8_bit(attacked, clean_images).float() / 255
    with torch.no_grad():
        first = _softmax(model, attacked, mirrored=clean)
        yield first
        yield first if torch.equal(rounded, attacked) else _softmax(model, rounded, mirrored=clean)


def _softmax(model: Model, images: Tensor, *, mirrored: bool) -> Tensor:
    straight = F.softmax(model(images), 1)
    return (straight + F.softmax(model(images.flip(-1)), 1).flip(-1)) / 2 if mirrored else straight


def _along(length: int, side: int) -> list[slice]:
    stride = -(-2 * side // 3)
    count = -(-(length - side) // stride) + 1
    ends = [min(index * stride + side, length) for index in range(count)]
    return [slice(end - side, end) for end in ends]


def _set_into(victims: AttackBatch, crop: Crop) -> tuple[AttackBatch, Window]:
    """Make images at least as large as a window, and say where they are."""
    height, width = victims.labels.shape[-2:]
    above, left = max(crop[0] - height, 0) // 2, max(crop[1] - width, 0) // 2
    size = max(crop[0], height), max(crop[1], width)
    inside = Window(slice(above, above + height), slice(left, left + width))
    if size == (height, width):
        return victims, inside
    channels = victims.images.shape[1]
    mean = torch.tensor(imagenet.MEAN if channels == 3 else (0.5,) * channels, device=victims.images.device)
    images = mean[None, :, None, None].repeat(len(victims.images), 1, *size)
    labels = torch.full((len(victims.labels), *size), IGNORE_INDEX, device=victims.labels.device)
    images[:, :, inside.rows, inside.columns] = victims.images
    labels[:, inside.rows, inside.columns] = victims.labels
    return victims._replace(images=images, labels=labels), inside
