"""ResNets in the form of semseg: deep stem, stride on the 3x3 convolution, the last two stages dilated, output stride 8."""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ResNet", "Stages", "resnet10", "resnet18", "resnet34", "resnet50", "resnet101"]


class Stages(NamedTuple):
    """What a backbone hands on: the maps for deep supervision, and the last ones."""

    intermediate: Tensor
    last: Tensor


class ResNet(nn.Module):
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

    Attributes
    ----------
    intermediate_channels, channels : int
        Channels of `Stages.intermediate` (stage 3) and `Stages.last`.
    unused : tuple of str
        Prefixes of keys that weight files hold for the classifier.
    """

    unused = ("fc.",)

    def __init__(self, block: "type[BasicBlock | Bottleneck]", depths: tuple[int, int, int, int], width: int = 64) -> None:
        super().__init__()
        stem = 2 * width
        self.layer0 = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
            nn.Conv2d(width, stem, 3, padding=1, bias=False), nn.BatchNorm2d(stem), nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
        )  # fmt: skip
        self.intermediate_channels = 4 * width * block.expansion
        self.channels = 8 * width * block.expansion
        self.layer1 = _stage(block, stem, width, depths[0])
        self.layer2 = _stage(block, width * block.expansion, 2 * width, depths[1], stride=2)
        self.layer3 = _stage(block, 2 * width * block.expansion, 4 * width, depths[2], dilation=2)
        self.layer4 = _stage(block, self.intermediate_channels, 8 * width, depths[3], dilation=4)

    def forward(self, images: Tensor) -> Stages:
        """Map normalised images (N, 3, H, W) to maps at an eighth of the size."""
        intermediate = self.layer3(self.layer2(self.layer1(self.layer0(images))))  # (N, C3, H/8, W/8)
        return Stages(intermediate, self.layer4(intermediate))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, planes: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = _shortcut(inputs, planes, stride)

    def forward(self, maps: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, planes, H/stride, W/stride)."""
        residual = F.relu(self.bn1(self.conv1(maps)))
        return F.relu(self.bn2(self.conv2(residual)) + self.downsample(maps))


class Bottleneck(nn.Module):
    """1x1, 3x3 (stride and dilation here), 1x1 convolutions and a shortcut."""

    expansion = 4

    def __init__(self, inputs: int, planes: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, planes * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)
        self.downsample = _shortcut(inputs, planes * self.expansion, stride)

    def forward(self, maps: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, 4 * planes, H/stride, W/stride)."""
        residual = F.relu(self.bn1(self.conv1(maps)))
        residual = F.relu(self.bn2(self.conv2(residual)))
        return F.relu(self.bn3(self.conv3(residual)) + self.downsample(maps))


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if inputs == outputs and stride == 1:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))


def _stage(
    block: type[BasicBlock | Bottleneck], inputs: int, planes: int, depth: int, stride: int = 1, dilation: int = 1
) -> nn.Sequential:
    first = block(inputs, planes, stride, dilation)
    return nn.Sequential(first, *(block(planes * block.expansion, planes, 1, dilation) for _ in range(depth - 1)))


def resnet10(width: int = 64) -> ResNet:
    """One basic block a stage: for tests, and for machines without a GPU."""
    return ResNet(BasicBlock, (1, 1, 1, 1), width)


def resnet18(width: int = 64) -> ResNet:
    """ResNet-18."""
    return ResNet(BasicBlock, (2, 2, 2, 2), width)


def resnet34(width: int = 64) -> ResNet:
    """ResNet-34."""
    return ResNet(BasicBlock, (3, 4, 6, 3), width)


def resnet50(width: int = 64) -> ResNet:
    """ResNet-50, the paper's backbone."""
    return ResNet(Bottleneck, (3, 4, 6, 3), width)


def resnet101(width: int = 64) -> ResNet:
    """ResNet-101."""
    return ResNet(Bottleneck, (3, 4, 23, 3), width)
