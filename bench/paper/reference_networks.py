"""
The paper's networks in plain layers: nothing but torch's own, in the order in which the released code applies them.

What training is measured against is built of these, and not of the networks of `ddcat_train`, which may compute the same
numbers in quicker ways. Parameters and buffers have the names of ours, so that weights are loaded strictly.
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddcat_bench.errors import BenchError
from ddcat_train import imagenet
from ddcat_train.checkpoints import Checkpoint
from ddcat_train.choices import Head
from ddcat_train.config import ModelConfig

__all__ = ["PlainSegmenter", "plain_network"]

Conv = partial(nn.Conv2d, bias=False)


class PlainSegmenter(nn.Module):
    """
    Normalise, backbone, context, heads; logits at the size of the images.

    Parameters
    ----------
    model : ModelConfig
    classes : int
    heads : sequence of Head

    Raises
    ------
    BenchError
        If the backbone is an installed package's: there is no plain form of it.
    """

    def __init__(self, model: ModelConfig, *, classes: int, heads: Sequence[Head]) -> None:
        super().__init__()
        self.normalise = _Normalise()
        self.backbone = _backbone(model)
        channels, deep = self.backbone.channels, self.backbone.intermediate_channels
        pyramid = model.context == "pyramid"
        kernel, hidden, wide = (3, channels // 4, 2 * channels) if pyramid else (1, channels // 8, channels // 8 * 5)
        self.context = _PyramidPooling(channels) if pyramid else _ASPP(channels)
        shapes = dict.fromkeys(("main", "auxiliary", "mask"), (wide, hidden)) | {"deep": (deep, deep // 4)}
        self.heads = nn.ModuleDict(
            {
                head: nn.Sequential(
                    Conv(shapes[head][0], shapes[head][1], kernel, padding=kernel // 2),
                    nn.BatchNorm2d(shapes[head][1]),
                    nn.ReLU(inplace=True),
                    nn.Dropout2d(model.dropout),
                    nn.Conv2d(shapes[head][1], 2 if head == "mask" else classes, 1),
                )
                for head in heads
            }
        )

    def forward(self, images: Tensor, heads: Sequence[Head]) -> dict[Head, Tensor]:
        """Map (N, 3, H, W) in [0, 1] to the logits of each head, (N, K, H, W)."""
        intermediate, last = self.backbone(self.normalise(images))
        context = self.context(last)
        low = {head: self.heads[head](intermediate if head == "deep" else context) for head in heads}
        return {head: _resize(logits, images) for head, logits in low.items()}


def plain_network(checkpoint: Checkpoint, device: torch.device) -> PlainSegmenter:
    """
    Build the main branch of plain layers, with gradients of all parameters, in eval().

    Raises
    ------
    BenchError
        If the backbone is an installed package's.
    """
    description = checkpoint.description
    network = PlainSegmenter(description.config.model, classes=len(description.classes), heads=("main",))
    own = network.state_dict().keys()
    network.load_state_dict({key: value for key, value in checkpoint.part("model.").items() if key in own})
    return network.to(device).eval()


def _resize(maps: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(maps, size=like.shape[2:], mode="bilinear", align_corners=True)


class _Normalise(nn.Module):
    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(imagenet.MEAN).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(imagenet.STD).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        normalised: Tensor = (images - self.mean) / self.std
        return normalised


class _PyramidPooling(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        branch = channels // 4
        self.features = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(bins), Conv(channels, branch, 1), nn.BatchNorm2d(branch), nn.ReLU(inplace=True))
            for bins in (1, 2, 3, 6)
        )

    def forward(self, maps: Tensor) -> Tensor:
        return torch.cat([maps, *(_resize(feature(maps), maps) for feature in self.features)], 1)


class _ASPP(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        branch = channels // 8

        def then(*layers: nn.Module) -> nn.Sequential:
            return nn.Sequential(*layers, nn.BatchNorm2d(branch), nn.ReLU(inplace=True))

        self.convs = nn.ModuleList(
            [
                then(Conv(channels, branch, 1)),
                *(then(Conv(channels, branch, 3, padding=rate, dilation=rate)) for rate in (6, 12, 18)),
                then(nn.AdaptiveAvgPool2d(1), Conv(channels, branch, 1)),
            ]
        )

    def forward(self, maps: Tensor) -> Tensor:
        *local, pooling = self.convs
        return torch.cat([*(branch(maps) for branch in local), _resize(pooling(maps), maps)], 1)


class _Block(nn.Module):
    """A basic block or a bottleneck, by the number of its convolutions."""

    def __init__(self, inputs: int, planes: int, stride: int, dilation: int, *, bottleneck: bool) -> None:
        super().__init__()
        spread = partial(Conv, padding=dilation, dilation=dilation)
        outputs = 4 * planes if bottleneck else planes
        if bottleneck:
            self.conv1 = Conv(inputs, planes, 1)
            self.conv2 = spread(planes, planes, 3, stride=stride)
            self.conv3, self.bn3 = Conv(planes, outputs, 1), nn.BatchNorm2d(outputs)
        else:
            self.conv1 = spread(inputs, planes, 3, stride=stride)
            self.conv2 = spread(planes, planes, 3)
        self.bn1, self.bn2, self.relu = nn.BatchNorm2d(planes), nn.BatchNorm2d(planes), nn.ReLU(inplace=True)
        self.bottleneck, self.downsample = bottleneck, None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(Conv(inputs, outputs, 1, stride=stride), nn.BatchNorm2d(outputs))

    def forward(self, maps: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(maps)))))
        if self.bottleneck:
            residual = self.bn3(self.conv3(self.relu(residual)))
        residual += maps if self.downsample is None else self.downsample(maps)
        activated: Tensor = self.relu(residual)
        return activated


_RESNETS: dict[str, tuple[tuple[int, int, int, int], bool]] = {  # blocks of the stages, whether they are bottlenecks
    "resnet10": ((1, 1, 1, 1), False),
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet101": ((3, 4, 23, 3), True),
}


class _ResNet(nn.Module):
    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        depths, bottleneck = _RESNETS[str(model.backbone)]
        width, expansion = model.width, 4 if bottleneck else 1
        inputs, convolutions = (
            (2 * width, [(3, width, 3, 2), (width, width, 3, 1), (width, 2 * width, 3, 1)])
            if model.stem == "deep"
            else (width, [(3, width, 7, 2)])
        )
        stem: list[nn.Module] = []
        for before, after, kernel, stride in convolutions:
            stem += [Conv(before, after, kernel, stride, kernel // 2), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        self.layer0 = nn.Sequential(*stem, nn.MaxPool2d(3, stride=2, padding=1))
        stages = []
        for index, (depth, stride, dilation) in enumerate(zip(depths, (1, 2, 1, 1), (1, 1, 2, 4), strict=True)):
            planes = width * 2**index
            blocks = []
            for place in range(depth):
                blocks.append(_Block(inputs, planes, stride if place == 0 else 1, dilation, bottleneck=bottleneck))
                inputs = planes * expansion
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.intermediate_channels, self.channels = 4 * width * expansion, 8 * width * expansion

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        intermediate = self.layer3(self.layer2(self.layer1(self.layer0(images))))
        return intermediate, self.layer4(intermediate)


class _InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int, dilation: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        widen = [_conv_bn_relu6(inputs, hidden, 1)] if expansion > 1 else []
        depthwise = _conv_bn_relu6(hidden, hidden, 3, stride=stride, dilation=dilation, groups=hidden)
        self.conv = nn.Sequential(*widen, depthwise, Conv(hidden, outputs, 1), nn.BatchNorm2d(outputs))
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, maps: Tensor) -> Tensor:
        residual: Tensor = self.conv(maps)
        return maps + residual if self.shortcut else residual


def _conv_bn_relu6(
    inputs: int, outputs: int, kernel: int, *, stride: int = 1, dilation: int = 1, groups: int = 1
) -> nn.Sequential:
    convolution = Conv(inputs, outputs, kernel, stride, dilation * (kernel // 2), dilation=dilation, groups=groups)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True))


class _MobileNetV2(nn.Module):
    intermediate_channels, channels = 96, 320

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        # expansion, channels, stride and dilation of each block: what strides beyond the output stride becomes a dilation
        wide = model.output_stride == 16
        blocks = [
            (1, 16, 1, 1),
            (6, 24, 2, 1), (6, 24, 1, 1),
            (6, 32, 2, 1), (6, 32, 1, 1), (6, 32, 1, 1),
            (6, 64, 2 if wide else 1, 1), *[(6, 64, 1, 1 if wide else 2)] * 3,
            *[(6, 96, 1, 1 if wide else 2)] * 3,
            (6, 160, 1, 1 if wide else 2), *[(6, 160, 1, 2 if wide else 4)] * 2,
            (6, 320, 1, 2 if wide else 4),
        ]  # fmt: skip
        layers: list[nn.Module] = [_conv_bn_relu6(3, 32, 3, stride=2)]
        inputs = 32
        for expansion, outputs, stride, dilation in blocks:
            layers.append(_InvertedResidual(inputs, outputs, expansion, stride, dilation))
            inputs = outputs
        self.features = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        intermediate = self.features[:14](images)
        return intermediate, self.features[14:](intermediate)


def _backbone(model: ModelConfig) -> _ResNet | _MobileNetV2:
    if model.backbone in _RESNETS:
        return _ResNet(model)
    if model.backbone == "mobilenet_v2":
        return _MobileNetV2(model)
    raise BenchError(
        f"there is no plain form of the backbone {model.backbone} to measure against: use "
        f"{', '.join((*_RESNETS, 'mobilenet_v2'))}"
    )
