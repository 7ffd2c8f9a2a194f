"""Images of other bands than red, green and blue: which bands of a file are read, and how arrays of them are handled."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final, TypeGuard, cast

import numpy as np
import numpy.typing as npt
from pydantic import Field

__all__ = ["MOST_BANDS", "Bands", "band_count", "by_band", "chosen_bands", "displayed", "form_of", "is_image"]

MOST_BANDS: Final = 16

Band = Annotated[int, Field(ge=1, le=2**16)]  # of a file, counted from 1
Bands = Annotated[int, Field(ge=1, le=MOST_BANDS)] | Annotated[tuple[Band, ...], Field(min_length=1, max_length=MOST_BANDS)]

U8 = npt.NDArray[np.uint8]


def band_count(bands: int | Sequence[int] | None) -> int:
    """Return the number of bands that are read; None: 3, red, green and blue."""
    if bands is None:
        return 3
    return bands if isinstance(bands, int) else len(bands)


def chosen_bands(found: int, bands: int | Sequence[int]) -> tuple[int, ...]:
    """
    Return the bands that are read of a file, counted from 1.

    Parameters
    ----------
    found : int
        Bands of the file.
    bands : int or sequence of int
        The number of its bands, all of which are read; or the bands that are read, in their order.

    Raises
    ------
    ValueError
        Where the file has others.
    """
    has = f"it has {found} band{'s' * (found != 1)}"
    if isinstance(bands, int):
        if found != bands:
            raise ValueError(f"{has}, expected {bands}")
        return tuple(range(1, bands + 1))
    if max(bands) > found:
        raise ValueError(f"{has}, but data.bands names band {max(bands)}")
    return tuple(bands)


def by_band(change: Callable[[Any], Any], image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Change an image, (H, W, C), by a function for images of three channels, or of one, (H, W): libraries know no others."""
    if image.shape[2] == 3:
        return cast(npt.NDArray[Any], change(image))
    return np.stack([change(np.ascontiguousarray(image[..., band])) for band in range(image.shape[2])], axis=-1)


def displayed(pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return what is shown of images, (..., C): their first three bands as red, green and blue, or the first as grey."""
    if pixels.shape[-1] >= 3:
        return np.ascontiguousarray(pixels[..., :3])
    return np.repeat(pixels[..., :1], 3, axis=-1)


def form_of(channels: int) -> str:
    """Describe the channels of an image, for messages."""
    return "in RGB" if channels == 3 else f"of {channels} band{'s' * (channels != 1)}"


def is_image(value: Any, channels: int) -> TypeGuard[U8]:
    """Return whether a value is an image of some channels, (H, W, C) uint8."""
    return isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3 and value.shape[2] == channels
