"""Golden images of a checkpoint: a few images of its data set, clean and under the paper's attack on the main branch."""

from typing import Any

import torch
from torch import Tensor

from ddcat.engines.base import Images
from ddcat.manifest import InputShapes
from ddcat_export.bundle_builder import GoldenImages
from ddcat_export.crop import center_crop
from ddcat_export.data import ExportData, spread
from ddcat_export.parity import sample_images
from ddcat_train.attacks import bim
from ddcat_train.networks import Segmenter
from ddcat_train.pixels import to_8_bit, to_pixels, to_planes

__all__ = ["golden_images"]

_COUNT = 4
_LARGEST = 256  # pixels a side, where the graph leaves the choice: the attack costs eight forward passes
_ATTACK: dict[str, Any] = {"epsilon": 0.03, "alpha": 0.01, "steps": 3, "start": "clean"}


def golden_images(segmenter: Segmenter, data: ExportData, shapes: InputShapes) -> GoldenImages:
    """
    Take images, and attack them with BIM on the PyTorch main branch, against its own labels.

    Parameters
    ----------
    segmenter : Segmenter
        On the CPU, in eval() mode.
    data : ExportData
        Where it is missing, the images are noise and waves.
    shapes : InputShapes
        Images that the engine takes.

    Raises
    ------
    DataError
    """
    sizes = _sizes(shapes)
    pictures, source = data.pictures(len(sizes)) or _generated(sizes, segmenter.bands)
    images = {}
    for index, (picture, size) in enumerate(zip(pictures, sizes, strict=True)):
        height, width = size or (min(side, _LARGEST) for side in picture.shape[:2])
        clean = center_crop(picture, (max(height, shapes.height.minimum), max(width, shapes.width.minimum)))
        images[f"clean.{index}"], images[f"adversarial.{index}"] = clean, _attacked(segmenter, clean)
    expected = {name: _labels(segmenter, to_planes(image[None]))[0].to(torch.uint8).numpy() for name, image in images.items()}
    return GoldenImages(images, expected, "fp32", source, {"name": "BIM", **_ATTACK, "against": "the network's own labels"})


def _sizes(shapes: InputShapes) -> list[tuple[int, int] | None]:
    """Return a size for each image; None: its own."""
    ladder = shapes.sizes
    if ladder is None:
        fixed = shapes.height.maximum is not None and shapes.width.maximum is not None
        return [(shapes.height.minimum, shapes.width.minimum)] * 2 if fixed else [None] * _COUNT
    return [ladder[spread(index, _COUNT, len(ladder))] for index in range(_COUNT)] if len(ladder) > _COUNT else [*ladder]


def _generated(sizes: list[tuple[int, int] | None], channels: int) -> tuple[list[Images], str]:
    pictures = [sample_images((1, *(size or (_LARGEST, _LARGEST))), index, channels)[0] for index, size in enumerate(sizes)]
    return pictures, "generated noise and waves, because the data set was missing"


def _attacked(segmenter: Segmenter, clean: Images) -> Images:
    images = to_planes(clean[None])
    adversarial = bim(lambda tried: _logits(segmenter, tried), images, _labels(segmenter, images), **_ATTACK)
    pixels: Images = to_pixels(to_8_bit(adversarial, images))[0]
    return pixels


def _labels(segmenter: Segmenter, images: Tensor) -> Tensor:
    with torch.no_grad():
        return _logits(segmenter, images).argmax(1)  # (N, H, W)


def _logits(segmenter: Segmenter, images: Tensor) -> Tensor:
    return segmenter.logits("main", segmenter.features(images))
