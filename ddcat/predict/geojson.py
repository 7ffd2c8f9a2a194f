"""GeoJSON of one image: a feature for each class, whose outlines follow the edges of pixels."""

import json
from collections.abc import Callable
from typing import Any

from ddcat.predict.polygons import Ring, outlines
from ddcat.predict.records import Answer

__all__ = ["encode_geojson"]

Place = Callable[[int, int], tuple[float, float]]


def encode_geojson(answer: Answer) -> bytes:
    """
    Encode labels as a FeatureCollection of MultiPolygons.

    Coordinates are (column, row) of the image, its upper left corner (0, 0): rows grow downwards, as in every image.
    """
    features = [_feature(answer, label) for label in answer.present()]
    return json.dumps({"type": "FeatureCollection", "features": features}).encode() + b"\n"


def _feature(answer: Answer, label: int) -> dict[str, Any]:
    mask = answer.labels == label
    areas = [[_closed(polygon.outline), *map(_closed, polygon.holes)] for polygon in outlines(mask)]
    return {
        "type": "Feature",
        "properties": {"class": answer.classes.names[label], "label": label, "pixels": int(mask.sum())},
        "geometry": {"type": "MultiPolygon", "coordinates": areas},
    }


def _closed(ring: Ring) -> list[tuple[int, int]]:
    """Return a ring as GeoJSON has it: the first corner again at its end, and counter-clockwise where y grows upwards."""
    return [*ring, ring[0]]
