"""
Corruptions of images: what weather, cameras and codecs do to them.

`COMMON` and `EXTRA` are the fifteen and four of Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations" (ICLR 2019), at the severities that were published; frost is drawn here, not photographed.
`CAPTURE` is what a change of camera, codec, decoder or resizing does.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ddcat_train.choices import CorruptionName
from ddcat_train.corruptions.arrays import U8
from ddcat_train.corruptions.blur import defocus_blur, gaussian_blur, glass_blur, motion_blur, zoom_blur
from ddcat_train.corruptions.capture import (
    bit_depth,
    chroma_subsampling,
    decoder,
    exposure,
    gamma,
    resize_kernel,
    webp_compression,
    white_balance,
)
from ddcat_train.corruptions.digital import brightness, contrast, elastic_transform, jpeg_compression, pixelate, saturate
from ddcat_train.corruptions.noise import gaussian_noise, impulse_noise, shot_noise, speckle_noise
from ddcat_train.corruptions.weather import fog, frost, snow, spatter
from ddcat_train.errors import CorruptionError

__all__ = ["CAPTURE", "COMMON", "CORRUPTIONS", "EXTRA", "SEVERITIES", "Corruption", "corrupt"]

SEVERITIES = (1, 2, 3, 4, 5)


class Corruption(NamedTuple):
    """
    One corruption.

    Attributes
    ----------
    apply : callable
        Of an image (H, W, 3) uint8, a generator, and a setting.
    settings : tuple of tuple
        Its further arguments at severities 1 to 5.
    """

    apply: Callable[..., U8]
    settings: tuple[tuple[Any, ...], ...]


COMMON: dict[CorruptionName, Corruption] = {
    "gaussian_noise": Corruption(gaussian_noise, ((0.08,), (0.12,), (0.18,), (0.26,), (0.38,))),
    "shot_noise": Corruption(shot_noise, ((60,), (25,), (12,), (5,), (3,))),
    "impulse_noise": Corruption(impulse_noise, ((0.03,), (0.06,), (0.09,), (0.17,), (0.27,))),
    "defocus_blur": Corruption(defocus_blur, ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))),
    "glass_blur": Corruption(glass_blur, ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2))),
    "motion_blur": Corruption(motion_blur, ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))),
    "zoom_blur": Corruption(zoom_blur, ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))),
    "snow": Corruption(
        snow,
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    ),
    "frost": Corruption(frost, ((1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))),
    "fog": Corruption(fog, ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))),
    "brightness": Corruption(brightness, ((0.1,), (0.2,), (0.3,), (0.4,), (0.5,))),
    "contrast": Corruption(contrast, ((0.4,), (0.3,), (0.2,), (0.1,), (0.05,))),
    "elastic_transform": Corruption(elastic_transform, ((12.5,), (16.25,), (21.25,), (25.0,), (30.0,))),
    "pixelate": Corruption(pixelate, ((0.6,), (0.5,), (0.4,), (0.3,), (0.25,))),
    "jpeg_compression": Corruption(jpeg_compression, ((25,), (18,), (15,), (10,), (7,))),
}
EXTRA: dict[CorruptionName, Corruption] = {
    "speckle_noise": Corruption(speckle_noise, ((0.15,), (0.2,), (0.35,), (0.45,), (0.6,))),
    "gaussian_blur": Corruption(gaussian_blur, ((1,), (2,), (3,), (4,), (6,))),
    "spatter": Corruption(
        spatter,
        (
            (0.65, 0.3, 4, 0.69, 0.6, False),
            (0.65, 0.3, 3, 0.68, 0.6, False),
            (0.65, 0.3, 2, 0.68, 0.5, False),
            (0.65, 0.3, 1, 0.65, 1.5, True),
            (0.67, 0.4, 1, 0.65, 1.5, True),
        ),
    ),
    "saturate": Corruption(saturate, ((0.3, 0.0), (0.1, 0.0), (2.0, 0.0), (5.0, 0.1), (20.0, 0.2))),
}
CAPTURE: dict[CorruptionName, Corruption] = {
    "jpeg": Corruption(jpeg_compression, ((95,), (85,), (75,), (60,), (50,))),
    "webp": Corruption(webp_compression, ((95,), (85,), (75,), (60,), (50,))),
    "chroma_subsampling": Corruption(
        chroma_subsampling, (("4:4:4", 95), ("4:2:2", 95), ("4:2:0", 95), ("4:2:0", 85), ("4:2:0", 75))
    ),
    "decoder": Corruption(
        decoder, (("opencv", 95), ("opencv", 85), ("opencv", 75), ("opencv-reduced", 85), ("pillow-draft", 85))
    ),
    "resize_kernel": Corruption(
        resize_kernel, (("opencv-linear",), ("pillow-bilinear",), ("pillow-lanczos",), ("pillow-box",), ("opencv-nearest",))
    ),
    "gamma_dark": Corruption(gamma, ((1.1,), (1.25,), (1.5,), (1.8,), (2.2,))),
    "gamma_bright": Corruption(gamma, ((0.9,), (0.8,), (0.7,), (0.55,), (0.45,))),
    "underexposed": Corruption(exposure, ((-0.5,), (-1.0,), (-1.5,), (-2.0,), (-3.0,))),
    "overexposed": Corruption(exposure, ((0.25,), (0.5,), (0.75,), (1.0,), (1.5,))),
    "white_balance_warm": Corruption(white_balance, ((1.05, 0.95), (1.1, 0.9), (1.15, 0.8), (1.2, 0.7), (1.3, 0.6))),
    "white_balance_cold": Corruption(white_balance, ((0.95, 1.05), (0.9, 1.1), (0.8, 1.15), (0.7, 1.2), (0.6, 1.3))),
    "bit_depth": Corruption(bit_depth, ((7,), (6,), (5,), (4,), (3,))),
}
CORRUPTIONS: dict[CorruptionName, Corruption] = {**COMMON, **EXTRA, **CAPTURE}


def corrupt(image: U8, name: str, *, severity: int, seed: int) -> U8:
    """
    Corrupt one image.

    Parameters
    ----------
    image : (H, W, 3) uint8
        RGB, at least 32 pixels a side.
    name : str
        A key of `CORRUPTIONS`.
    severity : int
        1 to 5.
    seed : int
        The same seed gives the same image.

    Returns
    -------
    (H, W, 3) uint8

    Raises
    ------
    CorruptionError
        Where the name or the severity is not known, or the image is of another form.
    """
    if name not in CORRUPTIONS:
        raise CorruptionError(f"there is no corruption {name!r}: use one of {', '.join(CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise CorruptionError(f"expected a severity of 1 to 5, got {severity}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or min(image.shape[:2]) < 32:
        raise CorruptionError(
            f"expected an image of (H, W, 3) uint8 with at least 32 pixels a side, got {image.shape} {image.dtype}"
        )
    found = CORRUPTIONS[name]
    return found.apply(image, np.random.default_rng(seed), *found.settings[severity - 1])
