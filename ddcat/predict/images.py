"""An image as the engine takes it, and the engine's labels as the mask of that image."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ddcat.image_files import ImageFileError
from ddcat.preprocess import FileRule, apply_rule, decoded, restore

__all__ = ["Picture", "check_frames", "read_picture"]

U8 = npt.NDArray[np.uint8]


class Picture(NamedTuple):
    """
    An image.

    Attributes
    ----------
    original : (H, W, C) uint8
        RGB or bands, turned as the bundle's rule says.
    pixels : (h, w, C) uint8
        As the engine takes it.
    """

    original: U8
    pixels: U8

    def mask(self, labels: U8) -> U8:
        """Give the engine's labels, (h, w), the size of the image."""
        return restore(labels, (self.original.shape[0], self.original.shape[1]))


def check_frames(rule: FileRule) -> None:
    """Refuse (ImageFileError) frames, RGB of 8 bits a channel, where the rule is for others."""
    if rule.channels != 3:
        raise ImageFileError(f"it is a frame in RGB, and its bundle expects {rule.channels} bands: use files of images")
    if rule.values is not None:
        raise ImageFileError("it has 8 bits a channel, but the bundle expects 16: use PNG files of 16 bits")


def read_picture(image: bytes | U8, rule: FileRule) -> Picture:
    """
    Make a picture of a file, or of a frame, (H, W, 3) uint8 in RGB.

    Raises
    ------
    ImageFileError
        As `ddcat.preprocess.preprocess`, which makes the same pixels, but keeps no others.
    """
    if isinstance(image, bytes):
        image = decoded(image, rule)
    else:
        check_frames(rule)
    return Picture(image, apply_rule(image, rule))
