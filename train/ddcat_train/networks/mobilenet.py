"""MobileNetV2 with the keys of torchvision's file, dilated to output stride 8 or 16, or neither."""

from typing import Literal

from torch import Tensor, nn

from ddcat_train.networks.backbone import Backbone, Stages
from ddcat_train.networks.convolution import Layers
from ddcat_train.networks.layers import conv_bn

__all__ = ["MobileNetV2"]

# expansion, channels, blocks, stride of the first block
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
# Indices of the last blocks before strides 8, 16 and 32, and their channels
_ENDS = {3: 24, 6: 32, 13: 96}


class MobileNetV2(Backbone):
    """
    MobileNetV2 1.0 up to its last inverted residual.

    The 1x1 convolution to 1280 channels (`features.18`) only widens the maps for the classifier and is left out with it.

    Parameters
    ----------
    output_stride : 8, 16 or 32
        A stride beyond it becomes a dilation of the blocks that follow.

    Attributes
    ----------
    earlier_channels, intermediate_channels, channels, stride, unused
        See `Backbone`.
    """

    unused = ("classifier.", "features.18.")
    earlier_channels = (24, 32)
    intermediate_channels = 96
    channels = 320

    def __init__(self, output_stride: Literal[8, 16, 32] = 16) -> None:
        super().__init__()
        self.stride = output_stride
        layers: list[nn.Module] = [Layers(*conv_bn(3, 32, 3, stride=2), nn.ReLU6(inplace=True))]
        inputs, reached, dilation = 32, 2, 1
        for expansion, channels, blocks, stage_stride in _STAGES:
            for index in range(blocks):
                stride = stage_stride if index == 0 else 1
                block_dilation = dilation
                if stride == 2 and reached == output_stride:
                    stride, dilation = 1, 2 * dilation  # the block itself keeps the dilation of those before it
                reached *= stride
                layers.append(_InvertedResidual(inputs, channels, expansion, stride, block_dilation))
                inputs = channels
        self.features = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Stages:
        """Map normalised images (N, 3, H, W) to maps at H/stride, W/stride."""
        found, maps = [], images
        for index, layer in enumerate(self.features):
            maps = layer(maps)
            if index in _ENDS:
                found.append(maps)
        *earlier, intermediate = found
        return Stages(intermediate, maps, tuple(earlier))


class _InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int, dilation: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(Layers(*conv_bn(inputs, hidden, 1), nn.ReLU6(inplace=True)))
        depthwise = conv_bn(hidden, hidden, 3, stride=stride, dilation=dilation, groups=hidden)
        layers += [Layers(*depthwise, nn.ReLU6(inplace=True)), *conv_bn(hidden, outputs, 1)]
        self.conv = Layers(*layers)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, maps: Tensor) -> Tensor:
        residual: Tensor = self.conv(maps)
        return maps + residual if self.shortcut else residual
