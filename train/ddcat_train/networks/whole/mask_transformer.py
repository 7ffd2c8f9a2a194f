"""The Segmenter (Strudel et al., 2021): a ViT, and a transformer that makes a mask of each class."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddcat_train.networks.layers import as_maps, as_tokens, drop_path, drop_path_rates

__all__ = ["HEAD_WIDTH", "PATCH", "MaskTransformerSegmenter"]

PATCH = 16  # pixels of an image, and of its sides the multiple
HEAD_WIDTH = 64  # channels of a head of attention
_START = 10.0  # of two classes' scale: cosines of random directions are about a tenth


class MaskTransformerSegmenter(nn.Module):
    """
    A ViT over patches of 16 x 16 pixels, and a decoder over its tokens and one of each class.

    Keys and shapes are those of the authors' code. The positions' grid is resized to that of the image's patches, linear
    without aligned corners; on an image of `image_size` it stays as it is.

    Parameters
    ----------
    image_size : int
        Pixels a side of the images for which the grid of positions is made; a multiple of 16.
    width : int
        Channels of a token; a multiple of 64. ViT-S has 384.
    depth, decoder_depth : int
        Blocks of the ViT, and of the decoder.
    drop_path : float
        Rate at which the ViT's last block is passed over in train(); it rises from 0 with the depth.
    dropout : float
        Of the decoder, in train().

    Raises
    ------
    ValueError
        Where a size is no multiple.
    """

    def __init__(
        self,
        classes: int,
        *,
        image_size: int = 512,
        width: int = 384,
        depth: int = 12,
        decoder_depth: int = 2,
        drop_path: float = 0.1,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        for name, value, multiple in (("image_size", image_size, PATCH), ("width", width, HEAD_WIDTH)):
            if value < multiple or value % multiple:
                raise ValueError(f"expected {name} to be a multiple of {multiple}, got {value}")
        self.encoder = _Encoder(image_size // PATCH, width, depth, drop_path)
        self.decoder = _Decoder(classes, width, decoder_depth, dropout)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (N, 3, H, W), of sides that 16 divides, to logits (N, K, H / 16, W / 16)."""
        logits: Tensor = self.decoder(self.encoder(images))
        return logits


class _Encoder(nn.Module):
    def __init__(self, side: int, width: int, depth: int, drop_path: float) -> None:
        super().__init__()
        self.side = side
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, PATCH, PATCH)})
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + side * side, width))  # of the token of the whole, then of patches
        self.blocks = nn.ModuleList(_Block(width, drop_path=rate) for rate in drop_path_rates(drop_path, depth))
        self.norm = nn.LayerNorm(width)
        _initialise(self)
        for values in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(values, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """Return one token a patch, as maps (N, C, h, w)."""
        maps = self.patch_embed["proj"](images)
        tokens = as_tokens(maps)
        whole = (self.cls_token + self.pos_embed[:, :1]).expand(maps.shape[0], -1, -1)
        tokens = torch.cat([whole, tokens + self._positions(maps)], dim=1)  # (N, 1 + h w, C)
        for block in self.blocks:
            tokens = block(tokens)
        return as_maps(self.norm(tokens)[:, 1:], maps)

    def _positions(self, maps: Tensor) -> Tensor:
        channels = self.pos_embed.shape[2]
        grid = self.pos_embed[:, 1:].transpose(1, 2).reshape(1, channels, self.side, self.side)
        return as_tokens(F.interpolate(grid, size=(maps.shape[2], maps.shape[3]), mode="bilinear", align_corners=False))


class _Decoder(nn.Module):
    def __init__(self, classes: int, width: int, depth: int, dropout: float) -> None:
        super().__init__()
        self.classes = classes
        self.blocks = nn.ModuleList(_Block(width, dropout=dropout) for _ in range(depth))
        self.cls_emb = nn.Parameter(torch.empty(1, classes, width))
        self.proj_dec = nn.Linear(width, width)
        self.proj_patch = nn.Parameter(width**-0.5 * torch.randn(width, width))
        self.proj_classes = nn.Parameter(width**-0.5 * torch.randn(width, width))
        self.decoder_norm = nn.LayerNorm(width)
        self.mask_norm = nn.LayerNorm(classes) if classes > 2 else _Affine(classes)
        _initialise(self)
        nn.init.trunc_normal_(self.cls_emb, std=0.02)

    def forward(self, maps: Tensor) -> Tensor:
        """Return, of each place and class, how alike their tokens are: (N, K, h, w)."""
        tokens = torch.cat([self.proj_dec(as_tokens(maps)), self.cls_emb.expand(maps.shape[0], -1, -1)], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.decoder_norm(tokens)
        places = _of_length_one(tokens[:, : -self.classes] @ self.proj_patch)  # (N, h w, C)
        classes = _of_length_one(tokens[:, -self.classes :] @ self.proj_classes)  # (N, K, C)
        return as_maps(self.mask_norm(places @ classes.transpose(1, 2)), maps)


class _Affine(nn.Module):
    """
    Stands for the layer norm over classes where there are two.

    Of two values a layer norm keeps no more than which is larger, and its gradient is all but zero: a mask branch would not
    learn.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((classes,), _START))
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, values: Tensor) -> Tensor:
        return values * self.weight + self.bias


class _Block(nn.Module):
    def __init__(self, width: int, *, drop_path: float = 0.0, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = _Attention(width, dropout)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = _Perceptron(width, dropout)
        self.drop_path = drop_path

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + drop_path(self.attn(self.norm1(tokens)), self.drop_path, training=self.training)
        return tokens + drop_path(self.mlp(self.norm2(tokens)), self.drop_path, training=self.training)


class _Attention(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.dropout = dropout

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = (self._split(part) for part in self.qkv(tokens).chunk(3, dim=2))
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)  # (N, heads, n, c)
        return F.dropout(self.proj(attended.transpose(1, 2).flatten(2)), self.dropout, self.training)

    @staticmethod
    def _split(tokens: Tensor) -> Tensor:
        return tokens.reshape(*tokens.shape[:2], -1, HEAD_WIDTH).transpose(1, 2)


class _Perceptron(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = dropout

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = F.dropout(F.gelu(self.fc1(tokens)), self.dropout, self.training)
        return F.dropout(self.fc2(hidden), self.dropout, self.training)


def _of_length_one(tokens: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(tokens, dim=-1, keepdim=True)
    return tokens / lengths


def _initialise(module: nn.Module) -> None:
    def linear(layer: Any) -> None:
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    module.apply(linear)
