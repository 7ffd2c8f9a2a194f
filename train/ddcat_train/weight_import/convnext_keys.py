"""Recognition of a ConvNeXt by the keys and shapes of a file."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ddcat_train.errors import CheckpointError
from ddcat_train.networks.convnext import CONVNEXTS, by_our_keys

__all__ = ["convnext_form"]

_BLOCK = re.compile(r"stages\.(\d)\.(\d+)\.gamma$")


def convnext_form(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Any] | None:
    """
    Return the keys of `ModelConfig` that a ConvNeXt has; None where the file holds none.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        By the keys of its authors, of timm, of transformers or of mmpretrain.
    path : Path
        Names the file in errors.

    Raises
    ------
    CheckpointError
        Where it has other blocks or channels than those that are known.
    """
    ours = by_our_keys(tensors)
    blocks = {(int(match[1]), int(match[2])) for key in ours if (match := _BLOCK.match(key))}
    if not blocks:
        return None
    depths = tuple(sum(stage == place for stage, _ in blocks) for place in range(4))
    gamma = ours.get("stages.0.0.gamma")
    width = 0 if gamma is None else len(gamma)
    name = next((name for name, form in CONVNEXTS.items() if form == (depths, width)), None)
    if name is None:
        known = ", ".join(f"{name} {'-'.join(map(str, depths))} of {width}" for name, (depths, width) in CONVNEXTS.items())
        raise CheckpointError(
            f"{path} has a ConvNeXt of {'-'.join(map(str, depths))} blocks and {width} channels, as none of {known}"
        )
    stem = "deep" if "downsample_layers.0.3.weight" in ours else "plain"
    return {"backbone": name, "stem": stem, "output_stride": 32}
