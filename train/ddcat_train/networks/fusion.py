"""Contexts of several stages of a backbone: UPerNet's, SegFormer's and that of DeepLabv3+."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from ddcat_train.networks.backbone import Stages
from ddcat_train.networks.contexts import ASPP, Context, ContextConv2d, ContextModule, PyramidPooling
from ddcat_train.networks.convolution import Conv2d, Layers
from ddcat_train.networks.layers import conv_bn_relu, upsample

__all__ = ["AllMLP", "DeepLabV3Plus", "UPerNet"]


def _levels(stages: Stages) -> tuple[Tensor, ...]:
    return (*stages.earlier, stages.intermediate, stages.last)


def _together(maps: Sequence[Tensor], *, align_corners: bool) -> Context:
    """Concatenate maps at the size of the first."""
    first, *others = maps
    size = (first.shape[-2], first.shape[-1])
    return Context(torch.cat([first, *(upsample(other, size, align_corners=align_corners) for other in others)], dim=1))


class UPerNet(ContextModule):
    """
    Pyramid pooling of the last maps, and a feature pyramid over all stages (Xiao et al., 2018).

    Each head's hidden layer is what the paper calls the fusion of the pyramid: a 3x3 convolution of all levels.

    Parameters
    ----------
    inputs : sequence of int
        Channels of the stages, from the finest on.
    width : int
        Channels of every level.
    """

    def __init__(self, inputs: Sequence[int], *, width: int, align_corners: bool) -> None:
        super().__init__()
        *finer, last = inputs
        self.pooling = PyramidPooling(last, width=width, align_corners=align_corners)
        self.bottleneck = Layers(
            ContextConv2d(self.pooling.channels, width, 3, padding=1, bias=False), *conv_bn_relu(width, width)[1:]
        )
        self.lateral = nn.ModuleList(Layers(*conv_bn_relu(channels, width)) for channels in finer)
        self.smooth = nn.ModuleList(Layers(*conv_bn_relu(width, width, 3)) for _ in finer)
        self.channels = width * len(inputs)
        self.head_kernel, self.head_channels = 3, width
        self.align_corners = align_corners

    def forward(self, stages: Stages) -> Context:
        """Map stages to maps of the finest one's size."""
        *finer, _ = _levels(stages)
        levels = [
            *(lateral(maps) for lateral, maps in zip(self.lateral, finer, strict=True)),
            self.bottleneck(self.pooling(stages)),
        ]
        for fine, coarse in reversed(list(pairwise(range(len(levels))))):
            size = (levels[fine].shape[-2], levels[fine].shape[-1])
            levels[fine] = levels[fine] + upsample(levels[coarse], size, align_corners=self.align_corners)
        smooth = [layer(maps) for layer, maps in zip(self.smooth, levels[:-1], strict=True)]
        return _together([*smooth, levels[-1]], align_corners=self.align_corners)


class AllMLP(ContextModule):
    """
    A 1x1 convolution of every stage, concatenated at the size of the finest: SegFormer's decoder as mmsegmentation has it.

    Parameters
    ----------
    inputs : sequence of int
        Channels of the stages, from the finest on.
    width : int
        Channels of each one's convolution.
    """

    def __init__(self, inputs: Sequence[int], *, width: int, align_corners: bool) -> None:
        super().__init__()
        self.convs = nn.ModuleList(Layers(*conv_bn_relu(channels, width)) for channels in inputs)
        self.channels = width * len(inputs)
        self.head_kernel, self.head_channels = 1, width
        self.align_corners = align_corners

    def forward(self, stages: Stages) -> Context:
        """Map stages to maps of the finest one's size."""
        maps = [layer(maps) for layer, maps in zip(self.convs, _levels(stages), strict=True)]
        return _together(maps, align_corners=self.align_corners)


class DeepLabV3Plus(ContextModule):
    """
    ASPP of depthwise separable convolutions, beside the maps of the finest stage (Chen et al., 2018).

    Parameters
    ----------
    inputs : sequence of int
        Channels of the stages, from the finest on.
    width : int
        Channels of the parts of ASPP, and of what follows.
    rates : three ints
        Dilations.
    """

    def __init__(self, inputs: Sequence[int], *, width: int, rates: Sequence[int], align_corners: bool) -> None:
        super().__init__()
        self.aspp = ASPP(inputs[-1], width=width, rates=rates)
        for place, rate in enumerate(rates, start=1):
            self.aspp.convs[place] = Layers(*_separable(inputs[-1], width, rate))
        self.bottleneck = Layers(
            ContextConv2d(self.aspp.channels, width, 3, padding=1, bias=False), *conv_bn_relu(width, width)[1:]
        )
        finest = max(4, 3 * width // 32)  # 48 of 512, as its authors have it
        self.finest = Layers(*conv_bn_relu(inputs[0], finest))
        # The last 1x1 convolution of these is the hidden layer of the heads.
        self.refine = Layers(*_separable(width + finest, width, 1), *_depthwise(width, 1))
        self.channels = width
        self.head_kernel, self.head_channels = 1, width
        self.align_corners = align_corners

    def forward(self, stages: Stages) -> Context:
        """Map stages to maps of the finest one's size."""
        fine = self.finest(_levels(stages)[0])
        size = (fine.shape[-2], fine.shape[-1])
        coarse = upsample(self.bottleneck(self.aspp(stages)), size, align_corners=self.align_corners)
        return Context(self.refine(torch.cat([coarse, fine], dim=1)))


def _depthwise(channels: int, dilation: int) -> list[nn.Module]:
    convolution = Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, groups=channels, bias=False)
    return [convolution, *conv_bn_relu(channels, channels)[1:]]


def _separable(inputs: int, outputs: int, dilation: int) -> list[nn.Module]:
    return [*_depthwise(inputs, dilation), *conv_bn_relu(inputs, outputs)]
