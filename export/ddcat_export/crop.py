"""Crop images to a size."""

import numpy as np
import numpy.typing as npt

__all__ = ["center_crop"]


def center_crop(image: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """
    Crop the middle of an image; one that is too small is mirrored at its borders.

    Parameters
    ----------
    image : (H, W, ...) uint8
    size : (height, width)

    Returns
    -------
    (height, width, ...) uint8
    """
    for axis, side in enumerate(size):
        present = image.shape[axis]
        # 0 1 2 ... present-1 present-1 ... 2 1 0 0 1 2 ...: as a mirror shows it
        places = np.arange(side) + (present - side) // 2
        turned = places % (2 * present)
        image = image.take(np.where(turned < present, turned, 2 * present - 1 - turned), axis)
    return np.ascontiguousarray(image)
