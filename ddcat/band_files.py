"""Bands of an image file: TIFF files of any number of bands, by rasterio, and the channels of PNG, JPEG and WebP files."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ddcat.bands import chosen_bands
from ddcat.geotiff import SceneError, is_tiff, opened_scene
from ddcat.image_files import ImageFileError, is_jpeg, is_png, is_webp, jpeg_frame, palette_size, strip_metadata
from ddcat.image_pixels import check_depth, table_of_16_bits

__all__ = ["decode_bands"]

U8 = npt.NDArray[np.uint8]


def decode_bands(content: bytes, bands: int | Sequence[int], values: tuple[int, int] | None) -> U8:
    """
    Decode bands of a file as it is stored: neither turned nor resized.

    Parameters
    ----------
    content : bytes
        A whole TIFF, PNG, JPEG or WebP file. The channels of the last three are bands: red, green, blue and, where there is
        one, alpha; or grey.
    bands, values
        See `ddcat.preprocess.FileRule`.

    Returns
    -------
    (H, W, C) uint8

    Raises
    ------
    ImageFileError
        For another format, a damaged file, another depth, or other bands.
    DdcatError
        For a TIFF, where rasterio is missing.
    """
    if is_tiff(content):
        try:
            with opened_scene(content, values, bands) as scene:
                return scene.read(0, 0, scene.height, scene.width)
        except SceneError as cause:
            raise ImageFileError(str(cause)) from cause
    if not (is_png(content) or is_jpeg(content) or is_webp(content)):
        raise ImageFileError("it is not an image: use TIFF, PNG, JPEG or WebP")
    stripped = strip_metadata(content)
    check_depth(stripped, values)
    if palette_size(stripped):
        raise ImageFileError("it has a palette, and bands are to be read: write its channels")
    if is_jpeg(stripped) and jpeg_frame(stripped)[2] == 4:
        raise ImageFileError("it is a CMYK JPEG, whose bands would be guessed: use another format")
    found = _channels(stripped)
    try:
        chosen = chosen_bands(found.shape[2], bands)
    except ValueError as cause:
        raise ImageFileError(str(cause)) from cause
    pixels = found[..., [band - 1 for band in chosen]]
    return np.ascontiguousarray(pixels if values is None else table_of_16_bits(values)[pixels])


def _channels(stripped: bytes) -> npt.NDArray[Any]:
    """Decode the channels of a file, (H, W, C), in the order red, green, blue, alpha."""
    import cv2  # noqa: PLC0415 -- Pillow reads but 8 bits of colours

    try:
        found = cv2.imdecode(np.frombuffer(stripped, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        found = None
    if found is None:
        raise ImageFileError("it cannot be decoded: it is damaged, or too large")
    if found.ndim == 2:
        return found[..., None]
    return found[..., [2, 1, 0, *range(3, found.shape[2])]]
