"""The operators of ONNX on maps: windows that move over them, padding, sampling; in torch and differentiable."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ddcat_export.twin.base import Attributes, Inputs, NotSupportedError

__all__ = ["average_pool", "conv", "conv_transpose", "grid_sample", "max_pool", "pad"]

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE_POOL: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


class _Windows(NamedTuple):
    """The geometry of windows: one number for each axis of space."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    begin: list[int]  # padding
    end: list[int]


def _windows(maps: Tensor, kernel: Sequence[int], attributes: Attributes) -> _Windows:
    rank = maps.ndim - 2
    if rank not in _CONV or len(kernel) != rank:
        raise NotSupportedError(f"a kernel of {len(kernel)} axes on values of {maps.ndim}")
    strides, dilations = (list(attributes.get(name, [1] * rank)) for name in ("strides", "dilations"))
    pads = list(attributes.get("pads", [0] * 2 * rank))
    begin, end = pads[:rank], pads[rank:]
    if min(pads) < 0:
        raise NotSupportedError("negative pads")
    automatic = attributes.get("auto_pad", b"NOTSET")
    if automatic in (b"SAME_UPPER", b"SAME_LOWER"):
        for axis, size in enumerate(maps.shape[2:]):
            reach = (kernel[axis] - 1) * dilations[axis] + 1
            missing = (math.ceil(size / strides[axis]) - 1) * strides[axis] + reach - size
            if missing < 0 or ("kernel_shape" in attributes and dilations[axis] > 1):
                raise NotSupportedError("auto_pad in a case where runtimes differ")  # windows that skip pixels, dilated pools
            smaller, larger = missing // 2, missing - missing // 2
            begin[axis], end[axis] = (smaller, larger) if automatic == b"SAME_UPPER" else (larger, smaller)
    elif automatic == b"VALID":
        begin, end = [0] * rank, [0] * rank
    return _Windows(list(kernel), strides, dilations, begin, end)


def _padded(maps: Tensor, begin: Sequence[int], end: Sequence[int], value: float) -> Tensor:
    both = [amount for pair in zip(reversed(begin), reversed(end), strict=True) for amount in pair]
    return F.pad(maps, both, value=value) if any(both) else maps


def conv(inputs: Inputs, attributes: Attributes) -> Tensor:
    """Convolve; padding may differ at the two ends of an axis."""
    maps, weight, bias = (*inputs, None)[:3]
    windows = _windows(maps, weight.shape[2:], attributes)
    pads = windows.begin
    if windows.begin != windows.end:
        maps, pads = _padded(maps, windows.begin, windows.end, 0.0), [0] * len(windows.begin)
    return _CONV[maps.ndim - 2](maps, weight, bias, windows.strides, pads, windows.dilations, attributes.get("group", 1))


def conv_transpose(inputs: Inputs, attributes: Attributes) -> Tensor:
    """Convolve backwards, and cut the padding off."""
    maps, weight, bias = (*inputs, None)[:3]
    if attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise NotSupportedError("auto_pad by the size of the output")
    windows = _windows(maps, weight.shape[2:], attributes)
    extra = list(attributes.get("output_padding", [0] * len(windows.strides)))
    whole = _CONV_TRANSPOSE[maps.ndim - 2](
        maps, weight, bias, windows.strides, 0, extra, attributes.get("group", 1), windows.dilations
    )
    for axis, (begin, end) in enumerate(zip(windows.begin, windows.end, strict=True), start=2):
        whole = whole.narrow(axis, begin, whole.shape[axis] - begin - end)
    return whole


def max_pool(inputs: Inputs, attributes: Attributes) -> Tensor:
    """Take the largest value of each window; padding never wins."""
    maps = inputs[0]
    windows = _windows(maps, attributes["kernel_shape"], attributes)
    limits = torch.finfo if maps.is_floating_point() else torch.iinfo
    lowest = limits(maps.dtype).min  # what runtimes give for a window that sees padding alone
    values = _padded(maps, windows.begin, _reaching(maps, windows, attributes), lowest)
    return _MAX_POOL[maps.ndim - 2](values, windows.kernel, windows.strides, 0, windows.dilations)


def average_pool(inputs: Inputs, attributes: Attributes) -> Tensor:
    """Average each window, over what `count_include_pad` counts."""
    maps = inputs[0]
    windows = _windows(maps, attributes["kernel_shape"], attributes)
    if any(dilation != 1 for dilation in windows.dilations):
        raise NotSupportedError(f"dilations {windows.dilations}")
    end = _reaching(maps, windows, attributes)
    counts = torch.ones_like(maps[:1, :1])
    counts = _padded(counts, windows.begin, windows.end, 1.0 if attributes.get("count_include_pad", 0) else 0.0)
    counts = _padded(counts, [0] * len(end), [reach - pad for reach, pad in zip(end, windows.end, strict=True)], 0.0)
    pool = _AVERAGE_POOL[maps.ndim - 2]
    return pool(_padded(maps, windows.begin, end, 0.0), windows.kernel, windows.strides) / pool(
        counts, windows.kernel, windows.strides
    )


def _reaching(maps: Tensor, windows: _Windows, attributes: Attributes) -> list[int]:
    """Return the padding at the end with what `ceil_mode` adds: a last window may reach out, but not begin outside."""
    if not attributes.get("ceil_mode", 0):
        return windows.end
    reaching = []
    for kernel, stride, dilation, begin, end, side in zip(*windows, maps.shape[2:], strict=True):
        size, reach = side + begin, (kernel - 1) * dilation + 1
        count = math.ceil((size + end - reach) / stride) + 1
        if (count - 1) * stride >= size:
            count -= 1
        reaching.append(max((count - 1) * stride + reach - size, end))
    return reaching


def pad(inputs: Inputs, attributes: Attributes) -> Tensor:
    """Pad (or, by negative amounts, cut) any axes by a constant; pad images also by their own pixels."""
    values, pads, constant, axes = (*inputs, None, None)[:4]
    rank = values.ndim
    places = list(range(rank)) if axes is None else [axis % rank for axis in axes.tolist()]
    amounts, begin, end = pads.tolist(), [0] * rank, [0] * rank
    for place, axis in enumerate(places):
        begin[axis], end[axis] = amounts[place], amounts[place + len(places)]
    mode = attributes.get("mode", b"constant")
    if mode == b"constant":
        return _padded(values, begin, end, 0 if constant is None else constant.item())
    modes = {b"reflect": "reflect", b"edge": "replicate", b"wrap": "circular"}
    if mode not in modes or rank != 4 or any(begin[:2] + end[:2]) or min(begin + end) < 0:
        raise NotSupportedError(f"mode {mode.decode()} by {amounts} on values of {rank} axes")
    return F.pad(values, [begin[3], end[3], begin[2], end[2]], mode=modes[mode])


def grid_sample(inputs: Inputs, attributes: Attributes) -> Tensor:
    """Sample (N, C, h, w) at the places of (N, H, W, 2), in [-1, 1]."""
    maps, grid = inputs
    modes = {  # the second of two names: until opset 20
        b"linear": "bilinear", b"bilinear": "bilinear", b"nearest": "nearest", b"cubic": "bicubic", b"bicubic": "bicubic",
    }  # fmt: skip
    mode = attributes.get("mode", b"linear")
    if mode not in modes or maps.ndim != 4:
        raise NotSupportedError(f"mode {mode.decode()} on values of {maps.ndim} axes")
    corners = bool(attributes.get("align_corners", 0))
    return F.grid_sample(maps, grid, modes[mode], attributes.get("padding_mode", b"zeros").decode(), corners)
