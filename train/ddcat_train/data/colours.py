"""Masks in colours, and palettes: what the colours of a label file say about its classes."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ddcat.classes import IGNORE_INDEX, Classes, Colour
from ddcat_train.data.fault import Fault
from ddcat_train.data.pictures import U8, Mask
from ddcat_train.errors import DataError

__all__ = ["decode_colours", "palette_clash"]


def decode_colours(pixels: U8, colours: Mapping[Colour, int] | None, classes: Classes, file: Path) -> tuple[U8, list[Fault]]:
    """
    Decode a mask in colours, each of which must be exactly that of a class or an ignored one.

    Parameters
    ----------
    pixels : (H, W, 3) uint8
        RGB.
    colours : mapping of (red, green, blue) to int, or None
        Label of each colour.
    file : Path
        For the messages.

    Returns
    -------
    labels : (H, W) uint8
        0..K-1, or 255 = ignored; 254 where a colour is unknown.
    faults : list of Fault
        One where there is an unknown colour.

    Raises
    ------
    DataError
        Where the data set has no colours, or one of them stands for two classes.
    """
    if colours is None:
        raise DataError(
            f"{file} is a PNG in colour (mode RGB): labels must be indices of 8 bits, with a palette (mode P) or in "
            "grey (mode L), one value for each class; or give the colour of each class as 'colours' in classes.yaml"
        )
    if len(set(classes.palette)) < len(classes):
        raise DataError(f"{file} is in colours, and two classes have the same one: give each class its own colour")
    packed = _packed(pixels)  # (H, W)
    keys = np.array(sorted(_packed(np.array(colour, np.uint8)).item() for colour in colours), np.uint32)
    label_of = {_packed(np.array(colour, np.uint8)).item(): label for colour, label in colours.items()}
    labels_of_keys = np.array([label_of[key] for key in keys.tolist()], np.uint8)
    place = np.searchsorted(keys, packed).clip(max=len(keys) - 1)
    labels = labels_of_keys[place]
    strange = keys[place] != packed
    if not strange.any():
        return labels, []
    labels[strange] = IGNORE_INDEX - 1
    row, column = (int(axis[0]) for axis in np.nonzero(strange))
    colour, pixel_count = pixels[row, column].tolist(), int(strange.sum())
    message = (
        f"{file}: the colour {colour} at x {column}, y {row} is that of no class ({pixel_count} pixels have such "
        "colours): list it as 'ignore_colour' in classes.yaml, or give it the exact colour of a class; a mask that was "
        "resized or saved as JPEG has blended ones"
    )
    return labels, [Fault("colour", file, message, pixels=pixel_count)]


def palette_clash(mask: Mask, table: U8, classes: Classes) -> str | None:
    """
    Return a warning on a palette that has a class in the colour of another: its order is not that of the classes.

    Parameters
    ----------
    table : (256,) uint8
        Labels of all values of a mask.

    Returns
    -------
    str or None
        One line, without the file; None where the palette fits, or there is none.
    """
    if mask.palette is None:
        return None
    for value in np.flatnonzero(np.bincount(mask.pixels.ravel(), minlength=256)):
        label = int(table[value])
        if label >= len(classes) or value >= len(mask.palette):
            continue
        red, green, blue = mask.palette[value].tolist()
        if (red, green, blue) != classes.palette[label] and (red, green, blue) in classes.palette:
            other = classes.names[classes.palette.index((red, green, blue))]
            return f"the palette shows index {value} in the colour of {other}, and the index is that of {classes.names[label]}"
    return None


def _packed(colours: U8) -> np.ndarray:
    wide = colours.astype(np.uint32)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]
