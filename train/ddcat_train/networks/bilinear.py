"""
Bilinear algorithms for small 3x3 convolutions (Winograd, Toom and Cook; Lavin and Gray, 2016).

A tile of outputs is a bilinear function of the inputs that it sees and of the nine taps, ``W (K taps * R inputs)`` with
constant matrices: it costs as many products for each pair of channels as R has rows. Where a tile is a whole map, what
surrounds it is known to be zero.

======================  ========  ==============  =====================
tile of outputs         products  for each place  direct, all taps seen
======================  ========  ==============  =====================
2 x 2, a whole map             9            2.25                      4
3 x 3, a whole map            22            2.44                   5.44
6 x 6, a whole map           100            2.78                   7.11
3 x 3, anywhere               25            2.78                      9
2 x 2, anywhere               16            4                         9
======================  ========  ==============  =====================
"""

import functools
from typing import Any, NamedTuple

import numpy as np

__all__ = ["FACTORS", "Factors", "Scheme"]

Array = np.ndarray[Any, np.dtype[np.float64]]


class Scheme(NamedTuple):
    """
    A bilinear algorithm for a tile.

    Attributes
    ----------
    size : int
        m: a tile has m x m outputs.
    border : int
        How many places it sees on each side of those: 1, or 0 where a tile is a whole map.
    """

    size: int
    border: int

    @property
    def products(self) -> int:
        """Of a tile, for each pair of channels."""
        return len(FACTORS[self]().reads)


class Factors(NamedTuple):
    """Outputs = writes @ ((kernel @ taps) * (reads @ inputs)), all of them flattened; of a row of `kernel`, some of `reads`."""

    reads: Array  # (products, span * span)
    kernel: Array  # (products / p, 9): p products with the same, one after the other
    writes: Array  # (size * size, products)


def _anywhere(size: int, points: tuple[float, ...]) -> Factors:
    """Toom and Cook, transposed: of polynomials at some points and at infinity, once down and once right."""
    values = np.vander(np.array(points), size + 2, increasing=True)
    infinity = np.eye(size + 2)[-1:]
    writes = np.vstack([values[:, :size], infinity[:, -size:]])  # (products, size)
    kernel = np.vstack([values[:, :3], infinity[:, -3:]])
    reads = np.linalg.inv(np.vstack([values, infinity])).T
    return Factors(*(np.kron(matrix, matrix) for matrix in (reads, kernel, writes.T)))


def _pair() -> Factors:
    """(b x + c y, a x + b y), the taps being a, b, c: once down and once right."""
    reads = np.array([[1, 1], [0, 1], [1, 0]])
    kernel = np.array([[0, 1, 0], [0, -1, 1], [1, -1, 0]])
    writes = np.array([[1, 1, 0], [1, 0, 1]])
    return Factors(*(np.kron(matrix, matrix).astype(np.float64) for matrix in (reads, kernel, writes)))


def _triple() -> Factors:
    """A cyclic convolution of 4 x 4, where a 3 x 3 map has room for its zeros; a complex product is three real ones."""
    places = np.arange(4)
    waves = np.exp(0.5j * np.pi * np.outer(places, places)).round()  # (frequency, place)
    reads: list[Array] = []
    kernel: list[Array] = []
    writes: list[Array] = []
    for down in range(4):
        for right in range(4):
            opposite = (-down % 4, -right % 4)
            if opposite < (down, right):  # its values are the conjugates
                continue
            inputs = np.kron(waves[down, :3], waves[right, :3])
            taps = np.kron(waves[down, places[:3] - 1].conj(), waves[right, places[:3] - 1].conj())
            if opposite == (down, right):
                reads, kernel, writes = [*reads, inputs.real], [*kernel, taps.real], [*writes, inputs.real / 16]
            else:
                a, b, c, d = inputs.real, inputs.imag, taps.real, taps.imag
                reads += [a + b, a, b]
                kernel += [c, d - c, c + d]
                writes += [(a + b) / 8, b / 8, -a / 8]
    return Factors(np.array(reads), np.array(kernel), np.array(writes).T)


def _quarters() -> Factors:
    """A 6 x 6 map of four tiles of 3 x 3, put together so that nothing is read twice."""
    tile = _anywhere(3, _POINTS)
    reads, writes = np.zeros((25, 2, 2, 8, 8)), np.zeros((2, 3, 2, 3, 25, 2, 2))
    for down in range(2):
        for right in range(2):
            reads[:, down, right, 3 * down : 3 * down + 5, 3 * right : 3 * right + 5] = tile.reads.reshape(25, 5, 5)
            writes[down, :, right, :, :, down, right] = tile.writes.reshape(3, 3, 25)
    return Factors(reads[..., 1:7, 1:7].reshape(100, 36), tile.kernel, writes.reshape(36, 100))


_POINTS = (0, 1, -1, 0.5)
FACTORS = {
    Scheme(2, 0): functools.cache(_pair),
    Scheme(3, 0): functools.cache(_triple),
    Scheme(6, 0): functools.cache(_quarters),
    Scheme(3, 1): functools.cache(lambda: _anywhere(3, _POINTS)),
    Scheme(2, 1): functools.cache(lambda: _anywhere(2, (0, 1, -1))),
}
