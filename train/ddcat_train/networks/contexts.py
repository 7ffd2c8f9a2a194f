"""
Context of the whole image from a backbone's last maps: pyramid pooling (PSPNet) and ASPP (DeepLabv3).

Both end in maps that are concatenated with a few pooled values, upsampled. The concatenation is never made: convolution and
upsampling are linear, so a head's first layer convolves the few values and upsamples what comes out, which in PSPNet-50 saves
nearly half of the work of every head.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddcat_train.networks.backbone import Stages
from ddcat_train.networks.convolution import Conv2d, Layers
from ddcat_train.networks.layers import conv_bn_relu, interpolation, pool_to_bins, upsample

__all__ = ["ASPP", "Context", "ContextConv2d", "ContextModule", "PyramidPooling"]


class Context(NamedTuple):
    """
    Output of a context module: it stands for the concatenation of the maps and of all pooled values upsampled to their size.

    Attributes
    ----------
    maps : (N, C, h, w) float
    pooled : tuple of (N, c, b, b) float
    align_corners : bool
        Of the upsampling.
    """

    maps: Tensor
    pooled: tuple[Tensor, ...] = ()
    align_corners: bool = True

    def first(self, count: int) -> "Context":
        """Keep the first images of the batch."""
        return self._replace(maps=self.maps[:count], pooled=tuple(values[:count] for values in self.pooled))

    def concatenated(self) -> Tensor:
        """Make what it stands for, (N, C + sum of c, h, w)."""
        size = (self.maps.shape[-2], self.maps.shape[-1])
        return torch.cat([self.maps, *(self._upsampled(values, size) for values in self.pooled)], dim=1)

    def _upsampled(self, values: Tensor, size: tuple[int, int]) -> Tensor:
        return upsample(values, size, align_corners=self.align_corners)


class ContextModule(nn.Module, ABC):
    """
    A module between backbone and heads.

    Attributes
    ----------
    channels : int
        Of its context, the pooled ones included.
    head_kernel, head_channels : int
        Of the hidden layer of each head.
    """

    channels: int
    head_kernel: int
    head_channels: int

    @abstractmethod
    def forward(self, stages: Stages) -> Context:
        """Make the context that all heads share."""


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
        if not others:
            return maps
        if self.kernel_size == (1, 1) and all(values.shape[-1] == 1 for values in context.pooled):
            for values, other in zip(context.pooled, others, strict=True):
                maps = maps + F.conv2d(values, other)  # one value a channel, the same everywhere: (N, O, 1, 1)
            return maps
        return maps + self._upsampled(context, others)

    def _upsampled(self, context: Context, weights: list[Tensor]) -> Tensor:
        height, width = context.maps.shape[-2:]
        kernel, outputs, count = self.kernel_size[0], self.out_channels, context.maps.shape[0]
        how: dict[str, Any] = {"kernel": kernel, "align_corners": context.align_corners}
        rows, stretched = [], []
        for values, weight in zip(context.pooled, weights, strict=True):
            bins = values.shape[-1]
            # As matrices that need no copy where the weight has its channels last: (O k k, c) times (c, N b b).
            kernels = weight.permute(0, 2, 3, 1).reshape(-1, weight.shape[1])
            taps = kernels @ values.permute(1, 0, 2, 3).reshape(weight.shape[1], -1)
            taps = taps.reshape(outputs, kernel, kernel, count, bins, bins).permute(3, 1, 4, 2, 5, 0)
            taps = taps.reshape(count, kernel * bins, kernel * bins, outputs)
            stretched.append(interpolation(width, bins, values, **how) @ taps)  # (N, k b, w, O)
            rows.append(interpolation(height, bins, values, **how))  # (h, k b)
        whole = torch.cat(rows, dim=1) @ torch.cat(stretched, dim=1).flatten(2)  # (N, h, w O)
        return whole.reshape(count, height, width, outputs).permute(0, 3, 1, 2)  # channels last, as the maps are


class PyramidPooling(ContextModule):
    """
    Average pooling to 1, 2, 3 and 6 bins, a 1x1 convolution each, upsampled and concatenated to the input.

    Maps C channels to ``channels`` = 2 C, or C + 4 W.

    Parameters
    ----------
    inputs : int
        C, of the last maps.
    width : int, optional
        W, channels of each of the four; a quarter of C by default.
    """

    bins = (1, 2, 3, 6)

    def __init__(self, inputs: int, *, width: int | None = None, align_corners: bool = True) -> None:
        super().__init__()
        branch = width or inputs // len(self.bins)
        # The place of the pooling is kept in the numbering, so that the keys are those of released checkpoints.
        self.features = nn.ModuleList(Layers(nn.Identity(), *conv_bn_relu(inputs, branch)) for _ in self.bins)
        self.channels = inputs + branch * len(self.bins)
        self.head_kernel, self.head_channels = 3, branch
        self.align_corners = align_corners

    def forward(self, stages: Stages) -> Context:
        """Map the last maps, (N, C, h, w), to a context."""
        maps = stages.last
        pooled = tuple(f(pool_to_bins(maps, bins)) for f, bins in zip(self.features, self.bins, strict=True))
        return Context(maps, pooled, self.align_corners)


class ASPP(ContextModule):
    """
    A 1x1 convolution, three dilated 3x3 ones and image pooling, concatenated without a projection.

    Maps C channels to ``channels`` = 5 C / 8, or 5 W.

    Parameters
    ----------
    inputs : int
        C, of the last maps.
    width : int, optional
        W, channels of each of the five; an eighth of C by default.
    rates : three ints
        Dilations.
    head_kernel : int
        Of the hidden layer of each head.
    """

    def __init__(
        self, inputs: int, *, width: int | None = None, rates: Sequence[int] = (6, 12, 18), head_kernel: int = 1
    ) -> None:
        super().__init__()
        branch = width or inputs // 8
        self.convs = nn.ModuleList(
            [
                Layers(*conv_bn_relu(inputs, branch)),
                *(Layers(*conv_bn_relu(inputs, branch, 3, rate)) for rate in rates),
                Layers(nn.Identity(), *conv_bn_relu(inputs, branch)),  # image pooling; keys as released
            ]
        )
        self.channels = branch * len(self.convs)
        self.head_kernel, self.head_channels = head_kernel, branch

    def forward(self, stages: Stages) -> Context:
        """Map the last maps, (N, C, h, w), to a context."""
        *local, pooling = self.convs
        maps = stages.last
        pooled = (pooling(pool_to_bins(maps, 1)),)
        # One value is the same everywhere; without aligned corners also where the maps are of 1 x 1.
        return Context(torch.cat([convolution(maps) for convolution in local], dim=1), pooled, align_corners=False)
