"""Encoding of labels: palette or grey PNG, COCO run lengths, overlay; and of the confidence as a grey PNG."""

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pycocotools import mask as coco  # type: ignore[import-untyped]

from ddcat.classes import IGNORE_INDEX, Classes, colour_table, colourise

__all__ = ["encode_confidence", "encode_image", "encode_labels", "encode_mask", "encode_overlay", "encode_rle"]

_COMPRESS_LEVEL = 1  # of PNG: level 6 takes five times as long

U8 = npt.NDArray[np.uint8]


def encode_mask(labels: U8, classes: Classes) -> bytes:
    """
    Encode labels, (H, W) uint8, as a palette PNG of 8 bits per pixel, whose indices are the labels: 0..K-1, or 255 where the
    engine abstains. The colours of the classes become the palette.
    """
    height, width = labels.shape
    mask = Image.frombytes("P", (width, height), labels.tobytes())
    mask.putpalette(colour_table(classes).tobytes())  # with fewer colours Pillow packs several pixels into a byte
    return _png(mask)


def encode_labels(labels: U8) -> bytes:
    """Encode labels, (H, W) uint8, as a grey PNG whose values are the labels: OpenCV reads a palette as its colours."""
    return _png(Image.fromarray(labels))


def encode_overlay(labels: U8, image: U8, classes: Classes) -> bytes:
    """Blend the classes' colours over an image, (H, W, 3) uint8, half transparent, as an RGB PNG; labels are (H, W) uint8."""
    mixed = (image.astype(np.uint16) + colourise(labels, classes)) // 2  # floats would take 51 bytes per pixel
    return _png(Image.fromarray(mixed.astype(np.uint8)))


def encode_image(image: U8) -> bytes:
    """Encode an image, (H, W, 3) uint8, as an RGB PNG."""
    return _png(Image.fromarray(image))


def encode_confidence(confidence: npt.NDArray[np.float32]) -> bytes:
    """Encode the labels' probabilities, (H, W) float32 in [0, 1], as a grey PNG: 255 is certain."""
    return _png(Image.fromarray((255 * confidence).round().astype(np.uint8)))


def encode_rle(labels: U8, classes: Classes) -> dict[str, Any]:
    """
    Encode labels as compressed COCO run lengths, a binary mask for each class present; where the engine abstains there is none.

    Return `size` and `classes`: for each `id`, `name`, `area` in pixels, and `rle` as pycocotools decodes it.
    """
    masks = []
    for label in np.unique(labels).tolist():
        if label == IGNORE_INDEX:
            continue
        rle = coco.encode(np.asfortranarray(labels == label, np.uint8))
        masks.append(
            {
                "id": label,
                "name": classes.names[label],
                "area": int((labels == label).sum()),
                "rle": {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")},
            }
        )
    return {"size": list(labels.shape), "classes": masks}


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=_COMPRESS_LEVEL)
    return file.getvalue()
