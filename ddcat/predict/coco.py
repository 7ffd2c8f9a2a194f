"""COCO's file of a data set: one annotation for each class that an image has, as run lengths or as polygons."""

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ddcat.classes import IGNORE_INDEX, Classes
from ddcat.predict.polygons import outlines, without_holes
from ddcat.predict.records import Answer, Record
from ddcat.predict.run_lengths import encode_classes

__all__ = ["polygon_annotations", "run_length_annotations", "writer"]


def run_length_annotations(answer: Answer) -> list[dict[str, Any]]:
    """Return the annotations of an image as compressed run lengths; a category's id is its label."""
    return [
        {
            "category_id": label,
            "segmentation": {"size": [*answer.labels.shape], "counts": found.counts},
            "area": found.area,
            "bbox": found.box,
            "iscrowd": 1,  # COCO's mark of run lengths
        }
        for label, found in encode_classes(answer.labels).items()
        if label != IGNORE_INDEX
    ]


def polygon_annotations(answer: Answer) -> list[dict[str, Any]]:
    """Return the annotations of an image as polygons along the edges of pixels: see `ddcat.predict.polygons`."""
    annotations = []
    for label, found in encode_classes(answer.labels).items():
        if label == IGNORE_INDEX:
            continue
        rings = [without_holes(polygon) for polygon in outlines(answer.labels == label)]
        flat = [[side for corner in ring for side in corner] for ring in rings]
        annotations.append({"category_id": label, "segmentation": flat, "area": found.area, "bbox": found.box, "iscrowd": 0})
    return annotations


def writer(form: str) -> Callable[[Classes, Callable[[], Iterable[Record]]], Iterator[bytes]]:
    """Return a function that writes the file from the parts of a form, an image at a time."""

    def write(classes: Classes, records: Callable[[], Iterable[Record]]) -> Iterator[bytes]:
        categories = [{"id": label, "name": name} for label, name in enumerate(classes.names)]
        yield f'{{"info": {{}}, "categories": {json.dumps(categories)},\n"images": ['.encode()
        for number, record in enumerate(records(), 1):
            image = {"id": number, "file_name": record.name, "height": record.height, "width": record.width}
            yield (",\n" if number > 1 else "\n").encode() + json.dumps(image).encode()
        yield b'],\n"annotations": ['
        count = 0
        for number, record in enumerate(records(), 1):
            for part in record.parts[form]:
                count += 1
                yield (",\n" if count > 1 else "\n").encode() + json.dumps({"id": count, "image_id": number, **part}).encode()
        yield b"]}\n"

    return write
