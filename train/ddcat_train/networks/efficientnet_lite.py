"""EfficientNet-Lite 0 to 4, made for int8: ReLU6, no squeeze-and-excitation; dilated to output stride 8 or 16, or neither."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Literal

from torch import Tensor, nn

from ddcat_train.networks.backbone import Backbone, Stages
from ddcat_train.networks.convolution import Layers
from ddcat_train.networks.keys import renamed
from ddcat_train.networks.layers import conv_bn

__all__ = ["LITES", "EfficientNetLite", "efficientnet_lite"]

# Factors of channels and of blocks
LITES: dict[str, tuple[float, float]] = {
    "efficientnet_lite0": (1.0, 1.0),
    "efficientnet_lite1": (1.0, 1.1),
    "efficientnet_lite2": (1.1, 1.2),
    "efficientnet_lite3": (1.2, 1.4),
    "efficientnet_lite4": (1.4, 1.8),
}
_conv_bn = partial(conv_bn, eps=1e-3, momentum=0.01)

# Of EfficientNet-B0: expansion, channels, blocks, kernel, stride of the first block
_STAGES = (
    (1, 16, 1, 3, 1),
    (6, 24, 2, 3, 2),
    (6, 40, 2, 5, 2),
    (6, 80, 3, 3, 2),
    (6, 112, 3, 5, 1),
    (6, 192, 4, 5, 2),
    (6, 320, 1, 3, 1),
)
_STEM = 32  # channels; it is not scaled, and neither are the blocks of the first and the last stage
_ENDS = (1, 2, 4)  # the stages before strides 8, 16 and 32
# The keys of others: those of the first file of pretrained weights, and timm's. Behind them, our names of the same layers
_TENSORFLOW = {"_expand_conv": "expand.0", "_bn0": "expand.1", "_depthwise_conv": "depthwise.0", "_bn1": "depthwise.1",
               "_project_conv": "project.0", "_bn2": "project.1"}  # fmt: skip
_TIMM = {"conv_pw": "expand.0", "bn1": "expand.1", "conv_dw": "depthwise.0", "bn2": "depthwise.1",
         "conv_pwl": "project.0", "bn3": "project.1"}  # fmt: skip
_TIMM_FIRST = {"conv_dw": "depthwise.0", "bn1": "depthwise.1", "conv_pw": "project.0", "bn2": "project.1"}


class EfficientNetLite(Backbone):
    """
    EfficientNet-Lite up to its last inverted residual.

    The 1x1 convolution to 1280 channels only widens the maps for the classifier and is left out with it.

    TensorFlow pads a convolution of stride 2 by one less at the top and at the left than at the bottom and at the right where
    the size is even, and by the same where it is odd. In either case the last row and column are in the middle of a kernel: in
    an image that is turned by 180 degrees they are the first, as with the usual padding by half a kernel. So the network runs
    on turned images with turned kernels, which is exact for every size, and turns its maps back.

    Parameters
    ----------
    width, depth : float
        Factors of channels and blocks.
    output_stride : 8, 16 or 32
        A stride beyond it becomes a dilation of the blocks that follow.

    Attributes
    ----------
    intermediate_channels, channels, earlier_channels, stride, unused, mean, std
        See `Backbone`.
    """

    unused = ("_conv_head.", "_bn1.", "_fc.", "conv_head.", "bn2.", "classifier.")
    mean = std = (0.5, 0.5, 0.5)

    def __init__(self, width: float, depth: float, output_stride: Literal[8, 16, 32] = 16) -> None:
        super().__init__()
        self.stride = output_stride
        self.stem = Layers(*_conv_bn(3, _STEM, 3, stride=2), nn.ReLU6(inplace=True))
        inputs, reached, dilation = _STEM, 2, 1
        blocks: list[nn.Module] = []
        self._counts: list[int] = []
        stage_channels = []
        for place, (expansion, basic, basic_count, kernel, stage_stride) in enumerate(_STAGES):
            channels = _rounded(basic * width)
            count = basic_count if place in (0, len(_STAGES) - 1) else math.ceil(basic_count * depth)
            for index in range(count):
                stride = stage_stride if index == 0 else 1
                block_dilation = dilation
                if stride == 2 and reached == output_stride:
                    stride, dilation = 1, 2 * dilation  # the block itself keeps the dilation of those before it
                reached *= stride
                blocks.append(_InvertedResidual(inputs, channels, expansion, kernel, stride, block_dilation))
                inputs = channels
            self._counts.append(count)
            stage_channels.append(channels)
        self.blocks = nn.Sequential(*blocks)
        *earlier, self.intermediate_channels = (stage_channels[end] for end in _ENDS)
        self.earlier_channels, self.channels = tuple(earlier), inputs

    def forward(self, images: Tensor) -> Stages:
        """Map normalised images (N, 3, H, W) to maps at H/stride, W/stride."""
        maps = self.stem(images.flip(2, 3))
        found, first = [], 0
        for end in (*_ENDS, len(_STAGES) - 1):
            last = sum(self._counts[: end + 1])
            maps = self.blocks[first:last](maps)
            found.append(maps.flip(2, 3))
            first = last
        *earlier, intermediate, final = found
        return Stages(intermediate, final, tuple(earlier))

    def own(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights of a file of TensorFlow's kernels by the keys of efficientnet_lite_pytorch or timm, turned."""
        names = self._keys_of_timm() if "conv_stem.weight" in tensors else self._keys_of_tensorflow()
        theirs = tuple(names)
        kept = {key: value for key, value in tensors.items() if key.startswith(theirs) or not key.startswith(self.unused)}
        turned = {key: value.flip(2, 3) if key.startswith(theirs) and value.ndim == 4 else value for key, value in kept.items()}
        return renamed(turned, names)

    def _keys_of_tensorflow(self) -> dict[str, str]:
        names = {"_conv_stem.": "stem.0.", "_bn0.": "stem.1."}
        for index in range(sum(self._counts)):
            names |= {f"_blocks.{index}.{theirs}.": f"blocks.{index}.{ours}." for theirs, ours in _TENSORFLOW.items()}
        return names

    def _keys_of_timm(self) -> dict[str, str]:
        names = {"conv_stem.": "stem.0.", "bn1.": "stem.1."}
        index = 0
        for stage, count in enumerate(self._counts):
            layers = _TIMM if stage else _TIMM_FIRST
            for block in range(count):
                names |= {f"blocks.{stage}.{block}.{theirs}.": f"blocks.{index}.{ours}." for theirs, ours in layers.items()}
                index += 1
        return names


class _InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int, dilation: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = Layers(*_conv_bn(inputs, hidden, 1), nn.ReLU6(inplace=True)) if expansion != 1 else nn.Identity()
        self.depthwise = Layers(
            *_conv_bn(hidden, hidden, kernel, stride=stride, dilation=dilation, groups=hidden), nn.ReLU6(inplace=True)
        )
        self.project = Layers(*_conv_bn(hidden, outputs, 1))
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, maps: Tensor) -> Tensor:
        residual: Tensor = self.project(self.depthwise(self.expand(maps)))
        return maps + residual if self.shortcut else residual


def efficientnet_lite(name: str, output_stride: Literal[8, 16, 32]) -> EfficientNetLite:
    """Build one by its name."""
    return EfficientNetLite(*LITES[name], output_stride)


def _rounded(channels: float) -> int:
    """Round to a multiple of 8, upwards where more than a tenth would be lost."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest
