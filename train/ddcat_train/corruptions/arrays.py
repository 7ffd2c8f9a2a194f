"""Helpers that several corruptions share: blurs, bilinear samples, and the way from uint8 to [0, 1] and back."""

import io
import math
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = ["F64", "U8", "blur", "encoded", "enlarge", "move_blur", "recoded", "sample", "to_bytes", "to_unit"]

U8 = npt.NDArray[np.uint8]
F64 = npt.NDArray[np.float64]


def to_unit(image: U8) -> F64:
    """Return values in [0, 1]."""
    return image / 255.0


def to_bytes(image: F64) -> U8:
    """Clip values to [0, 1] and return grey levels, cut as in the published corruptions, not rounded."""
    return (np.clip(image, 0, 1) * 255).astype(np.uint8)


def recoded(image: U8, form: str, **options: Any) -> U8:
    """Compress by Pillow in a format, and decode."""
    return np.asarray(Image.open(io.BytesIO(encoded(image, form, **options))).convert("RGB"), dtype=np.uint8)


def encoded(image: U8, form: str, **options: Any) -> bytes:
    """Compress by Pillow in a format."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, form, **options)
    return file.getvalue()


def blur(image: F64, sigma: float | tuple[float, float], *, reach: float = 4.0, border: int = cv2.BORDER_REPLICATE) -> F64:
    """
    Blur by a Gaussian.

    Parameters
    ----------
    image : (H, W) or (H, W, C) float64
    sigma : float, or (vertical, horizontal)
        In pixels.
    reach : float
        The kernel ends at this many sigmas.
    border : int
        OpenCV's rule for what lies outside of the image.
    """
    down, across = sigma if isinstance(sigma, tuple) else (sigma, sigma)
    size = [2 * int(reach * deviation + 0.5) + 1 for deviation in (across, down)]
    return np.asarray(cv2.GaussianBlur(image, size, sigmaX=across, sigmaY=down, borderType=border), dtype=np.float64)


def sample(image: F64, rows: F64, columns: F64) -> F64:
    """
    Interpolate between the four nearest pixels; the image is mirrored at its borders.

    Parameters
    ----------
    image : (H, W, C) float64
    rows, columns : (h, w) float64
        Places in the image, in pixels from its first one.
    """
    top, left = np.floor(rows).astype(np.intp), np.floor(columns).astype(np.intp)
    down, across = (rows - top)[..., None], (columns - left)[..., None]
    y0, y1 = (_mirrored(top + step, image.shape[0]) for step in (0, 1))
    x0, x1 = (_mirrored(left + step, image.shape[1]) for step in (0, 1))
    above = image[y0, x0] * (1 - across) + image[y0, x1] * across
    below = image[y1, x0] * (1 - across) + image[y1, x1] * across
    return np.asarray(above * (1 - down) + below * down)  # (h, w, C)


def enlarge(image: F64, factor: float) -> F64:
    """
    Enlarge the middle of an image by bilinear interpolation, corners upon corners, to at least the image's size.

    Parameters
    ----------
    image : (H, W, C) float64
    factor : float
        At least 1.

    Returns
    -------
    (H, W, C) float64
    """
    for axis in (0, 1):
        whole = image.shape[axis]
        kept = math.ceil(whole / factor)
        first, size = (whole - kept) // 2, round(kept * factor)
        places = first + np.arange(whole) * ((kept - 1) / max(size - 1, 1))
        lower = np.floor(places).astype(np.intp)
        upper = np.minimum(lower + 1, first + kept - 1)
        share = (places - lower).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        image = np.take(image, lower, axis) * (1 - share) + np.take(image, upper, axis) * share
    return image


def move_blur(image: F64, radius: int, sigma: float, degrees: float) -> F64:
    """
    Blur as a camera that moves: a sum of shifted images whose weights fall as half a Gaussian.

    Parameters
    ----------
    image : (H, W) or (H, W, C) float64
    radius : int
        The longest shift is twice this many pixels.
    sigma : float
        Of the weights, in pixels.
    degrees : float
        Direction of the motion.
    """
    length, (height, width) = 2 * radius + 1, image.shape[:2]
    weights = np.exp(-(np.arange(length) ** 2) / (2 * sigma**2))
    kernel = np.zeros((2 * length + 1, 2 * length + 1))
    for step, weight in enumerate(weights / weights.sum()):
        down = math.ceil(step * math.sin(math.radians(degrees)) - 0.5)
        across = math.ceil(step * math.cos(math.radians(degrees)) - 0.5)
        if abs(down) >= height or abs(across) >= width:
            break
        kernel[length + down, length + across] += weight
    return np.asarray(cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REPLICATE), dtype=np.float64)


def _mirrored(places: npt.NDArray[np.intp], size: int) -> npt.NDArray[np.intp]:
    turned = places % (2 * size)
    return np.minimum(turned, 2 * size - 1 - turned)
