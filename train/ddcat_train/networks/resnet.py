"""ResNets in the forms of semseg and mmsegmentation: stride on the 3x3 convolution, the last stages dilated or strided."""

from collections.abc import Mapping
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from ddcat_train.choices import Stem
from ddcat_train.networks.backbone import Backbone, Stages
from ddcat_train.networks.convolution import Conv2d, Layers, conv_bn

__all__ = ["RESNETS", "ResNet", "stem_of"]

_OF_MMSEGMENTATION: tuple[Stem, ...] = ("v1c", "v1d")


class ResNet(Backbone):
    """
    A ResNet without its classifier.

    Parameters
    ----------
    block : type
        `BasicBlock` or `Bottleneck`.
    depths : four ints
        Blocks in each stage.
    width : int
        Channels of the first stage's blocks; 64 in the paper.
    stem : Stem
        Three 3x3 convolutions, as in the paper, or torchvision's one of 7x7. Those of mmsegmentation have half the channels,
        and with them come its dilations: in the first block of a stage that of the stage before, and none in the second
        convolution of a basic block. Its form d averages in the shortcuts where the others skip places.
    output_stride : 8, 16 or 32
        A stride beyond it becomes a dilation.

    Attributes
    ----------
    stem : Stem
    earlier_channels, intermediate_channels, channels, stride, unused
        See `Backbone`; the intermediate maps are those of stage 3.
    """

    unused = ("fc.",)
    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(
        self,
        block: "type[BasicBlock | Bottleneck]",
        depths: tuple[int, int, int, int],
        width: int = 64,
        stem: Stem = "deep",
        output_stride: Literal[8, 16, 32] = 8,
    ) -> None:
        super().__init__()
        self.stem, self.stride = stem, output_stride
        self.layer0 = _stem(stem, width)
        *earlier, self.intermediate_channels, self.channels = (width * factor * block.expansion for factor in (1, 2, 4, 8))
        self.earlier_channels = tuple(earlier)
        inputs, reached, dilation = 2 * width if stem == "deep" else width, 4, 1
        for place, depth in enumerate(depths):
            before, stride = dilation, 1 if place == 0 else 2
            if reached * stride > output_stride:
                stride, dilation = 1, 2 * dilation
            reached *= stride
            planes, first = width * 2**place, before if stem in _OF_MMSEGMENTATION else dilation
            blocks = [block(inputs, planes, stride, first, stem)]
            blocks += [block(planes * block.expansion, planes, 1, dilation, stem) for _ in range(depth - 1)]
            self.add_module(f"layer{place + 1}", nn.Sequential(*blocks))
            inputs = planes * block.expansion

    def forward(self, images: Tensor) -> Stages:
        """Map normalised images (N, 3, H, W) to maps at H/stride, W/stride."""
        maps, found = self.layer0(images), []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            maps = stage(maps)
            found.append(maps)
        first, second, intermediate, last = found
        return Stages(intermediate, last, (first, second))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, planes: int, stride: int, dilation: int, stem: Stem) -> None:
        super().__init__()
        self.conv1 = Conv2d(inputs, planes, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        second = 1 if stem in _OF_MMSEGMENTATION else dilation
        self.conv2 = Conv2d(planes, planes, 3, padding=second, dilation=second, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = _shortcut(inputs, planes, stride, stem)

    def forward(self, maps: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, planes, H/stride, W/stride)."""
        residual = F.relu_(conv_bn(maps, self.conv1, self.bn1))
        return F.relu_(conv_bn(residual, self.conv2, self.bn2).add_(self.downsample(maps)))


class Bottleneck(nn.Module):
    """1x1, 3x3 (stride and dilation here), 1x1 convolutions and a shortcut."""

    expansion = 4

    def __init__(self, inputs: int, planes: int, stride: int, dilation: int, stem: Stem) -> None:
        super().__init__()
        self.conv1 = Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = Conv2d(planes, planes, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = Conv2d(planes, planes * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)
        self.downsample = _shortcut(inputs, planes * self.expansion, stride, stem)

    def forward(self, maps: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, 4 * planes, H/stride, W/stride)."""
        residual = F.relu_(conv_bn(maps, self.conv1, self.bn1))
        residual = F.relu_(conv_bn(residual, self.conv2, self.bn2))
        return F.relu_(conv_bn(residual, self.conv3, self.bn3).add_(self.downsample(maps)))


def _stem(stem: Stem, width: int) -> Layers:
    if stem == "plain":
        return Layers(
            Conv2d(3, width, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
        )  # fmt: skip
    first, last = (width // 2, width) if stem in _OF_MMSEGMENTATION else (width, 2 * width)
    return Layers(
        Conv2d(3, first, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(first), nn.ReLU(inplace=True),
        Conv2d(first, first, 3, padding=1, bias=False), nn.BatchNorm2d(first), nn.ReLU(inplace=True),
        Conv2d(first, last, 3, padding=1, bias=False), nn.BatchNorm2d(last), nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, padding=1),
    )  # fmt: skip


def stem_of(tensors: Mapping[str, Tensor]) -> Stem | None:
    """Return the stem that the weights of a ResNet are for, by their keys and shapes; None for neither."""
    first, block = tensors.get("layer0.0.weight"), tensors.get("layer1.0.conv1.weight")
    kernels: dict[tuple[int, ...], Stem] = {(7, 7): "plain", (3, 3): "deep"}
    stem = None if first is None else kernels.get(tuple(first.shape[2:]))
    if stem != "deep" or block is None or block.ndim != 4 or block.shape[1] != block.shape[0]:
        return stem
    shortcut = tensors.get("layer2.0.downsample.1.weight")  # the convolution of form d, behind its averages
    return "v1d" if shortcut is not None and shortcut.ndim == 4 else "v1c"


def _shortcut(inputs: int, outputs: int, stride: int, stem: Stem) -> nn.Module:
    if inputs == outputs and stride == 1:
        return nn.Identity()
    if stem == "v1d":  # what is left of an odd size is averaged as it is
        averages = nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False) if stride == 2 else nn.Identity()
        return Layers(averages, Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
    return Layers(Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))


# Block and blocks of each stage
RESNETS: dict[str, tuple[type[BasicBlock | Bottleneck], tuple[int, int, int, int]]] = {
    "resnet10": (BasicBlock, (1, 1, 1, 1)),  # for tests and machines without a GPU
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),  # the paper's
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
}
