"""The operator Resize of ONNX in torch, differentiable: axis by axis, by the rules of ONNX."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ddcat_export.twin.base import Attributes, Inputs, NotSupportedError

__all__ = ["resize"]

# What torch computes alike, and faster.
_FAST: dict[tuple[bytes, bytes], dict[str, Any]] = {
    (b"linear", b"half_pixel"): {"mode": "bilinear", "align_corners": False},
    (b"linear", b"pytorch_half_pixel"): {"mode": "bilinear", "align_corners": False},
    (b"linear", b"align_corners"): {"mode": "bilinear", "align_corners": True},
    (b"cubic", b"half_pixel"): {"mode": "bicubic", "align_corners": False},
    (b"cubic", b"pytorch_half_pixel"): {"mode": "bicubic", "align_corners": False},
    (b"cubic", b"align_corners"): {"mode": "bicubic", "align_corners": True},
}


class _Axis(NamedTuple):
    """One axis, from `old` pixels to `new` ones."""

    axis: int
    old: int
    new: int
    scale: float


def resize(inputs: Inputs, attributes: Attributes) -> Tensor:
    """Resize some axes to sizes or by scales: to the nearest pixel, linearly or cubically."""
    maps: Tensor = inputs[0]
    mode, corners = attributes.get("mode", b"nearest"), attributes.get("coordinate_transformation_mode", b"half_pixel")
    rounding = attributes.get("nearest_mode", b"round_prefer_floor")
    if corners not in _PLACES:
        raise NotSupportedError(f"coordinate_transformation_mode {corners.decode()}")
    if mode == b"nearest" and corners == b"asymmetric" and rounding == b"round_prefer_ceil":
        raise NotSupportedError("asymmetric with round_prefer_ceil")  # the last bit of a float decides
    axes = [axis for axis in _axes(inputs, attributes) if axis.new != axis.old or axis.scale != 1]
    usual = not attributes.get("exclude_outside", 0) and abs(attributes.get("cubic_coeff_a", -0.75) + 0.75) < 1e-6
    spatial = maps.ndim == 4 and axes and all(axis.axis >= 2 and _is_whole(axis) and axis.new > 1 for axis in axes)
    if spatial and usual and (mode, corners) in _FAST:
        sizes = {axis.axis: axis.new for axis in axes}
        return F.interpolate(maps, [sizes.get(axis, maps.shape[axis]) for axis in (2, 3)], **_FAST[mode, corners])
    for axis in axes:
        if axis.new == axis.old:  # which runtimes take for a copy, or not
            raise NotSupportedError(f"a scale of {axis.scale} that keeps the size")
        if corners in (b"align_corners", b"half_pixel_symmetric") and not _is_whole(axis):
            raise NotSupportedError(f"{corners.decode()} by a scale of {axis.scale}, which gives a fraction of a pixel")
        places = _PLACES[corners](torch.arange(axis.new, dtype=torch.float32, device=maps.device), axis)
        maps = _TAPS[mode](maps, places, axis, attributes)
    return maps


def _is_whole(axis: _Axis) -> bool:
    return abs(axis.old * axis.scale - axis.new) < 1e-4


def _axes(inputs: Inputs, attributes: Attributes) -> list[_Axis]:
    maps, _, scales, sizes = (*inputs, None, None, None)[:4]
    places = [axis % maps.ndim for axis in attributes.get("axes", range(maps.ndim))]
    if sizes is not None and sizes.numel():
        return [
            _Axis(axis, maps.shape[axis], size, _single(size / max(maps.shape[axis], 1)))
            for axis, size in zip(places, sizes.tolist(), strict=True)
        ]
    by = [_single(scale) for scale in scales.tolist()]
    exact = [_single(maps.shape[axis] * scale) for axis, scale in zip(places, by, strict=True)]  # as runtimes have it
    return [_Axis(axis, maps.shape[axis], math.floor(new), scale) for axis, new, scale in zip(places, exact, by, strict=True)]


def _single(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float32))


def _half_pixel(places: Tensor, axis: _Axis) -> Tensor:
    return (places + 0.5) / axis.scale - 0.5


def _pytorch_half_pixel(places: Tensor, axis: _Axis) -> Tensor:
    return _half_pixel(places, axis) if axis.new > 1 else places * 0


def _align_corners(places: Tensor, axis: _Axis) -> Tensor:
    return places * (axis.old - 1) / (axis.new - 1) if axis.new > 1 else places * 0


def _asymmetric(places: Tensor, axis: _Axis) -> Tensor:
    return places / axis.scale


# Of each pixel of the new axis, its place on the old one. With whole sizes the symmetric form is half_pixel.
_PLACES: dict[bytes, Callable[[Tensor, _Axis], Tensor]] = {
    b"half_pixel": _half_pixel,
    b"half_pixel_symmetric": _half_pixel,
    b"pytorch_half_pixel": _pytorch_half_pixel,
    b"align_corners": _align_corners,
    b"asymmetric": _asymmetric,
}

_ROUNDING: dict[bytes, Callable[[Tensor], Tensor]] = {
    b"floor": torch.floor,
    b"ceil": torch.ceil,
    b"round_prefer_floor": lambda places: torch.ceil(places - 0.5),
    b"round_prefer_ceil": lambda places: torch.floor(places + 0.5),
}


def _nearest(maps: Tensor, places: Tensor, axis: _Axis, attributes: Attributes) -> Tensor:
    rounded = _ROUNDING[attributes.get("nearest_mode", b"round_prefer_floor")](places.double()).long()
    return maps.index_select(axis.axis, rounded.clamp(0, axis.old - 1))


def _linear(maps: Tensor, places: Tensor, axis: _Axis, attributes: Attributes) -> Tensor:
    first = places.floor()
    part = places - first
    return _weighted(maps, axis, first, [0, 1], [1 - part, part], attributes)


def _cubic(maps: Tensor, places: Tensor, axis: _Axis, attributes: Attributes) -> Tensor:
    a, first = attributes.get("cubic_coeff_a", -0.75), places.floor()
    near, far = places - first, 1 - (places - first)

    def inner(distance: Tensor) -> Tensor:
        value: Tensor = ((a + 2) * distance - (a + 3)) * distance**2 + 1
        return value

    def outer(distance: Tensor) -> Tensor:
        value: Tensor = a * (((distance - 5) * distance + 8) * distance - 4)
        return value

    return _weighted(maps, axis, first, [-1, 0, 1, 2], [outer(1 + near), inner(near), inner(far), outer(1 + far)], attributes)


def _weighted(
    maps: Tensor, axis: _Axis, first: Tensor, steps: list[int], weights: list[Tensor], attributes: Attributes
) -> Tensor:
    """Sum pixels near a place by their weights; those beyond an edge repeat it, or are left out."""
    places = [(first + step).long() for step in steps]
    if attributes.get("exclude_outside", 0):
        weights = [weight * ((place >= 0) & (place < axis.old)) for weight, place in zip(weights, places, strict=True)]
        total = torch.stack(weights).sum(0)
        weights = [weight / total for weight in weights]
    shape = [-1 if place == axis.axis else 1 for place in range(maps.ndim)]
    parts = [
        maps.index_select(axis.axis, place.clamp(0, axis.old - 1)) * weight.to(maps.dtype).reshape(shape)
        for place, weight in zip(places, weights, strict=True)
    ]
    return torch.stack(parts).sum(0)


_TAPS: dict[bytes, Callable[[Tensor, Tensor, _Axis, Attributes], Tensor]] = {
    b"nearest": _nearest, b"linear": _linear, b"cubic": _cubic,
}  # fmt: skip
