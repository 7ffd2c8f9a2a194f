"""Backbones trained on ImageNet: ResNets, robust or not, of semseg (deep stem) or torchvision (plain stem); its MobileNetV2."""

from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from ddcat.atomic_files import write_bytes
from ddcat_train import imagenet
from ddcat_train.config import ModelConfig
from ddcat_train.errors import CheckpointError
from ddcat_train.networks import build_backbone
from ddcat_train.networks.keys import renamed
from ddcat_train.networks.pretrained import state_dict_mismatches, summarise
from ddcat_train.weight_import.resnet_keys import find_resnet
from ddcat_train.weight_import.torch_file import TorchFile

__all__ = ["import_backbone"]

_STEM = {
    "conv1.": "layer0.0.",
    "bn1.": "layer0.1.",
    "conv2.": "layer0.3.",
    "bn2.": "layer0.4.",
    "conv3.": "layer0.6.",
    "bn3.": "layer0.7.",
}
_MOBILENET = "features.0.0."  # torchvision's key of its first convolution, which no ResNet has
# Robust ResNets come inside a module that normalises, `model.*`, and that may hold them twice, the second time to attack.
_WRAPPED = "model."
_AROUND = ("attacker.", "normalizer.", "normalize.")


def import_backbone(content: TorchFile, out: Path) -> str:
    """
    Write a file for `model.pretrained`.

    Parameters and errors are those of `ddcat_train.weight_import.import_checkpoint`.
    """
    tensors, around = _unwrap(content)
    mobile = any(key.startswith(_MOBILENET) for key in tensors)
    model = ModelConfig(backbone="mobilenet_v2") if mobile else find_resnet(renamed(tensors, _STEM), content.path)
    with torch.device("meta"):
        body = build_backbone(model)
    classifier = [key for key in tensors if key.startswith(body.unused)]
    kept = {key: value for key, value in tensors.items() if key not in classifier}
    faults = state_dict_mismatches(kept, renamed(body.state_dict(), {ours: theirs for theirs, ours in _STEM.items()}))
    if faults:
        form = model.backbone if mobile else f"{model.backbone} with the {model.stem} stem"
        raise CheckpointError(f"{content.path} does not fit a {form}: {summarise(faults)}")
    origin = {"file": content.path.name, "sha256": content.sha256}
    write_bytes(out, save({key: value.contiguous() for key, value in renamed(kept, _STEM).items()}, origin))
    stem = "" if mobile else f" for the {model.stem} stem"
    needs = "" if mobile else f" --set model.stem={model.stem}"
    width = f" --set model.width={model.width}" if model.width != 64 else ""
    left_out = ", ".join(dict.fromkeys(key.partition(".")[0] for key in (*classifier, *around))) or "nothing"
    return (
        f"{out}: {model.backbone}{stem}; left out: {left_out}\n"
        f"next: ddcat train PRESET --set model.backbone={model.backbone}{needs}{width} "
        f"--set model.pretrained={out}"
    )


def _unwrap(content: TorchFile) -> tuple[dict[str, Tensor], list[str]]:
    around = [key for key in content.tensors if key.startswith(_AROUND)]
    for key in around:
        if key.startswith(_AROUND[1:]) or ".normalize" in key:
            _check_normaliser(content.path, key, content.tensors[key])
    inside = {key.removeprefix(_WRAPPED): value for key, value in content.tensors.items() if key not in around}
    return inside, around


def _check_normaliser(path: Path, key: str, value: Tensor) -> None:
    ours = imagenet.MEAN if key.endswith("mean") else imagenet.STD
    if value.numel() != len(ours) or not torch.allclose(value.flatten().float(), torch.tensor(ours), atol=1e-3):
        raise CheckpointError(
            f"{path} normalises otherwise than the networks here: its {key} is {value.flatten().tolist()[:3]}, "
            f"expected {list(ours)}"
        )
