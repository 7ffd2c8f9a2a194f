"""An image as the engine takes it, and the engine's labels as the mask of that image."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ddcat.image_files import ImageFileError, orientation_of
from ddcat.image_pixels import decode_image
from ddcat.preprocess import FileRule, apply_rule, restore, turned

__all__ = ["Picture", "check_frames", "read_picture"]

U8 = npt.NDArray[np.uint8]


class Picture(NamedTuple):
    """
    An image.

    Attributes
    ----------
    original : (H, W, 3) uint8
        RGB, turned as the bundle's rule says.
    pixels : (h, w, 3) uint8
        As the engine takes it.
    """

    original: U8
    pixels: U8

    def mask(self, labels: U8) -> U8:
        """Give the engine's labels, (h, w), the size of the image."""
        return restore(labels, (self.original.shape[0], self.original.shape[1]))


def check_frames(rule: FileRule) -> None:
    """Refuse (ImageFileError) what has 8 bits a channel and is no file of an image, where the rule is for 16."""
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
        image = turned(decode_image(image, rule.values), orientation_of(image) if rule.orientation == "exif" else 1)
    else:
        check_frames(rule)
    return Picture(image, apply_rule(image, rule))
