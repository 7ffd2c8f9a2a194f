"""
Outlines of the areas of a label map, along the edges of its pixels.

They lose nothing: an outline filled again is the area. An area is joined by the sides of its pixels, not by corners, so that no
outline touches itself along an edge.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Polygon", "Ring", "outlines", "without_holes"]

Ring = list[tuple[int, int]]  # (x, y) of its corners; the last is joined to the first

_RIGHT, _DOWN, _LEFT, _UP = range(4)


class Polygon(NamedTuple):
    """An area: the outline, clockwise as seen on a screen, and the outlines of its holes, counter-clockwise."""

    outline: Ring
    holes: list[Ring]


def outlines(mask: npt.NDArray[np.bool_]) -> list[Polygon]:
    """
    Trace the areas of a mask.

    Parameters
    ----------
    mask : (H, W) bool

    Returns
    -------
    list of Polygon
        By their first pixel, row by row.
    """
    height, width = mask.shape
    padded = np.pad(mask, 1)
    inner = padded[1:-1, 1:-1]
    # an edge begins at a corner and has the area on its right: corner (y, x), direction -> its place in `edges`
    edges = np.zeros((height + 1, width + 1, 4), np.bool_)
    edges[:-1, :-1, _RIGHT] = inner & ~padded[:-2, 1:-1]
    edges[:-1, 1:, _DOWN] = inner & ~padded[1:-1, 2:]
    edges[1:, 1:, _LEFT] = inner & ~padded[2:, 1:-1]
    edges[1:, :-1, _UP] = inner & ~padded[1:-1, :-2]
    rings, ring_at = _traced(edges)
    owners = _owners(edges, rings, ring_at)
    polygons = {place: Polygon(ring, []) for place, ring in enumerate(rings) if owners[place] == place}
    for place, owner in enumerate(owners):
        if owner != place:
            polygons[owner].holes.append(rings[place])
    return list(polygons.values())


def _traced(edges: npt.NDArray[np.bool_]) -> tuple[list[Ring], dict[int, int]]:
    """Follow the edges; return the rings, and for every vertical edge the number of its ring."""
    columns = edges.shape[1]
    places = np.flatnonzero(edges.ravel()).tolist()
    left = set(places)
    steps = (4, 4 * columns, -4, -4 * columns)
    rings: list[Ring] = []
    ring_at: dict[int, int] = {}
    for first in places:  # in order: a ring is found at its upper left corner first
        if first not in left:
            continue
        ring: Ring = []
        place, before = first, -1
        while True:
            left.remove(place)
            corner, direction = divmod(place, 4)
            if direction != before:
                ring.append((corner % columns, corner // columns))
            if direction in (_DOWN, _UP):
                ring_at[place] = len(rings)
            before = direction
            at = place - direction + steps[direction]
            # at a corner where two areas touch the nearest turn to the right stays with its own
            following = [at + turn % 4 for turn in (direction + 1, direction, direction - 1)]
            place = next((edge for edge in following if edge in left), first)
            if place == first:
                break
        if before == first % 4:  # it began in the middle of a side
            del ring[0]
        rings.append(ring)
    return rings, ring_at


def _owners(edges: npt.NDArray[np.bool_], rings: list[Ring], ring_at: dict[int, int]) -> list[int]:
    """Return for each ring the number of the outline that it belongs to: its own for an outline."""
    uprights = sorted(ring_at, key=lambda place: (_pixel_row(place, edges.shape[1]), place // 4 % edges.shape[1], place % 4))
    position = {place: at for at, place in enumerate(uprights)}
    owners = list(range(len(rings)))
    first: dict[int, int] = {}  # the leftmost vertical edge of each ring
    for place, ring in ring_at.items():
        if ring not in first or place // 4 % edges.shape[1] < first[ring] // 4 % edges.shape[1]:
            first[ring] = place
    for ring in sorted(first, key=lambda ring: first[ring] // 4 % edges.shape[1]):
        if first[ring] % 4 == _DOWN:  # the area is on its left side: a hole, in the run of pixels that ends here
            owners[ring] = owners[ring_at[uprights[position[first[ring]] - 1]]]
    return owners


def _pixel_row(place: int, columns: int) -> int:
    """Return the row of pixels that a vertical edge stands beside."""
    return place // 4 // columns - (place % 4 == _UP)


def without_holes(polygon: Polygon) -> Ring:
    """
    Return one ring for formats that know no holes: each hole is joined to what is around it by a cut of no width.

    Filled by the rule of even and odd crossings, or by the other, it is the area.
    """
    ring = list(polygon.outline)
    for hole in sorted(polygon.holes, key=min):  # from left to right: a cut leads to the left
        corner = min(hole)
        at = hole.index(corner)
        target, cut = _left_of(ring, corner)
        ring[target:target] = [cut, *hole[at:], *hole[:at], corner, cut]
    return ring


def _left_of(ring: Ring, corner: tuple[int, int]) -> tuple[int, tuple[int, int]]:
    """Return the nearest point of a ring to the left of a corner, and the place in the ring where it belongs."""
    x, y = corner
    best = (-1, 0)
    for place, ((x1, y1), (x2, y2)) in enumerate(zip(ring, [*ring[1:], ring[0]], strict=True), 1):
        if x1 == x2 and min(y1, y2) <= y <= max(y1, y2) and best[0] < x1 < x:
            best = x1, place
    return best[1], (best[0], y)
