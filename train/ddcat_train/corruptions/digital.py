"""Changes of light and colour, and what compression and a stretched picture do."""

import cv2
import numpy as np
from PIL import Image

from ddcat_train.corruptions.arrays import F64, U8, blur, recoded, sample, to_bytes, to_unit

__all__ = ["brightness", "contrast", "elastic_transform", "jpeg_compression", "pixelate", "saturate"]


def brightness(image: U8, _: np.random.Generator, more: float) -> U8:
    """Add to the value of hue, saturation and value, in [0, 1] units."""
    unit = to_unit(image)
    value = unit.max(axis=2, keepdims=True)
    lit = np.minimum(value + more, 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return to_bytes(np.where(value > 0, unit / value * lit, lit))  # black has no hue


def contrast(image: U8, _: np.random.Generator, share: float) -> U8:
    """Bring each channel nearer to its mean: `share` of the distance stays."""
    unit = to_unit(image)
    mean = unit.mean(axis=(0, 1), keepdims=True)
    return to_bytes((unit - mean) * share + mean)


def saturate(image: U8, _: np.random.Generator, factor: float, more: float) -> U8:
    """Multiply the saturation of hue, saturation and value, and add to it."""
    unit = to_unit(image)
    value = unit.max(axis=2, keepdims=True)
    below = value - unit  # of each channel, below the largest
    span = below.max(axis=2, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        saturation = np.where(value > 0, span / value, 0)
        share = np.where(span > 0, below / span, (0.0, 1.0, 1.0))  # grey has the hue of red
    return to_bytes(value * (1 - share * np.clip(saturation * factor + more, 0, 1)))


def elastic_transform(image: U8, generator: np.random.Generator, strength: float) -> U8:
    """
    Stretch the image here and there, by a smooth random field.

    The labels stay as they are: a pixel moves by a few pixels at most.
    """
    height, width = image.shape[:2]
    down, across = (_smooth(generator, height, width) * strength for _ in range(2))
    rows, columns = np.mgrid[:height, :width]
    return to_bytes(sample(to_unit(image), rows + down, columns + across))


def pixelate(image: U8, _: np.random.Generator, share: float) -> U8:
    """Reduce to `share` of the sides by means of boxes, and enlarge by repeating pixels."""
    height, width = image.shape[:2]
    small = Image.fromarray(image).resize((max(int(width * share), 1), max(int(height * share), 1)), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.NEAREST), dtype=np.uint8)


def jpeg_compression(image: U8, _: np.random.Generator, quality: int) -> U8:
    """Compress as JPEG of this quality, 1 to 95, and decode, both by Pillow."""
    return recoded(image, "JPEG", quality=quality)


def _smooth(generator: np.random.Generator, height: int, width: int) -> F64:
    most = height * 0.005
    field = generator.uniform(-most, most, size=(height, width))
    return blur(field, (height * 0.01, width * 0.01), reach=3, border=cv2.BORDER_REFLECT)
