"""A sheet of pictures: rows under headings, captions, and the colours of the classes."""

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ddcat.bands import displayed
from ddcat.classes import IGNORED_COLOUR, Classes
from ddcat_train.data.dataset import U8

__all__ = ["Picture", "draw_sheet", "to_png"]

_LONGEST = 256  # pixels of a picture's longer side: larger ones are shrunk, small ones repeated a whole number of times
_GAP, _MARGIN, _SWATCH = 10, 16, 14
_HEADING, _TEXT = 17, 14  # sizes of letters
_INK, _PALE, _PAPER = (20, 20, 20), (95, 95, 95), (255, 255, 255)

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


class Picture(NamedTuple):
    """Pixels, (H, W, 3) uint8, and a line beneath; pixels that are `smooth` may be mixed where they are shrunk."""

    pixels: U8
    caption: str
    smooth: bool = False


def draw_sheet(title: str, headings: Sequence[str], rows: Sequence[Sequence[Picture]], classes: Classes) -> U8:
    """
    Draw rows of pictures.

    Parameters
    ----------
    headings : sequence of str
        One for each column.
    classes : Classes
        For the legend.

    Returns
    -------
    (H, W, 3) uint8
    """
    large, small = (ImageFont.load_default(size) for size in (_HEADING, _TEXT))
    pictures = [[_fitted(picture) for picture in row] for row in rows]
    line = _TEXT + 12
    widths = [
        max(*(one.width for one in column), int(large.getlength(heading)) + 1)
        for heading, column in zip(headings, zip(*pictures, strict=True), strict=True)
    ]
    heights = [max(one.height for one in row) for row in pictures]
    lefts = [_MARGIN + sum(widths[:column]) + _GAP * column for column in range(len(widths))]
    width = lefts[-1] + widths[-1] + _MARGIN
    swatches = _legend(classes, small, width)
    top = _MARGIN + 3 * line
    height = top + sum(heights) + len(rows) * line + (swatches[-1][1] + 1) * line + _MARGIN

    sheet = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((_MARGIN, _MARGIN), title, _INK, large)
    for left, heading in zip(lefts, headings, strict=True):
        pen.text((left, top - line - 2), heading, _INK, large)
    for row, fitted, tall in zip(rows, pictures, heights, strict=True):
        for left, wide, picture, image in zip(lefts, widths, row, fitted, strict=True):
            sheet.paste(image, (left, top))
            pen.rectangle((left - 1, top - 1, left + image.width, top + image.height), outline=_PALE)  # around, for white ones
            pen.text((left, top + image.height + 3), _shortened(picture.caption, small, wide), _PALE, small)
        top += tall + line
    for left, below, name, colour in swatches:
        corner = left, top + below * line + 6
        pen.rectangle((*corner, corner[0] + _SWATCH, corner[1] + _SWATCH), colour, _PALE)
        pen.text((left + _SWATCH + 6, corner[1] - 2), name, _INK, small)
    return np.asarray(sheet)


def to_png(pixels: U8) -> bytes:
    """Encode RGB pixels, (H, W, 3)."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _fitted(picture: Picture) -> Image.Image:
    image = Image.fromarray(displayed(picture.pixels))
    longest = max(image.size)
    if longest > _LONGEST:
        size = max(1, image.width * _LONGEST // longest), max(1, image.height * _LONGEST // longest)
        return image.resize(size, Image.Resampling.BOX if picture.smooth else Image.Resampling.NEAREST)
    factor = _LONGEST // longest
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _legend(classes: Classes, font: _Font, width: int) -> list[tuple[int, int, str, tuple[int, int, int]]]:
    """Return the place of each colour: x, line, name, colour."""
    placed = []
    left, line = _MARGIN, 0
    for name, colour in (*zip(classes.names, classes.palette, strict=True), ("ignored", IGNORED_COLOUR)):
        needed = _SWATCH + 6 + int(font.getlength(name)) + 18
        if left + needed > width - _MARGIN and left > _MARGIN:
            left, line = _MARGIN, line + 1
        placed.append((left, line, name, colour))
        left += needed
    return placed


def _shortened(text: str, font: _Font, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"...{text}") > width:
        text = text[1:]  # the end of a name tells more than its start
    return f"...{text}"
