"""
3x3 convolutions with fewer multiplications, on a CPU, by the algorithms in `bilinear`.

A convolution of dilation d is d x d ones without dilation, over every d-th place. Over all tiles of all of them the products
are one matrix product for each row of the kernel's matrix.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ddcat_train.networks.bilinear import FACTORS, Scheme

__all__ = ["choose", "convolve", "convolve_with", "transform"]

_CHUNK = 1 << 24  # bytes of a buffer: those that are larger, the C library asks the kernel for page by page, each time
_ALIGNED = 16  # channels; matrices of an odd width take half as long again to multiply
_FEWEST_CHANNELS = 256  # where there are fewer, it takes as long to make the tiles as it takes to multiply them
_WORTH = 1.3  # times as many products must a direct convolution have
_TRANSFORMING = 32  # tiles that could be multiplied while the weights are transformed


@functools.cache
def _matrices(scheme: Scheme, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    reads, kernel, writes = (torch.from_numpy(np.ascontiguousarray(factor)).to(dtype) for factor in FACTORS[scheme]())
    return reads, kernel, writes


def choose(maps: Tensor, weight: Tensor, dilation: tuple[int, int]) -> Scheme | None:
    """
    Find the scheme of the fewest products; None where a direct convolution takes no longer.

    Parameters
    ----------
    maps : (N, C, H, W) float
    weight : (O, C, 3, 3) float
    dilation : (int, int)
        Which the padding equals.
    """
    if min(weight.shape[:2]) < _FEWEST_CHANNELS:
        return None
    undilated = [-(-size // step) for size, step in zip(maps.shape[2:], dilation, strict=True)]
    fitting = [scheme for scheme in FACTORS if scheme.border or max(undilated) <= scheme.size]
    tiles = {scheme: _Tiling.of(maps, dilation, scheme).tiles for scheme in fitting}
    best = min(fitting, key=lambda scheme: scheme.products * tiles[scheme])
    down, right = (size + 2 * max(size - step, 0) for size, step in zip(maps.shape[2:], dilation, strict=True))
    direct = len(maps) * down * right  # taps inside the maps
    return best if _WORTH * best.products * (tiles[best] + _TRANSFORMING) <= direct else None


def transform(weight: Tensor, scheme: Scheme) -> Tensor:
    """Map a weight (O, C, 3, 3) to (rows of the kernel's matrix, O, C)."""
    _, kernel, _ = _matrices(scheme, weight.dtype)
    outputs, inputs = weight.shape[:2]
    return (kernel @ weight.permute(2, 3, 0, 1).reshape(9, -1)).view(-1, outputs, inputs)


def convolve(maps: Tensor, weight: Tensor, dilation: tuple[int, int], scheme: Scheme) -> Tensor:
    """
    Convolve, with padding by the dilation and without bias.

    Nothing but its arguments is kept for the backward.

    Parameters
    ----------
    maps : (N, C, H, W) float
        With the channels last.
    weight : (O, C, 3, 3) float
    dilation : (int, int)
    scheme : Scheme
        That fits.

    Returns
    -------
    (N, O, H, W) float, with the channels last.
    """
    return _Convolution.apply(maps, weight, dilation, scheme)  # type: ignore[no-any-return, no-untyped-call]


def convolve_with(maps: Tensor, transformed: Tensor, bias: Tensor | None, dilation: tuple[int, int], scheme: Scheme) -> Tensor:
    """As `convolve`, with a weight that is transformed already; that and the bias are constants, which get no gradient."""
    return _Constant.apply(maps, transformed, bias, dilation, scheme)  # type: ignore[no-any-return, no-untyped-call]


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, dilation: tuple[int, int], scheme: Scheme) -> Tensor:
        ctx.save_for_backward(maps, weight)
        ctx.tiling = _Tiling.of(maps, dilation, scheme)
        return _outputs(maps, lambda part: transform(weight[:, part], scheme), weight.shape[0], ctx.tiling)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        maps, weight = ctx.saved_tensors
        tiling = ctx.tiling
        products = _spread(gradient, tiling)
        before = after = None
        if ctx.needs_input_grad[0]:
            before = _input_gradient(products, lambda part: transform(weight[:, part], tiling.scheme), weight.shape[1], tiling)
        if ctx.needs_input_grad[1]:
            after = _weight_gradient(products, maps, tiling)
        return before, after, None, None


class _Constant(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, maps: Tensor, transformed: Tensor, bias: Tensor | None, dilation: tuple[int, int], scheme: Scheme
    ) -> Tensor:
        ctx.save_for_backward(transformed)
        ctx.tiling = _Tiling.of(maps, dilation, scheme)
        outputs = _outputs(maps, lambda part: transformed[..., part], transformed.shape[1], ctx.tiling)
        return outputs if bias is None else outputs.add_(bias[:, None, None])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (transformed,) = ctx.saved_tensors
        products = _spread(gradient, ctx.tiling)
        before = _input_gradient(products, lambda part: transformed[..., part], transformed.shape[2], ctx.tiling)
        return before, None, None, None, None


_Weights = Callable[[slice], Tensor]  # some of the inputs' channels -> (k, O, c)


def _outputs(maps: Tensor, weights: _Weights, outputs: int, tiling: "_Tiling") -> Tensor:
    _, _, writes = _matrices(tiling.scheme, maps.dtype)
    summed = None
    for part in tiling.parts(maps.shape[1], outputs, maps.element_size()):
        factors = _read(maps, part, tiling), weights(part).transpose(1, 2)
        summed = torch.bmm(*factors) if summed is None else summed.baddbmm_(*factors)
    assert summed is not None
    result = tiling.maps(maps, outputs)
    tiling.paste(result, (writes @ summed.view(writes.shape[1], -1)).view(len(writes), -1, outputs), border=0)
    return result


def _input_gradient(products: Tensor, weights: _Weights, inputs: int, tiling: "_Tiling") -> Tensor:
    reads, _, _ = _matrices(tiling.scheme, products.dtype)
    result = tiling.maps(products, inputs)
    for part in tiling.parts(inputs, products.shape[2], products.element_size()):
        seen = torch.bmm(products, weights(part))
        tiles = (reads.T @ seen.view(len(reads), -1)).view(reads.shape[1], -1, seen.shape[2])
        tiling.paste(result[:, part], tiles, border=tiling.scheme.border)
    return result


def _weight_gradient(products: Tensor, maps: Tensor, tiling: "_Tiling") -> Tensor:
    _, kernel, _ = _matrices(tiling.scheme, maps.dtype)
    outputs, inputs = products.shape[2], maps.shape[1]
    taps = maps.new_empty(9, outputs, inputs)
    for part in tiling.parts(inputs, outputs, maps.element_size()):
        weights = torch.bmm(products.transpose(1, 2), _read(maps, part, tiling))
        taps[:, :, part] = (kernel.T @ weights.flatten(1)).view(9, outputs, -1)
    return taps.view(3, 3, outputs, inputs).permute(2, 3, 0, 1)


def _read(maps: Tensor, part: slice, tiling: "_Tiling") -> Tensor:
    """Some channels of the inputs, transformed: (k, products of all tiles, c)."""
    reads, kernel, _ = _matrices(tiling.scheme, maps.dtype)
    tiles = tiling.cut(maps[:, part], border=tiling.scheme.border)
    return (reads @ tiles.flatten(1)).view(len(kernel), -1, tiles.shape[2])


def _spread(gradient: Tensor, tiling: "_Tiling") -> Tensor:
    """Gradients of all products, (k, products of all tiles, O), from those of the outputs."""
    _, kernel, writes = _matrices(tiling.scheme, gradient.dtype)
    tiles = tiling.cut(gradient, border=0)
    return (writes.T @ tiles.flatten(1)).view(len(kernel), -1, tiles.shape[2])


class _Tiling(NamedTuple):
    """Where the tiles lie: of image n, row p of the undilated map that begins in row i, column q of that in column j."""

    scheme: Scheme
    images: int
    size: tuple[int, int]
    dilation: tuple[int, int]
    grid: tuple[int, int]  # tiles of each undilated map, down and right

    @staticmethod
    def of(maps: Tensor, dilation: tuple[int, int], scheme: Scheme) -> "_Tiling":
        height, width = maps.shape[2:]
        down, right = -(-height // (dilation[0] * scheme.size)), -(-width // (dilation[1] * scheme.size))
        return _Tiling(scheme, len(maps), (height, width), dilation, (down, right))

    @property
    def tiles(self) -> int:
        return self.images * self.grid[0] * self.dilation[0] * self.grid[1] * self.dilation[1]

    def parts(self, inputs: int, outputs: int, size: int) -> list[slice]:
        """Slices of the inputs' channels, in each of which tiles fill no more than a chunk, and weights than two."""
        reads, kernel, _ = FACTORS[self.scheme]()
        most = max(_CHUNK // (size * max(len(reads) * self.tiles, len(kernel) * outputs // 2)), 1)
        even = -(-inputs // -(-inputs // most))
        step = min(-(-even // _ALIGNED) * _ALIGNED, most)
        return [slice(start, min(start + step, inputs)) for start in range(0, inputs, step)]

    def maps(self, like: Tensor, channels: int) -> Tensor:
        """Room for (N, c, H, W) with the channels last."""
        shape = (self.images, channels, *self.size)
        return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)

    def _padded(self, border: int) -> tuple[int, int]:
        height, width = (
            step * (tiles * self.scheme.size + 2 * border) for step, tiles in zip(self.dilation, self.grid, strict=True)
        )
        return height, width

    def cut(self, maps: Tensor, *, border: int) -> Tensor:
        """Tiles of (N, c, H, W), each with a border: (places, tiles, c)."""
        height, width = self._padded(border)
        top, left = border * self.dilation[0], border * self.dilation[1]
        bottom, right = height - top - self.size[0], width - left - self.size[1]
        places = maps.permute(0, 2, 3, 1)
        if (height, width) != self.size:
            places = F.pad(places, (0, 0, left, right, top, bottom)).contiguous()
        span = self.scheme.size + 2 * border
        return self._view(places, slice(0, span), slice(0, span)).reshape(span * span, self.tiles, -1)

    def paste(self, maps: Tensor, tiles: Tensor, *, border: int) -> None:
        """Fill (N, c, H, W) with the sum of tiles (places, tiles, c), each with a border."""
        size, span = self.scheme.size, self.scheme.size + 2 * border
        places, padded = maps.permute(0, 2, 3, 1), self._padded(border)
        exact = padded == self.size
        canvas = places if exact else (maps.new_zeros if border else maps.new_empty)(self.images, *padded, maps.shape[1])
        tiles = tiles.view(span, span, -1)
        inner, outer = slice(0, size), slice(size, span)
        view = self._view(canvas, inner, inner)
        view.copy_(tiles[inner, inner].view(view.shape))
        for rows, columns in ((inner, outer), (outer, inner), (outer, outer)) if border else ():  # no two tiles overlap in one
            view = self._view(canvas, rows, columns)
            view.add_(tiles[rows, columns].view(view.shape))
        if not exact:
            top, left = border * self.dilation[0], border * self.dilation[1]
            places.copy_(canvas[:, top : top + self.size[0], left : left + self.size[1]])

    def _view(self, canvas: Tensor, rows: slice, columns: slice) -> Tensor:
        """(row in a tile, column in it, n, p, i, q, j, c)."""
        image, row, column, channel = canvas.stride()
        (down, right), (high, wide), size = self.grid, self.dilation, self.scheme.size
        shape = (rows.stop - rows.start, columns.stop - columns.start, self.images, down, high, right, wide, canvas.shape[-1])
        strides = (high * row, wide * column, image, size * high * row, row, size * wide * column, column, channel)
        return canvas[:, rows.start * high :, columns.start * wide :].as_strided(shape, strides)
