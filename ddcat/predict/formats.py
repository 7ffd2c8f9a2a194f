"""The forms of results: files of one image each, and files that hold all images."""

import io
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from ddcat.bands import displayed
from ddcat.classes import Classes, colourise
from ddcat.predict import coco, cvat, geojson, label_studio
from ddcat.predict.png import mask_png
from ddcat.predict.records import Answer, Record

__all__ = ["FORMATS", "Collected", "OneEach", "overlaid"]

U8 = np.typing.NDArray[np.uint8]


class OneEach(NamedTuple):
    """A form with a file for each image."""

    place: str  # of the file; {stem} is the image's name without its suffix
    encode: Callable[[Answer], bytes]


class Collected(NamedTuple):
    """A form with one file for all images."""

    file: str
    part: Callable[[Answer], Any]  # what of an image goes into the file, as JSON
    write: Callable[[Classes, Callable[[], Iterable[Record]]], Iterator[bytes]]  # records may be read again and again


def overlaid(pixels: U8, labels: U8, classes: Classes) -> U8:
    """
    Blend the classes' colours over an image, half and half.

    Parameters
    ----------
    pixels : (H, W, C) uint8
    labels : (H, W) uint8
    classes : Classes
    """
    return (displayed(pixels) // 2 + colourise(labels, classes) // 2).astype(np.uint8)


def _overlay_jpeg(answer: Answer) -> bytes:
    from PIL import Image  # noqa: PLC0415 -- only pictures need it

    file = io.BytesIO()
    Image.fromarray(overlaid(answer.pixels, answer.labels, answer.classes)).save(file, "JPEG", quality=90)
    return file.getvalue()


FORMATS: dict[str, OneEach | Collected] = {
    "png": OneEach("masks/{stem}.png", lambda answer: mask_png(answer.labels, answer.classes)),
    "coco": Collected("coco.json", coco.run_length_annotations, coco.writer("coco")),
    "coco-polygons": Collected("coco-polygons.json", coco.polygon_annotations, coco.writer("coco-polygons")),
    "geojson": OneEach("geojson/{stem}.geojson", geojson.encode_geojson),
    "label-studio": Collected("label-studio.json", label_studio.brush_results, label_studio.write_tasks("label-studio")),
    "cvat": Collected("annotations.xml", cvat.cvat_masks, cvat.write_annotations("cvat")),
    "overlay": OneEach("overlays/{stem}.jpg", _overlay_jpeg),
}
