"""
Augmentation of training images.

An augmentation takes a sample and a generator, and gives the image as (h, w, C) float32 in [0, 1] and the labels as (h, w)
uint8. Every pixel that it makes up is the mean, of ImageNet by default, and has the label 255. Images are interpolated, labels
never. The network normalises, so nothing here does.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from ddcat.bands import by_band
from ddcat.classes import IGNORE_INDEX
from ddcat_train import imagenet
from ddcat_train.choices import CorruptionName
from ddcat_train.corruptions import corrupt
from ddcat_train.data.dataset import U8, Sample

__all__ = ["AUGMENTATIONS", "Augment", "corrupted", "paper", "plain"]

F32 = npt.NDArray[np.float32]
Augment = Callable[[Sample, np.random.Generator], tuple[F32, U8]]

cv2.setNumThreads(0)  # its threads would fight with those of torch, and do not survive the fork of a worker

_DEGREES = 10.0
_BLUR = (5, 5)
_SEVEREST = 3  # severity in training


def paper(*, crop: tuple[int, int], scale: tuple[float, float], mean: Sequence[float] = imagenet.MEAN) -> Augment:
    """
    Return the augmentation of the paper's released training.

    In order: random scale; with probability 1/2 each, rotation by an angle in [-10, 10] degrees, 5x5 Gaussian blur and
    horizontal flip; random crop.

    Parameters
    ----------
    crop : (height, width)
        Images that are smaller are padded, as much on either side.
    scale : (lowest, highest)
        One factor, uniform between them, for both axes.
    mean : sequence of float
        Of each channel: the value of pixels that are made up.
    """
    _check(crop, scale)
    return partial(_augmented, released=True, crop=crop, scale=scale, mean=tuple(mean))


def plain(*, crop: tuple[int, int], scale: tuple[float, float], mean: Sequence[float] = imagenet.MEAN) -> Augment:
    """Return the augmentation by random scale, horizontal flip and random crop alone; the parameters are those of `paper`."""
    _check(crop, scale)
    return partial(_augmented, released=False, crop=crop, scale=scale, mean=tuple(mean))


AUGMENTATIONS = {"paper": paper, "plain": plain}


def corrupted(augment: Augment, names: Sequence[CorruptionName], *, share: float) -> Augment:
    """
    Return an augmentation followed by a corruption of its crop: one of some, at a severity of 1 to 3.

    Parameters
    ----------
    augment : callable
        Its crops have 32 pixels a side or more.
    names : sequence of str
        Keys of `ddcat_train.corruptions.CORRUPTIONS`; without any, `augment` itself is returned.
    share : float
        Share of the crops that are corrupted.
    """
    return partial(_corrupted, augment=augment, names=tuple(names), share=share) if names else augment


# A plain function bound to its parameters, and no closure, for a worker that is not forked must unpickle it.
def _augmented(
    sample: Sample,
    generator: np.random.Generator,
    *,
    released: bool,
    crop: tuple[int, int],
    scale: tuple[float, float],
    mean: tuple[float, ...],
) -> tuple[F32, U8]:
    image, labels = _scaled(_to_float(sample.image), sample.labels, generator.uniform(*scale), by_factor=released)
    if released and generator.random() < 0.5:
        image, labels = _rotated(image, labels, generator.uniform(-_DEGREES, _DEGREES), mean)
    if released and generator.random() < 0.5:
        image = by_band(lambda part: np.asarray(cv2.GaussianBlur(part, _BLUR, 0), dtype=np.float32), image)
    if generator.random() < 0.5:
        image, labels = image[:, ::-1], labels[:, ::-1]
    return _cropped(image, labels, crop, generator, mean)


def _corrupted(
    sample: Sample,
    generator: np.random.Generator,
    *,
    augment: Augment,
    names: tuple[CorruptionName, ...],
    share: float,
) -> tuple[F32, U8]:
    image, labels = augment(sample, generator)
    if generator.random() < share:
        name, severity = names[generator.integers(len(names))], int(generator.integers(1, _SEVEREST + 1))
        levels = np.round(image * np.float32(255)).astype(np.uint8)
        image = _to_float(corrupt(levels, name, severity=severity, seed=int(generator.integers(2**32))))
    return image, labels


def _check(crop: tuple[int, int], scale: tuple[float, float]) -> None:
    if min(crop) < 1:
        raise ValueError(f"a crop of {crop} has no pixel")
    if not 0 < scale[0] <= scale[1]:
        raise ValueError(f"scale {scale} must be (lowest, highest), both above 0")


def _to_float(image: U8) -> F32:
    return image.astype(np.float32) / np.float32(255)


def _scaled(image: F32, labels: U8, factor: float, *, by_factor: bool) -> tuple[F32, U8]:
    """Scale by the ratio of whole sizes or, as released, by the factor itself: that differs by < 0.5 pixel at the far edge."""
    height, width = labels.shape
    size = max(1, round(width * factor)), max(1, round(height * factor))
    how: dict[str, Any] = {"dsize": size}
    if by_factor and min(round(side * factor) for side in labels.shape) >= 1:  # else OpenCV makes no image of it
        how = {"dsize": None, "fx": factor, "fy": factor}
    elif size == (width, height):
        return image, labels
    resized = by_band(lambda part: cv2.resize(part, interpolation=cv2.INTER_LINEAR, **how), image)
    nearest = cv2.resize(labels, interpolation=cv2.INTER_NEAREST, **how)
    return np.asarray(resized, dtype=np.float32), np.asarray(nearest, dtype=np.uint8)


def _rotated(image: F32, labels: U8, degrees: float, mean: tuple[float, ...]) -> tuple[F32, U8]:
    height, width = labels.shape
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1)
    fills: Iterator[Any] = iter([mean] if image.shape[2] == 3 else mean)  # of each part, in turn

    def turn(part: F32) -> F32:
        return np.asarray(
            cv2.warpAffine(
                part, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=next(fills)
            ),
            dtype=np.float32,
        )

    nearest = cv2.warpAffine(
        labels, matrix, (width, height), flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=IGNORE_INDEX
    )
    return by_band(turn, image), np.asarray(nearest, dtype=np.uint8)


def _cropped(
    image: F32, labels: U8, crop: tuple[int, int], generator: np.random.Generator, mean: tuple[float, ...]
) -> tuple[F32, U8]:
    height, width = labels.shape
    if height < crop[0] or width < crop[1]:
        size = max(height, crop[0]), max(width, crop[1])
        top, left = (size[0] - height) // 2, (size[1] - width) // 2
        inner = slice(top, top + height), slice(left, left + width)
        padded = np.empty((*size, image.shape[2]), np.float32)
        padded[:] = mean
        padded[inner] = image
        image = padded
        padded_labels = np.full(size, IGNORE_INDEX, np.uint8)
        padded_labels[inner] = labels
        labels = padded_labels
    top = int(generator.integers(labels.shape[0] - crop[0] + 1))
    left = int(generator.integers(labels.shape[1] - crop[1] + 1))
    window = slice(top, top + crop[0]), slice(left, left + crop[1])
    return np.ascontiguousarray(image[window]), np.ascontiguousarray(labels[window])
