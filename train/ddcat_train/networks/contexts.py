"""
Context of the whole image: pyramid pooling (PSPNet) and ASPP (DeepLabv3).

Both end in maps that are concatenated with a few pooled values, upsampled. The concatenation is never made: convolution and
upsampling are linear, so a head's first layer convolves the few values and upsamples what comes out, which in PSPNet-50 saves
nearly half of the work of every head.
"""

from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddcat_train.networks.convolution import Conv2d, Layers
from ddcat_train.networks.layers import conv_bn_relu, interpolation, pool_to_bins, upsample

__all__ = ["ASPP", "Context", "ContextConv2d", "PyramidPooling"]


class Context(NamedTuple):
    """
    Output of a context module: it stands for the concatenation of the maps and of all pooled values upsampled to their size.

    Attributes
    ----------
    maps : (N, C, h, w) float
    pooled : tuple of (N, c, b, b) float
    """

    maps: Tensor
    pooled: tuple[Tensor, ...]

    def first(self, count: int) -> "Context":
        """Keep the first images of the batch."""
        return Context(self.maps[:count], tuple(values[:count] for values in self.pooled))

    def concatenated(self) -> Tensor:
        """Make what it stands for, (N, C + sum of c, h, w)."""
        size = (self.maps.shape[-2], self.maps.shape[-1])
        return torch.cat([self.maps, *(upsample(values, size) for values in self.pooled)], dim=1)


class ContextConv2d(Conv2d):
    """
    A convolution over what a `Context` stands for, equal to that over the concatenation up to rounding.

    The pooled values are contracted with each tap of the kernel first, and then upsampled by two small matrix products with
    shifted bases that are zero where a tap lies outside of the map. Of one bin and one tap it is a constant for each channel.
    """

    folds = False  # its weight is larger than most maps

    def forward(self, context: Context) -> Tensor:  # type: ignore[override]
        """Map a context of (N, C, h, w) to (N, O, h, w)."""
        return self.convolve(context, self.weight, self.bias)

    def convolve(self, context: Context, weight: Tensor, bias: Tensor | None) -> Tensor:  # type: ignore[override]
        """Map a context of (N, C, h, w) to (N, O, h, w) with another weight and bias of the same shapes."""
        starts = list(accumulate((values.shape[1] for values in (context.maps, *context.pooled)), initial=0))
        own, *others = (weight[:, start:end] for start, end in pairwise(starts))  # a split would stay in a graph
        maps = super().convolve(context.maps, own, bias)
        if self.kernel_size == (1, 1) and all(values.shape[-1] == 1 for values in context.pooled):
            for values, other in zip(context.pooled, others, strict=True):
                maps = maps + F.conv2d(values, other)  # one value a channel, the same everywhere: (N, O, 1, 1)
            return maps
        return maps + self._upsampled(context, others)

    def _upsampled(self, context: Context, weights: list[Tensor]) -> Tensor:
        height, width = context.maps.shape[-2:]
        kernel, outputs, count = self.kernel_size[0], self.out_channels, context.maps.shape[0]
        rows, stretched = [], []
        for values, weight in zip(context.pooled, weights, strict=True):
            bins = values.shape[-1]
            # As matrices that need no copy where the weight has its channels last: (O k k, c) times (c, N b b).
            kernels = weight.permute(0, 2, 3, 1).reshape(-1, weight.shape[1])
            taps = kernels @ values.permute(1, 0, 2, 3).reshape(weight.shape[1], -1)
            taps = taps.reshape(outputs, kernel, kernel, count, bins, bins).permute(3, 1, 4, 2, 5, 0)
            taps = taps.reshape(count, kernel * bins, kernel * bins, outputs)
            stretched.append(interpolation(width, bins, values, kernel=kernel) @ taps)  # (N, k b, w, O)
            rows.append(interpolation(height, bins, values, kernel=kernel))  # (h, k b)
        whole = torch.cat(rows, dim=1) @ torch.cat(stretched, dim=1).flatten(2)  # (N, h, w O)
        return whole.reshape(count, height, width, outputs).permute(0, 3, 1, 2)  # channels last, as the maps are


class PyramidPooling(nn.Module):
    """
    Average pooling to 1, 2, 3 and 6 bins, a 1x1 convolution each, upsampled and concatenated to the input.

    Maps C channels to ``channels`` = 2 C.
    """

    bins = (1, 2, 3, 6)

    def __init__(self, inputs: int) -> None:
        super().__init__()
        branch = inputs // len(self.bins)
        # The place of the pooling is kept in the numbering, so that the keys are those of released checkpoints.
        self.features = nn.ModuleList(Layers(nn.Identity(), *conv_bn_relu(inputs, branch)) for _ in self.bins)
        self.channels = inputs + branch * len(self.bins)
        self.head_kernel, self.head_channels = 3, branch

    def forward(self, maps: Tensor) -> Context:
        """Map (N, C, h, w) to a context of 2 C channels."""
        return Context(maps, tuple(f(pool_to_bins(maps, bins)) for f, bins in zip(self.features, self.bins, strict=True)))


class ASPP(nn.Module):
    """
    A 1x1 convolution, three dilated 3x3 ones and image pooling, concatenated without a projection.

    Maps C channels to ``channels`` = 5 C / 8.
    """

    rates = (6, 12, 18)

    def __init__(self, inputs: int) -> None:
        super().__init__()
        branch = inputs // 8
        self.convs = nn.ModuleList(
            [
                Layers(*conv_bn_relu(inputs, branch)),
                *(Layers(*conv_bn_relu(inputs, branch, 3, rate)) for rate in self.rates),
                Layers(nn.Identity(), *conv_bn_relu(inputs, branch)),  # image pooling; keys as released
            ]
        )
        self.channels = branch * len(self.convs)
        self.head_kernel, self.head_channels = 1, branch

    def forward(self, maps: Tensor) -> Context:
        """Map (N, C, h, w) to a context of 5 C / 8 channels."""
        *local, pooling = self.convs
        return Context(torch.cat([convolution(maps) for convolution in local], dim=1), (pooling(pool_to_bins(maps, 1)),))
