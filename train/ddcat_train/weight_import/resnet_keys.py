"""Recognition of a ResNet by the keys and shapes of a file."""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ddcat_train.choices import BackboneName
from ddcat_train.config import ModelConfig
from ddcat_train.errors import CheckpointError
from ddcat_train.networks.resnet import stem_of

__all__ = ["find_resnet"]

# convolutions in a block, and blocks in each stage
_FORMS: dict[tuple[int, tuple[int, ...]], BackboneName] = {
    (2, (1, 1, 1, 1)): "resnet10",
    (2, (2, 2, 2, 2)): "resnet18",
    (2, (3, 4, 6, 3)): "resnet34",
    (3, (3, 4, 6, 3)): "resnet50",
    (3, (3, 4, 23, 3)): "resnet101",
}
_BLOCK = re.compile(r"layer([1-4])\.(\d+)\.")


def find_resnet(tensors: Mapping[str, Tensor], path: Path) -> ModelConfig:
    """
    Return backbone, width and stem; missing keys and other shapes are not checked here.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        With the keys of `ResNet`, among others.
    path : Path
        Names the file in errors.

    Raises
    ------
    CheckpointError
        Where there are other blocks than those of a known one.
    """
    places = {(int(match[1]), match[2]) for key in tensors if (match := _BLOCK.match(key))}
    if not places:
        starts = ", ".join(sorted({key.partition(".")[0] for key in tensors})[:8])
        raise CheckpointError(
            f"{path} is neither a segmenter of semseg, DDC-AT or mmsegmentation nor a ResNet, MobileNetV2, EfficientNet-Lite "
            f"or ConvNeXt whose names are known: its keys begin with {starts}"
        )
    blocks = tuple(sum(stage == number for stage, _ in places) for number in (1, 2, 3, 4))
    convolutions = 3 if any(key.startswith("layer1.0.conv3.") for key in tensors) else 2
    if (convolutions, blocks) not in _FORMS:
        known = ", ".join(f"{name} {'-'.join(map(str, form[1]))}" for form, name in _FORMS.items())
        raise CheckpointError(
            f"{path} has {'-'.join(map(str, blocks))} blocks of {convolutions} convolutions in layer1 to layer4, as none "
            f"of {known}"
        )
    first = tensors.get("layer1.0.conv1.weight")
    width = 64 if first is None or first.ndim != 4 else len(first)
    return ModelConfig(backbone=_FORMS[convolutions, blocks], width=width, stem=stem_of(tensors) or "deep")
