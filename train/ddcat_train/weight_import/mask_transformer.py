"""Segmenters of Strudel et al., among them the robust ones of Croce, Singh and Hein."""

import math
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ddcat_train.config import ModelConfig
from ddcat_train.errors import CheckpointError
from ddcat_train.networks.whole.mask_transformer import HEAD_WIDTH, PATCH
from ddcat_train.weight_import.found import Found

__all__ = ["find_mask_transformer", "is_mask_transformer"]

_PATCHES, _POSITIONS, _CLASSES = "encoder.patch_embed.proj.weight", "encoder.pos_embed", "decoder.cls_emb"
_CLASSIFIER = "encoder.head."  # of ImageNet, which no segmenter uses
_NAMES = {"encoder.": "backbone.encoder.", "decoder.": "heads.main."}
_DATA = {21: "voc-pspnet50-undefended", 19: "cityscapes-pspnet50-undefended"}


def is_mask_transformer(tensors: Mapping[str, Tensor]) -> bool:
    """Return True where a file holds a ViT and a decoder by these names."""
    return _PATCHES in tensors and any(key.startswith("decoder.") for key in tensors)


def find_mask_transformer(tensors: Mapping[str, Tensor], path: Path) -> Found:
    """
    Find the network of ours that computes what a file holds.

    Parameters
    ----------
    path : Path
        Names the file in errors.

    Raises
    ------
    CheckpointError
        Where it has another encoder or decoder than that of ours.
    """
    patches, positions, classes = (tensors.get(key) for key in (_PATCHES, _POSITIONS, _CLASSES))
    if patches is None or positions is None or positions.ndim != 3:
        raise CheckpointError(f"{path} has no {_POSITIONS} (1, places, channels): use a file of a ViT with one for each patch")
    if classes is None or classes.ndim != 3:
        raise CheckpointError(f"{path} has no {_CLASSES}: of Segmenters, those with a mask transformer are supported")
    width, side = positions.shape[2], math.isqrt(positions.shape[1] - 1)
    if patches.shape[2:] != (PATCH, PATCH) or width % HEAD_WIDTH or side * side + 1 != positions.shape[1]:
        raise CheckpointError(
            f"{path} has a ViT of {width} channels, patches of {' x '.join(map(str, patches.shape[2:]))} and "
            f"{positions.shape[1] - 1} places, expected a multiple of {HEAD_WIDTH} channels, patches of {PATCH} x {PATCH}, and "
            "a square of places"
        )
    if classes.shape[1] < 3:
        raise CheckpointError(
            f"{path} has {classes.shape[1]} classes: of two, a Segmenter's last layer keeps no more than which is larger"
        )
    depth, decoder_depth = (_depth(tensors, part) for part in ("encoder", "decoder"))
    settings = {"image_size": side * PATCH, "width": width, "depth": depth, "decoder_depth": decoder_depth}
    classifier = any(key.startswith(_CLASSIFIER) for key in tensors)
    return Found(
        ModelConfig.model_validate(
            {"whole": "segmenter", "settings": settings, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
        ),
        {key: value for key, value in tensors.items() if not key.startswith(_CLASSIFIER)},
        names=_NAMES,
        classes=classes.shape[1],
        branches=("main",),
        deep=False,
        like=_DATA.get(classes.shape[1]),
        left_out=(_CLASSIFIER.rstrip("."),) if classifier else (),
        unsaid=("mean", "std"),
    )


def _depth(tensors: Mapping[str, Tensor], part: str) -> int:
    return len({match[1] for key in tensors if (match := re.match(rf"{part}\.blocks\.(\d+)\.", key))})
