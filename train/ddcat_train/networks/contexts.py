"""What gathers context from the whole image: pyramid pooling (PSPNet) and ASPP (DeepLabv3)."""

import torch
from torch import Tensor, nn

from ddcat_train.networks.layers import conv_bn_relu, pool_to_bins, upsample

__all__ = ["ASPP", "PyramidPooling"]


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
        self.features = nn.ModuleList(nn.Sequential(nn.Identity(), *conv_bn_relu(inputs, branch)) for _ in self.bins)
        self.channels = inputs + branch * len(self.bins)
        self.head_kernel, self.head_channels = 3, branch

    def forward(self, maps: Tensor) -> Tensor:
        """Map (N, C, h, w) to (N, 2 C, h, w)."""
        size = (maps.shape[-2], maps.shape[-1])
        pooled = [upsample(f(pool_to_bins(maps, bins)), size) for f, bins in zip(self.features, self.bins, strict=True)]
        return torch.cat([maps, *pooled], dim=1)


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
                nn.Sequential(*conv_bn_relu(inputs, branch)),
                *(nn.Sequential(*conv_bn_relu(inputs, branch, 3, rate)) for rate in self.rates),
                nn.Sequential(nn.Identity(), *conv_bn_relu(inputs, branch)),  # image pooling; keys as released
            ]
        )
        self.channels = branch * len(self.convs)
        self.head_kernel, self.head_channels = 1, branch

    def forward(self, maps: Tensor) -> Tensor:
        """Map (N, C, h, w) to (N, 5 C / 8, h, w)."""
        *local, pooling = self.convs
        whole: Tensor = pooling(pool_to_bins(maps, 1))  # (N, C/8, 1, 1)
        branches = [convolution(maps) for convolution in local]
        return torch.cat([*branches, whole.expand_as(branches[0])], dim=1)
