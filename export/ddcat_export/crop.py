"""Cutting images to a size."""

import numpy as np
import numpy.typing as npt

__all__ = ["center_crop"]


def center_crop(image: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """
    Cut the middle out of an image, mirrored at its borders where it is too small; no value is new.

    Parameters
    ----------
    image : (H, W, ...) uint8
    size : (height, width)

    Returns
    -------
    (height, width, ...) uint8
    """
    for axis, wanted in enumerate(size):
        there = image.shape[axis]
        # 0 1 2 ... there-1 there-1 ... 2 1 0 0 1 2 ...: as a mirror shows it
        places = np.arange(wanted) + (there - wanted) // 2
        turned = places % (2 * there)
        image = image.take(np.where(turned < there, turned, 2 * there - 1 - turned), axis)
    return np.ascontiguousarray(image)
