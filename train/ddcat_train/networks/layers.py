"""The small pieces that backbones, contexts and heads are made of."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddcat_train.errors import DataError
from ddcat_train.networks.convolution import Conv2d

__all__ = [
    "as_maps", "as_tokens", "bin_averages", "conv_bn", "conv_bn_relu", "drop_path", "drop_path_rates", "interpolation",
    "pool_to_bins", "upsample",
]  # fmt: skip


def conv_bn(
    inputs: int, outputs: int, kernel: int, *, stride: int = 1, dilation: int = 1, groups: int = 1, **norm: Any
) -> list[nn.Module]:
    """Layers of a convolution that pads by half its kernel, without bias, then batch norm with the options `norm`."""
    padding = dilation * (kernel // 2)
    convolution = Conv2d(inputs, outputs, kernel, stride, padding, dilation=dilation, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outputs, **norm)]


def conv_bn_relu(inputs: int, outputs: int, kernel: int = 1, dilation: int = 1) -> list[nn.Module]:
    """Layers of a convolution that keeps the size, without bias, then batch norm and ReLU."""
    return [*conv_bn(inputs, outputs, kernel, dilation=dilation), nn.ReLU(inplace=True)]


def as_tokens(maps: Tensor) -> Tensor:
    """Lay out maps (N, C, h, w) as tokens (N, h w, C)."""
    return maps.flatten(2).transpose(1, 2)


def as_maps(tokens: Tensor, like: Tensor) -> Tensor:
    """Lay out tokens (N, h w, C) as maps (N, C, h, w) of the size of others."""
    return tokens.transpose(1, 2).reshape(-1, tokens.shape[2], like.shape[2], like.shape[3])


def drop_path(residual: Tensor, rate: float, *, training: bool) -> Tensor:
    """Set the residual of a block to 0 for some images, at this rate, and enlarge that of the others to keep its mean."""
    if not training or not rate:
        return residual
    kept = torch.rand(len(residual), *[1] * (residual.ndim - 1), device=residual.device) >= rate
    return residual * kept.to(residual.dtype) / (1 - rate)


def drop_path_rates(last: float, blocks: int) -> list[float]:
    """Return the rate of each block: it rises from 0 to that of the last."""
    return [last * place / max(1, blocks - 1) for place in range(blocks)]


def upsample(maps: Tensor, size: tuple[int, int], *, align_corners: bool = True) -> Tensor:
    """Resize (N, C, h, w) to (N, C, *size), bilinear; with aligned corners, as everywhere in the paper's networks."""
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=align_corners)


def interpolation(size: int, bins: int, like: Tensor, *, kernel: int = 1, align_corners: bool = True) -> Tensor:
    """
    Return the matrix that upsamples `bins` values to `size` places, linear.

    Made of tensor operations, as `bin_averages` is.

    Parameters
    ----------
    size, bins : int
        With aligned corners `size` is 2 at least.
    like : Tensor
        Of the type and on the device of the matrix.
    kernel : int
        Odd. The places that each tap of a kernel sees stand side by side, those outside of the map being zero.

    Returns
    -------
    (size, kernel * bins)

    Raises
    ------
    DataError
        For a size of 1 with aligned corners.
    """
    if align_corners and isinstance(size, int) and size < 2:  # in a graph it is no number, and the engine asks for 33 x 33
        raise DataError("an image is too small for this network, which gives NaN for it: use images of 33 x 33 pixels or more")
    taps = torch.arange(kernel, device=like.device) - kernel // 2
    places = torch.arange(size, device=like.device).unsqueeze(1) + taps  # (size, kernel)
    index = torch.arange(bins, device=like.device)
    # Whole numbers up to the one division, so that a place on a bin gets exactly that bin; bfloat16 does not hold them.
    if align_corners:
        distance, unit = (places.unsqueeze(2) * (bins - 1) - index * (size - 1)).abs(), size - 1  # (size, kernel, bins)
    else:  # from the middle of a place to that of a bin; beyond the outermost middles the values are constant
        unit = 2 * size
        among = ((2 * places + 1) * bins - size).clamp(min=0).minimum((bins - 1) * unit + torch.zeros_like(places))
        distance = (among.unsqueeze(2) - index * unit).abs()
    near = (1 - distance.to(torch.promote_types(like.dtype, torch.float32)) / unit).clamp(min=0).to(like.dtype)
    inside = ((places >= 0) & (places < size)).to(like.dtype)
    return (near * inside.unsqueeze(2)).flatten(1)


def bin_averages(size: int, bins: int, like: Tensor) -> Tensor:
    """
    Return the (bins, size) matrix whose row i averages the places floor(i*size/bins) .. ceil((i+1)*size/bins) - 1.

    Made of tensor operations, so that it exports with a `size` that is only known when the engine runs.
    """
    places = torch.arange(size, device=like.device).unsqueeze(0)  # (1, size)
    index = torch.arange(bins, device=like.device).unsqueeze(1)  # (bins, 1)
    # place >= floor(i * size / bins) and place < ceil((i + 1) * size / bins), without a division
    member = ((places + 1) * bins > index * size) & (places * bins < (index + 1) * size)
    return member.to(like.dtype) / member.sum(1, keepdim=True).to(like.dtype)


def pool_to_bins(maps: Tensor, bins: int) -> Tensor:
    """
    Average (N, C, H, W) to (N, C, bins, bins): equal to adaptive average pooling for every size.

    Written as A_h X A_w^T because adaptive pooling with a dynamic height or width exports to ONNX silently wrong; with the
    channels last, so that maps in that layout are not copied.
    """
    height, width, channels = maps.shape[-2], maps.shape[-1], maps.shape[1]
    # An engine for one size pools equal bins as they lie in memory; products with matrices would have it copy the maps.
    known = isinstance(height, int) and isinstance(width, int)
    if torch.compiler.is_compiling() and known and not (height % bins or width % bins):
        return F.avg_pool2d(maps, (height // bins, width // bins))
    pooled = bin_averages(height, bins, maps) @ maps.permute(0, 2, 3, 1).reshape(-1, height, width * channels)
    pooled = bin_averages(width, bins, maps) @ pooled.reshape(-1, bins, width, channels)  # (N, bins, bins, C)
    return pooled.permute(0, 3, 1, 2)
