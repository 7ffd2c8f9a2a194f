"""ResNets in the form of semseg: stride on the 3x3 convolution, the last two stages dilated, output stride 8."""

from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from ddcat_train.choices import Stem
from ddcat_train.networks.backbone import Backbone, Stages
from ddcat_train.networks.convolution import Conv2d, Layers, conv_bn

__all__ = ["ResNet", "resnet10", "resnet18", "resnet34", "resnet50", "resnet101", "stem_of"]


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
        Three 3x3 convolutions, as in the paper, or torchvision's one of 7x7.

    Attributes
    ----------
    stem : Stem
    intermediate_channels, channels, stride, unused
        See `Backbone`; the intermediate maps are those of stage 3.
    """

    stride = 8
    unused = ("fc.",)

    def __init__(
        self,
        block: "type[BasicBlock | Bottleneck]",
        depths: tuple[int, int, int, int],
        width: int = 64,
        stem: Stem = "deep",
    ) -> None:
        super().__init__()
        self.stem = stem
        self.layer0 = _STEMS[stem](width)
        self.intermediate_channels = 4 * width * block.expansion
        self.channels = 8 * width * block.expansion
        self.layer1 = _stage(block, 2 * width if stem == "deep" else width, width, depths[0])
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
        self.conv1 = Conv2d(inputs, planes, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = Conv2d(planes, planes, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = _shortcut(inputs, planes, stride)

    def forward(self, maps: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, planes, H/stride, W/stride)."""
        residual = F.relu_(conv_bn(maps, self.conv1, self.bn1))
        return F.relu_(conv_bn(residual, self.conv2, self.bn2).add_(self.downsample(maps)))


class Bottleneck(nn.Module):
    """1x1, 3x3 (stride and dilation here), 1x1 convolutions and a shortcut."""

    expansion = 4

    def __init__(self, inputs: int, planes: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = Conv2d(planes, planes, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = Conv2d(planes, planes * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)
        self.downsample = _shortcut(inputs, planes * self.expansion, stride)

    def forward(self, maps: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, 4 * planes, H/stride, W/stride)."""
        residual = F.relu_(conv_bn(maps, self.conv1, self.bn1))
        residual = F.relu_(conv_bn(residual, self.conv2, self.bn2))
        return F.relu_(conv_bn(residual, self.conv3, self.bn3).add_(self.downsample(maps)))


def _deep_stem(width: int) -> Layers:
    outputs = 2 * width
    return Layers(
        Conv2d(3, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
        Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
        Conv2d(width, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, padding=1),
    )  # fmt: skip


def _plain_stem(width: int) -> Layers:
    return Layers(
        Conv2d(3, width, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, padding=1),
    )  # fmt: skip


_STEMS: dict[Stem, Callable[[int], Layers]] = {"deep": _deep_stem, "plain": _plain_stem}


def stem_of(tensors: Mapping[str, Tensor]) -> Stem | None:
    """Return the stem that the weights of a ResNet are for, by their keys and shapes; None for neither."""
    stems: dict[tuple[int, ...], Stem] = {(7, 7): "plain", (3, 3): "deep"}
    first = tensors.get("layer0.0.weight")
    return None if first is None else stems.get(tuple(first.shape[2:]))


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if inputs == outputs and stride == 1:
        return nn.Identity()
    return Layers(Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))


def _stage(
    block: type[BasicBlock | Bottleneck], inputs: int, planes: int, depth: int, stride: int = 1, dilation: int = 1
) -> nn.Sequential:
    first = block(inputs, planes, stride, dilation)
    return nn.Sequential(first, *(block(planes * block.expansion, planes, 1, dilation) for _ in range(depth - 1)))


def resnet10(width: int = 64, stem: Stem = "deep") -> ResNet:
    """Build a ResNet of one basic block a stage, for tests and machines without a GPU."""
    return ResNet(BasicBlock, (1, 1, 1, 1), width, stem)


def resnet18(width: int = 64, stem: Stem = "deep") -> ResNet:
    """ResNet-18."""
    return ResNet(BasicBlock, (2, 2, 2, 2), width, stem)


def resnet34(width: int = 64, stem: Stem = "deep") -> ResNet:
    """ResNet-34."""
    return ResNet(BasicBlock, (3, 4, 6, 3), width, stem)


def resnet50(width: int = 64, stem: Stem = "deep") -> ResNet:
    """ResNet-50, the paper's backbone."""
    return ResNet(Bottleneck, (3, 4, 6, 3), width, stem)


def resnet101(width: int = 64, stem: Stem = "deep") -> ResNet:
    """ResNet-101."""
    return ResNet(Bottleneck, (3, 4, 23, 3), width, stem)
