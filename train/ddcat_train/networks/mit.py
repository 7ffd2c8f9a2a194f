"""Mix Transformers, the backbones of SegFormer, in four stages."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddcat_train.networks.backbone import Backbone, Stages
from ddcat_train.networks.keys import substituted
from ddcat_train.networks.layers import as_maps, as_tokens, drop_path, drop_path_rates

__all__ = ["MITS", "MixTransformer"]

# Channels of one head, and blocks of each stage
MITS: dict[str, tuple[int, tuple[int, int, int, int]]] = {
    "mit_b0": (32, (2, 2, 2, 2)),
    "mit_b1": (64, (2, 2, 2, 2)),
    "mit_b2": (64, (3, 4, 6, 3)),
    "mit_b3": (64, (3, 4, 18, 3)),
    "mit_b4": (64, (3, 8, 27, 3)),
    "mit_b5": (64, (3, 6, 40, 3)),
}
# Of each stage: heads, kernel and stride of its patches, and by how much keys and values are fewer in each direction
_STAGES = ((1, 7, 4, 8), (2, 3, 2, 4), (5, 3, 2, 2), (8, 3, 2, 1))
_EPSILON = 1e-6
# Keys of mmsegmentation, and ours
_THEIRS: tuple[tuple[str, str], ...] = (
    (r"^layers\.(\d)\.0\.", r"stages.\1.embed."),
    (r"^layers\.(\d)\.1\.(\d+)\.attn\.attn\.", r"stages.\1.blocks.\2.attn."),
    (r"^layers\.(\d)\.1\.(\d+)\.ffn\.layers\.", r"stages.\1.blocks.\2.ffn."),
    (r"^layers\.(\d)\.1\.", r"stages.\1.blocks."),
    (r"^layers\.(\d)\.2\.", r"stages.\1.norm."),
)


class MixTransformer(Backbone):
    """
    Four stages of overlapping patches and attention whose keys and values are fewer (Xie et al., 2021).

    Parameters
    ----------
    width : int
        Channels of one head.
    depths : four ints
        Blocks of each stage.
    drop_path : float
        Rate at which the last block is passed over in train(); it rises from 0 with the depth.

    Attributes
    ----------
    earlier_channels, intermediate_channels, channels, stride
        See `Backbone`.
    """

    stride = 32

    def __init__(self, width: int, depths: tuple[int, int, int, int], drop_path: float = 0.0) -> None:
        super().__init__()
        widths = [width * heads for heads, *_ in _STAGES]
        *earlier, self.intermediate_channels, self.channels = widths
        self.earlier_channels = tuple(earlier)
        rates = iter(drop_path_rates(drop_path, sum(depths)))
        self.stages = nn.ModuleList()
        for inputs, outputs, depth, form in zip((3, *widths[:-1]), widths, depths, _STAGES, strict=True):
            heads, kernel, stride, fewer = form
            blocks: list[nn.Module] = [_Block(outputs, heads, fewer, next(rates)) for _ in range(depth)]
            self.stages.append(_Stage(_Patches(inputs, outputs, kernel, stride), blocks, outputs))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Stages:
        """Map normalised images (N, 3, H, W) to maps at a 4th, 8th, 16th and 32nd of the size."""
        maps, found = images, []
        for stage in self.stages:
            maps = stage(maps)
            found.append(maps)
        first, second, intermediate, last = found
        return Stages(intermediate, last, (first, second))

    def own(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights of a file of mmsegmentation."""
        return substituted(tensors, _THEIRS)


class _Patches(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)
        self.norm = nn.LayerNorm(outputs, eps=_EPSILON)

    def forward(self, maps: Tensor) -> Tensor:
        projected: Tensor = self.projection(maps)
        return as_maps(self.norm(as_tokens(projected)), projected)


class _Stage(nn.Module):
    def __init__(self, embed: _Patches, blocks: list[nn.Module], channels: int) -> None:
        super().__init__()
        self.embed = embed
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(channels, eps=_EPSILON)

    def forward(self, maps: Tensor) -> Tensor:
        maps = self.embed(maps)
        for block in self.blocks:
            maps = block(maps)
        tokens: Tensor = self.norm(as_tokens(maps))
        return as_maps(tokens, maps)


class _Block(nn.Module):
    def __init__(self, channels: int, heads: int, fewer: int, drop_path: float) -> None:
        super().__init__()
        hidden = 4 * channels
        self.norm1 = nn.LayerNorm(channels, eps=_EPSILON)
        self.attn = _Attention(channels, heads, fewer)
        self.norm2 = nn.LayerNorm(channels, eps=_EPSILON)
        # The place of a dropout is kept in the numbering, so that the keys are those of mmsegmentation.
        self.ffn = nn.Sequential(
            nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden), nn.GELU(), nn.Identity(),
            nn.Conv2d(hidden, channels, 1),
        )  # fmt: skip
        self.drop_path = drop_path

    def forward(self, maps: Tensor) -> Tensor:
        tokens = as_tokens(maps)
        attended = as_maps(self.attn(self.norm1(tokens), maps), maps)
        maps = maps + drop_path(attended, self.drop_path, training=self.training)
        hidden = self.ffn(as_maps(self.norm2(as_tokens(maps)), maps))
        return maps + drop_path(hidden, self.drop_path, training=self.training)


class _Attention(nn.Module):
    def __init__(self, channels: int, heads: int, fewer: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * channels, channels))  # queries, keys, values
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * channels))
        self.out_proj = nn.Linear(channels, channels)
        nn.init.xavier_uniform_(self.in_proj_weight)
        self.sr = nn.Conv2d(channels, channels, fewer, fewer) if fewer > 1 else None
        self.norm = nn.LayerNorm(channels, eps=_EPSILON) if fewer > 1 else None

    def forward(self, tokens: Tensor, like: Tensor) -> Tensor:
        seen = tokens
        if self.sr is not None and self.norm is not None:
            seen = self.norm(as_tokens(self.sr(as_maps(tokens, like))))
        channels = tokens.shape[2]
        query = F.linear(tokens, self.in_proj_weight[:channels], self.in_proj_bias[:channels])
        both = F.linear(seen, self.in_proj_weight[channels:], self.in_proj_bias[channels:])
        key, value = both[..., :channels], both[..., channels:]
        query, key, value = (self._split(part) for part in (query, key, value))  # (N, heads, n, c)
        attended = F.scaled_dot_product_attention(query, key, value)
        projected: Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        return projected

    def _split(self, tokens: Tensor) -> Tensor:
        return tokens.reshape(*tokens.shape[:2], self.heads, -1).transpose(1, 2)
