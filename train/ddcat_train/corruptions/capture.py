"""
What another camera, codec or reader does to the same scene; nothing here is random.

Each function takes an image as (H, W, 3) uint8, RGB, and gives one of the same shape.
"""

import io
from collections.abc import Callable
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from ddcat_train.corruptions.arrays import U8, encoded, recoded, to_bytes, to_unit

__all__ = [
    "bit_depth",
    "chroma_subsampling",
    "decoder",
    "exposure",
    "gamma",
    "resize_kernel",
    "webp_compression",
    "white_balance",
]

Decoder = Literal["opencv", "opencv-reduced", "pillow-draft"]
_ENLARGED = 1.5


def webp_compression(image: U8, _: np.random.Generator, quality: int) -> U8:
    """Compress as WebP of this quality, 1 to 100, and decode."""
    return recoded(image, "WEBP", quality=quality)


def chroma_subsampling(image: U8, _: np.random.Generator, rule: str, quality: int) -> U8:
    """Compress as JPEG with colour at fewer pixels than light: by "4:4:4", "4:2:2" or "4:2:0"."""
    return recoded(image, "JPEG", quality=quality, subsampling=rule)


def gamma(image: U8, _: np.random.Generator, exponent: float) -> U8:
    """Raise values in [0, 1] to an exponent: above 1 is darker."""
    return _by_table(image, lambda unit: unit**exponent)


def exposure(image: U8, _: np.random.Generator, stops: float) -> U8:
    """Expose by so many stops more, below 0 less: light is twice as much with each. sRGB's own curve leads there and back."""
    return _by_table(image, lambda unit: _to_srgb(np.minimum(_to_light(unit) * 2.0**stops, 1)))


def white_balance(image: U8, _: np.random.Generator, red: float, blue: float) -> U8:
    """Multiply red and blue: the camera took another light for white."""
    return to_bytes(to_unit(image) * (red, 1.0, blue))


def bit_depth(image: U8, _: np.random.Generator, bits: int) -> U8:
    """Keep so many bits of each value, spread over 0 to 255 again."""
    most = 2**bits - 1
    return _by_table(image, lambda unit: np.round(unit * most) / most)


def resize_kernel(image: U8, _: np.random.Generator, kernel: str) -> U8:
    """
    Reduce a picture that is 1.5 times as large, by another kernel than training's.

    The larger picture is the image, enlarged by cubic interpolation. "pillow-..." looks at all pixels under its kernel,
    "opencv-..." at the nearest ones alone.
    """
    height, width = image.shape[:2]
    larger = cv2.resize(image, (round(width * _ENLARGED), round(height * _ENLARGED)), interpolation=cv2.INTER_CUBIC)
    library, name = kernel.split("-")
    if library == "pillow":
        return np.asarray(Image.fromarray(larger).resize((width, height), Image.Resampling[name.upper()]), dtype=np.uint8)
    return np.asarray(cv2.resize(larger, (width, height), interpolation=getattr(cv2, f"INTER_{name.upper()}")), dtype=np.uint8)


def decoder(image: U8, _: np.random.Generator, name: Decoder, quality: int) -> U8:
    """
    Read a JPEG file of this quality with a decoder that is not Pillow's usual one.

    "opencv" decodes at full size, "opencv-reduced" and "pillow-draft" at half the size, as previews do, and enlarge.
    """
    content = encoded(image, "JPEG", quality=quality, subsampling="4:2:0")
    height, width = image.shape[:2]
    if name == "pillow-draft":
        opened = Image.open(io.BytesIO(content))
        opened.draft("RGB", (width // 2, height // 2))
        decoded = np.asarray(opened, dtype=np.uint8)
    else:
        mode = cv2.IMREAD_COLOR if name == "opencv" else cv2.IMREAD_REDUCED_COLOR_2
        decoded = np.asarray(cv2.imdecode(np.frombuffer(content, np.uint8), mode), dtype=np.uint8)[..., ::-1]
    if decoded.shape != image.shape:
        decoded = np.asarray(cv2.resize(decoded, (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)
    return np.ascontiguousarray(decoded)


def _by_table(image: U8, change: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]) -> U8:
    return np.round(change(np.arange(256) / 255.0) * 255).astype(np.uint8)[image]


def _to_light(value: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def _to_srgb(light: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
