"""Backbones trained on ImageNet, robust or not: ResNets of semseg (deep stem) or torchvision (plain stem), and others."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from ddcat.atomic_files import write_bytes
from ddcat_train import imagenet
from ddcat_train.config import ModelConfig
from ddcat_train.errors import CheckpointError
from ddcat_train.networks import build_backbone
from ddcat_train.networks.efficientnet_lite import LITES
from ddcat_train.networks.keys import renamed
from ddcat_train.networks.pretrained import state_dict_mismatches, summarise
from ddcat_train.weight_import.convnext_keys import convnext_form
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
_EFFICIENTNET = ("_conv_stem.", "conv_stem.")
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
    model = _form(tensors, content.path)
    resnet = str(model.backbone).startswith("resnet")
    with torch.device("meta"):
        body = build_backbone(model)
    classifier = [key for key in tensors if key.startswith(body.unused)]
    kept = {key: value for key, value in tensors.items() if key not in classifier}
    weights = renamed(kept, _STEM) if resnet else body.own(kept)
    if resnet:  # named as the file has them
        faults = state_dict_mismatches(kept, renamed(body.state_dict(), {ours: theirs for theirs, ours in _STEM.items()}))
    else:
        faults = state_dict_mismatches(weights, body.state_dict())
    stemmed = resnet or model.stem == "plain" or str(model.backbone).startswith("convnext")
    if faults:
        form = f"{model.backbone} with the {model.stem} stem" if stemmed else model.backbone
        raise CheckpointError(f"{content.path} does not fit a {form}: {summarise(faults)}")
    origin = {"file": content.path.name, "sha256": content.sha256}
    write_bytes(out, save({key: value.contiguous() for key, value in weights.items() if not value.is_meta}, origin))
    stem = f" for the {model.stem} stem" if stemmed else ""
    needs = f" --set model.stem={model.stem}" if stemmed else ""
    if model.output_stride == 32:
        needs += " --set model.output_stride=32 --set model.align_corners=false"
    width = f" --set model.width={model.width}" if model.width != 64 else ""
    left_out = ", ".join(dict.fromkeys(key.partition(".")[0] for key in (*classifier, *around))) or "nothing"
    return (
        f"{out}: {model.backbone}{stem}; left out: {left_out}\n"
        f"next: ddcat train PRESET --set model.backbone={model.backbone}{needs}{width} "
        f"--set model.pretrained={out}"
    )


def _form(tensors: Mapping[str, Tensor], path: Path) -> ModelConfig:
    """Return the backbone by its keys; shapes are checked by whoever builds it."""
    if any(key.startswith(_MOBILENET) for key in tensors):
        return ModelConfig(backbone="mobilenet_v2")
    if any(key.startswith(_EFFICIENTNET) for key in tensors):
        return ModelConfig(backbone=_efficientnet(tensors, path))
    if convnext := convnext_form(tensors, path):
        return ModelConfig.model_validate(convnext | {"align_corners": False})
    return find_resnet(renamed(tensors, _STEM), path)


def _efficientnet(tensors: Mapping[str, Tensor], path: Path) -> str:
    with torch.device("meta"):
        bodies = {name: build_backbone(ModelConfig(backbone=name)) for name in LITES}
    fitting = [name for name, body in bodies.items() if set(body.state_dict()) <= set(body.own(tensors))]
    found = tensors.get("_conv_head.weight", tensors.get("conv_head.weight"))
    channels = None if found is None else found.shape[1]
    chosen = [name for name in fitting if channels in (None, bodies[name].channels)]
    if not chosen:
        raise CheckpointError(f"{path} is an EfficientNet, but none of {', '.join(LITES)}")
    return chosen[-1]  # a deeper one has all layers of a shallower one of its width


def _unwrap(content: TorchFile) -> tuple[dict[str, Tensor], list[str]]:
    around = [key for key in content.tensors if key.startswith(_AROUND)]
    for key in around:
        if key.startswith(_AROUND[1:]) or ".normalize" in key:
            _check_normaliser(content.path, key, content.tensors[key])
    inside = {
        key.removeprefix("base_").removeprefix(_WRAPPED): value for key, value in content.tensors.items() if key not in around
    }
    return inside, around


def _check_normaliser(path: Path, key: str, value: Tensor) -> None:
    ours = imagenet.MEAN if key.endswith("mean") else imagenet.STD
    if value.numel() != len(ours) or not torch.allclose(value.flatten().float(), torch.tensor(ours), atol=1e-3):
        raise CheckpointError(
            f"{path} normalises in another way than the networks here: its {key} is {value.flatten().tolist()[:3]}, "
            f"expected {list(ours)}"
        )
