"""ConvNeXt, with the stem of its authors or the convolutional one of adversarially trained ones, in four stages."""

import re
from collections.abc import Mapping
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddcat_train.choices import Stem
from ddcat_train.networks.backbone import Backbone, Stages
from ddcat_train.networks.keys import substituted
from ddcat_train.networks.layers import drop_path, drop_path_rates

__all__ = ["CONVNEXTS", "ConvNeXt", "by_our_keys"]

# Blocks of each stage, and channels
CONVNEXTS: dict[str, tuple[tuple[int, int, int, int], int]] = {
    "convnext_tiny": ((3, 3, 9, 3), 96),
    "convnext_small": ((3, 3, 27, 3), 96),
    "convnext_base": ((3, 3, 27, 3), 128),
}
_SCALE = 1e-6  # of the residual at the start
_EPSILON = 1e-6
# Keys of transformers, of timm (with the convolutional stem of adversarially trained ones) and of mmpretrain; ours are those of
# its authors. Each pair is applied to every key.
_THEIRS: tuple[tuple[str, str], ...] = (
    (r"^(?:convnext|backbone)\.", ""),
    (r"^embeddings\.patch_embeddings\.", "downsample_layers.0.0."),
    (r"^embeddings\.layernorm\.", "downsample_layers.0.1."),
    (r"^encoder\.stages\.(\d)\.downsampling_layer\.", r"downsample_layers.\1."),
    (r"^encoder\.stages\.(\d)\.layers\.", r"stages.\1."),
    (r"^hidden_states_norms\.stage1\.", "norm0."),
    (r"^hidden_states_norms\.stage2\.", "norm1."),
    (r"^hidden_states_norms\.stage3\.", "norm2."),
    (r"^hidden_states_norms\.stage4\.", "norm3."),
    (r"\.layernorm\.", ".norm."),
    (r"\.layer_scale_parameter$", ".gamma"),
    (r"^stem\.(?:stem\.)?", "downsample_layers.0."),
    (r"^downsample_layers\.0\.stem\.", "downsample_layers.0."),
    (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
    (r"^stages\.(\d)\.blocks\.", r"stages.\1."),
    (r"\.conv_dw\.|\.depthwise_conv\.", ".dwconv."),
    (r"\.mlp\.fc([12])\.", r".pwconv\1."),
    (r"\.pointwise_conv([12])\.", r".pwconv\1."),
)


class ConvNeXt(Backbone):
    """
    The four stages of a ConvNeXt (Liu et al., 2022), each behind a layer norm of its own.

    An incomplete patch at the right or at the bottom is left out, as its authors do.

    Parameters
    ----------
    depths : four ints
        Blocks of each stage.
    width : int
        Channels of the first stage.
    stem : Stem
        `plain`: patches of 4x4; `deep`: two 3x3 convolutions of stride 2 (Singh, Croce and Hein, 2023).
    drop_path : float
        Rate at which the last block is passed over in train(); it rises from 0 with the depth.

    Attributes
    ----------
    stem : Stem
    earlier_channels, intermediate_channels, channels, stride, unused
        See `Backbone`; maps are floor(H / 2) x floor(W / 2) of those of the stage before.
    """

    stride = 32
    norm0: nn.LayerNorm
    norm1: nn.LayerNorm
    norm2: nn.LayerNorm
    norm3: nn.LayerNorm
    unused = ("head.", "norm.", "classifier.", "layernorm.", "convnext.layernorm.")

    def __init__(self, depths: tuple[int, int, int, int], width: int = 96, stem: Stem = "deep", drop_path: float = 0.0) -> None:
        super().__init__()
        self.stem = stem
        widths = [width * 2**place for place in range(4)]
        *earlier, self.intermediate_channels, self.channels = widths
        self.earlier_channels = tuple(earlier)
        rates = iter(drop_path_rates(drop_path, sum(depths)))
        self.downsample_layers = nn.ModuleList([_deep_stem(width) if stem == "deep" else _plain_stem(width)])
        for inputs, outputs in pairwise(widths):
            self.downsample_layers.append(nn.Sequential(_ChannelNorm(inputs), nn.Conv2d(inputs, outputs, 2, stride=2)))
        self.stages = nn.ModuleList(
            nn.Sequential(*(_Block(channels, next(rates)) for _ in range(depth)))
            for channels, depth in zip(widths, depths, strict=True)
        )
        for place, channels in enumerate(widths):
            self.add_module(f"norm{place}", _ChannelNorm(channels))
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Stages:
        """Map normalised images (N, 3, H, W) to maps at a 4th, 8th, 16th and 32nd of the size."""
        maps, found = images, []
        norms = (self.norm0, self.norm1, self.norm2, self.norm3)
        for downsample, stage, norm in zip(self.downsample_layers, self.stages, norms, strict=True):
            maps = stage(downsample(maps))
            found.append(norm(maps))
        first, second, intermediate, last = found
        return Stages(intermediate, last, (first, second))

    def layers(self) -> list[nn.Module]:
        """Return the downsamplings and the blocks in their order, with each stage's norm in the one behind it."""
        found: list[nn.Module] = []
        norms: list[nn.Module] = [nn.Identity(), self.norm0, self.norm1, self.norm2]
        for norm, downsample, stage in zip(norms, self.downsample_layers, self.stages, strict=True):
            assert isinstance(stage, nn.Sequential)
            found += [nn.ModuleList([norm, downsample]), *stage]
        found[-1] = nn.ModuleList([found[-1], self.norm3])
        return found

    def own(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights of a file of its authors, of transformers, of timm or of mmpretrain, without a classifier."""
        mine = by_our_keys({key: value for key, value in tensors.items() if not key.startswith(self.unused)})
        norms = {key: value for key, value in self.state_dict().items() if re.match(r"norm\d\.", key)}
        return norms | mine  # a classifier has none behind its stages: they begin as the identity


def by_our_keys(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a ConvNeXt of its authors, of transformers, of timm or of mmpretrain; unknown keys stay."""
    return substituted(tensors, _THEIRS)


def _plain_stem(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, width, 4, stride=4), _ChannelNorm(width))


def _deep_stem(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, width // 2, 3, stride=2, padding=1), _ChannelNorm(width // 2), nn.GELU(),
        nn.Conv2d(width // 2, width, 3, stride=2, padding=1), _ChannelNorm(width), nn.GELU(),
    )  # fmt: skip


class _ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each place of (N, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=_EPSILON)

    def forward(self, maps: Tensor) -> Tensor:
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _Block(nn.Module):
    def __init__(self, channels: int, drop_path: float) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=_EPSILON)
        self.pwconv1 = nn.Linear(channels, 4 * channels)
        self.pwconv2 = nn.Linear(4 * channels, channels)
        self.gamma = nn.Parameter(torch.full((channels,), _SCALE))
        self.drop_path = drop_path

    def forward(self, maps: Tensor) -> Tensor:
        places = self.norm(self.dwconv(maps).permute(0, 2, 3, 1))  # (N, H, W, C)
        places = self.gamma * self.pwconv2(F.gelu(self.pwconv1(places)))
        return maps + drop_path(places, self.drop_path, training=self.training).permute(0, 3, 1, 2)
