"""
Segmenters of mmsegmentation, and those that name their parts as it does: transformers' UPerNet, and the robust ones of Croce,
Singh and Hein.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddcat_train.choices import ContextName
from ddcat_train.config import ModelConfig
from ddcat_train.errors import CheckpointError
from ddcat_train.networks.convnext import by_our_keys
from ddcat_train.networks.keys import renamed
from ddcat_train.networks.mit import MITS, MixTransformer
from ddcat_train.weight_import.convnext_keys import convnext_form
from ddcat_train.weight_import.found import Found
from ddcat_train.weight_import.resnet_keys import find_resnet

__all__ = ["find_mmsegmentation", "is_mmsegmentation"]

_HEAD, _AUXILIARY, _BACKBONE = "decode_head.", "auxiliary_head.", "backbone."
# A key that only this decode head has, and the context of ours; the first that is there counts
_KINDS: tuple[tuple[str, ContextName], ...] = (
    ("sep_bottleneck.0.depthwise_conv.conv.weight", "deeplabv3plus"),
    ("image_pool.1.conv.weight", "deeplabv3"),
    ("lateral_convs.0.conv.weight", "upernet"),
    ("psp_modules.0.1.conv.weight", "pyramid"),
    ("fusion_conv.conv.weight", "segformer"),
)
# Their layers and ours: the places of a convolution and its batch norm. {n} stands for any number.
_LAYERS: dict[ContextName, dict[str, tuple[str, str]]] = {
    "pyramid": {
        "psp_modules.{n}.1": ("context.features.{n}.1", "context.features.{n}.2"),
        "bottleneck": ("heads.main.0", "heads.main.1"),
    },
    "deeplabv3": {
        "image_pool.1": ("context.convs.4.1", "context.convs.4.2"),
        "aspp_modules.{n}": ("context.convs.{n}.0", "context.convs.{n}.1"),
        "bottleneck": ("heads.main.0", "heads.main.1"),
    },
    "deeplabv3plus": {
        "image_pool.1": ("context.aspp.convs.4.1", "context.aspp.convs.4.2"),
        "aspp_modules.{n}.depthwise_conv": ("context.aspp.convs.{n}.0", "context.aspp.convs.{n}.1"),
        "aspp_modules.{n}.pointwise_conv": ("context.aspp.convs.{n}.3", "context.aspp.convs.{n}.4"),
        "aspp_modules.{n}": ("context.aspp.convs.{n}.0", "context.aspp.convs.{n}.1"),
        "bottleneck": ("context.bottleneck.0", "context.bottleneck.1"),
        "c1_bottleneck": ("context.finest.0", "context.finest.1"),
        "sep_bottleneck.0.depthwise_conv": ("context.refine.0", "context.refine.1"),
        "sep_bottleneck.0.pointwise_conv": ("context.refine.3", "context.refine.4"),
        "sep_bottleneck.1.depthwise_conv": ("context.refine.6", "context.refine.7"),
        "sep_bottleneck.1.pointwise_conv": ("heads.main.0", "heads.main.1"),
    },
    "upernet": {
        "psp_modules.{n}.1": ("context.pooling.features.{n}.1", "context.pooling.features.{n}.2"),
        "bottleneck": ("context.bottleneck.0", "context.bottleneck.1"),
        "lateral_convs.{n}": ("context.lateral.{n}.0", "context.lateral.{n}.1"),
        "fpn_convs.{n}": ("context.smooth.{n}.0", "context.smooth.{n}.1"),
        "fpn_bottleneck": ("heads.main.0", "heads.main.1"),
    },
    "segformer": {
        "convs.{n}": ("context.convs.{n}.0", "context.convs.{n}.1"),
        "fusion_conv": ("heads.main.0", "heads.main.1"),
    },
}
# The layer whose outputs are the channels of a context's parts
_WIDTHS: dict[ContextName, str] = {
    "pyramid": "psp_modules.0.1",
    "deeplabv3": "image_pool.1",
    "deeplabv3plus": "image_pool.1",
    "upernet": "lateral_convs.0",
    "segformer": "convs.0",
}
_DILATED: tuple[ContextName, ...] = ("pyramid", "deeplabv3", "deeplabv3plus")  # their backbones have stride 8
_STEM = {"stem.": "layer0.", "conv1.": "layer0.0.", "bn1.": "layer0.1."}
# Of a ConvNeXt as its authors name it. Below a head that is named as transformers does, only the code of Croce, Singh and Hein
# has it, whose networks take images in [0, 1].
_OF_AUTHORS = "downsample_layers.1.0.weight"
_OF_TRANSFORMERS = {".batch_norm.": ".bn.", f"{_HEAD}classifier.": f"{_HEAD}conv_seg.",
                    f"{_AUXILIARY}classifier.": f"{_AUXILIARY}conv_seg."}  # fmt: skip


def is_mmsegmentation(tensors: Mapping[str, Tensor]) -> bool:
    """Return True where a file has a decode head and a backbone by these names."""
    return any(key.startswith(_HEAD) for key in tensors) and any(key.startswith(_BACKBONE) for key in tensors)


def find_mmsegmentation(file: Mapping[str, Tensor], path: Path) -> Found:
    """
    Find the network of ours that computes what a file holds.

    Parameters
    ----------
    path : Path
        Names the file in errors.

    Raises
    ------
    CheckpointError
        Where its decode head or its backbone is not known.
    """
    tensors = {_of_mmsegmentation(key): value for key, value in file.items()}
    kind = next((context for key, context in _KINDS if _HEAD + key in tensors), None)
    classifier = tensors.get(f"{_HEAD}conv_seg.bias")
    if kind is None or classifier is None:
        raise CheckpointError(
            f"{path}: the decode head is not supported: use a file with PSPHead, ASPPHead, DepthwiseSeparableASPPHead, "
            "UPerHead or SegformerHead"
        )
    body = {key.removeprefix(_BACKBONE): value for key, value in tensors.items() if key.startswith(_BACKBONE)}
    width = tensors.get(f"{_HEAD}{_WIDTHS[kind]}.conv.weight")
    form: dict[str, Any] = {"context": kind, "align_corners": False, "context_width": None if width is None else len(width)}
    form_of_body, ours = _backbone(body, kind, path)
    robust = f"{_HEAD}classifier.bias" in file and f"{_BACKBONE}{_OF_AUTHORS}" in file
    if robust:
        form["normalise"] = "none"
    model = ModelConfig.model_validate(form_of_body | form)

    head = {key.removeprefix(_HEAD): value for key, value in tensors.items() if key.startswith(_HEAD)}
    if kind in ("deeplabv3", "deeplabv3plus") and "bottleneck.conv.weight" in head:
        head["bottleneck.conv.weight"] = _pooled_last(head["bottleneck.conv.weight"])
    names = {"conv_seg.": "heads.main.4."} | _names(kind)
    weights = {f"backbone.{key}": value for key, value in ours.items()} | {_renamed(key, names): head[key] for key in head}
    deep, left_out = _deep_supervision(tensors, model)
    return Found(
        model,
        weights | deep,
        names={},
        classes=len(classifier),
        branches=("main",),
        deep=bool(deep),
        like=_probably(model, len(classifier)),
        left_out=tuple(left_out),
        unsaid=("output_stride",) if kind in _DILATED else ("normalise",) if robust else (),
    )


def _of_mmsegmentation(key: str) -> str:
    for theirs, ours in _OF_TRANSFORMERS.items():
        key = key.replace(theirs, ours)
    return key


def _backbone(body: Mapping[str, Tensor], kind: ContextName, path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the form of a backbone, and its weights by our keys."""
    if convnext := convnext_form(body, path):
        return convnext, by_our_keys(body)
    if "layers.0.0.projection.weight" in body:
        return _mix_transformer(body, path)
    tensors = renamed(body, _STEM)
    found = find_resnet(tensors, path)
    if found.stem == "plain" and kind in _DILATED:
        raise CheckpointError(
            f"{path} has a ResNet with the plain stem and dilations of mmsegmentation, which the one here has not: use a "
            "file of a ResNetV1c or V1d"
        )
    if found.stem == "deep":
        raise CheckpointError(f"{path} has a ResNet with the stem of semseg, expected that of mmsegmentation's V1c or V1d")
    form = {
        "backbone": found.backbone,
        "width": found.width,
        "stem": found.stem,
        "output_stride": 8 if kind in _DILATED else 32,
    }
    return form, tensors


def _mix_transformer(body: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    blocks = {(int(match[1]), int(match[2])) for key in body if (match := re.match(r"layers\.(\d)\.1\.(\d+)\.", key))}
    depths = tuple(sum(stage == place for stage, _ in blocks) for place in range(4))
    width = len(body["layers.0.0.projection.weight"])
    name = next((name for name, form in MITS.items() if form == (width, depths)), None)
    if name is None:
        known = ", ".join(f"{name} {'-'.join(map(str, depths))} of {width}" for name, (width, depths) in MITS.items())
        raise CheckpointError(
            f"{path} has a MixVisionTransformer of {'-'.join(map(str, depths))} blocks and {width} channels, as none of {known}"
        )
    with torch.device("meta"):
        ours = MixTransformer(*MITS[name]).own(body)
    return {"backbone": name, "output_stride": 32}, ours


def _names(kind: ContextName) -> dict[str, str]:
    return {
        f"{theirs}.{part}.": f"{ours}."
        for theirs, places in _LAYERS[kind].items()
        for part, ours in zip(("conv", "bn"), places, strict=True)
    }


def _renamed(key: str, names: Mapping[str, str]) -> str:
    for theirs, ours in names.items():
        pattern = re.escape(theirs).replace(re.escape("{n}"), r"(\d+)")
        if match := re.match(pattern, key):
            return ours.replace("{n}", match[1] if match.groups() else "") + key[match.end() :]
    return _HEAD + key  # which is then named as surplus


def _pooled_last(weight: Tensor) -> Tensor:
    """Put the channels of the pooled part, which are the first of theirs, behind the others."""
    part = weight.shape[1] // 5
    return torch.cat([weight[:, part:], weight[:, :part]], dim=1)


def _deep_supervision(tensors: Mapping[str, Tensor], model: ModelConfig) -> tuple[dict[str, Tensor], list[str]]:
    """Return the head of deep supervision where it has the form of ours, or the names of what is left out."""
    theirs = {key.removeprefix(_AUXILIARY): value for key, value in tensors.items() if key.startswith(_AUXILIARY)}
    if not theirs:
        return {}, []
    first = theirs.get("convs.0.conv.weight")
    kernel = {"pyramid": 3, "deeplabv3": 3, "upernet": 3}.get(model.context, 1)
    if first is None or "convs.1.conv.weight" in theirs or first.shape != (first.shape[1] // 4, first.shape[1], kernel, kernel):
        return {}, [_AUXILIARY.rstrip(".")]
    names = {"convs.0.conv.": "heads.deep.0.", "convs.0.bn.": "heads.deep.1.", "conv_seg.": "heads.deep.4."}
    return renamed(theirs, names), []


def _probably(model: ModelConfig, classes: int) -> str | None:
    if str(model.backbone).startswith("convnext") and model.stem == "deep" and classes == 21:
        return "voc-upernet_convnext_tiny-pir-at"
    data = {21: "voc", 19: "cityscapes"}.get(classes)
    return None if data is None else f"{data}-pspnet50-undefended"
