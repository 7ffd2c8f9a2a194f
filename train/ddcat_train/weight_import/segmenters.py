"""Segmenters of others: PSPNet and DeepLabv3 of semseg and the code of DDC-AT, those of mmsegmentation, and Segmenters."""

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from ddcat.classes import CAMVID, CITYSCAPES, VOC, Classes
from ddcat.yaml_text import parse_yaml
from ddcat_train.checkpoints import Description, Imported, SplitEntry, build_network, save_checkpoint
from ddcat_train.choices import ContextName
from ddcat_train.config import Config, MethodConfig, ModelConfig, load_config, parse_config
from ddcat_train.data import list_dataset
from ddcat_train.errors import CheckpointError, ConfigError
from ddcat_train.methods import METHODS
from ddcat_train.networks.keys import renamed
from ddcat_train.networks.normalise import UNCHANGED, Normalise
from ddcat_train.networks.pretrained import state_dict_mismatches, summarise
from ddcat_train.weight_import.found import Found
from ddcat_train.weight_import.mask_transformer import find_mask_transformer, is_mask_transformer
from ddcat_train.weight_import.mmsegmentation import find_mmsegmentation, is_mmsegmentation
from ddcat_train.weight_import.resnet_keys import find_resnet
from ddcat_train.weight_import.torch_file import TorchFile

__all__ = ["import_segmenter", "is_segmenter"]

_CONTEXTS: dict[str, ContextName] = {"ppm.": "pyramid", "aspp.": "aspp"}
_BACKBONE = {f"layer{stage}.": f"backbone.layer{stage}." for stage in range(5)}
_ONE_BRANCH = {"cls.": "heads.main.", "aux.": "heads.deep."}
_THREE_BRANCHES = {
    "cls1.": "heads.main.",
    "cls2.": "heads.auxiliary.",
    "mask1.": "heads.mask.",
    "aux_cls1.": "heads.deep.",
}
_DEEP = ("aux.", "aux_cls1.")
_CLASSES: dict[str, Classes] = {"voc": VOC, "cityscapes": CITYSCAPES, "camvid": CAMVID}  # those that need no file


def is_segmenter(tensors: Mapping[str, Tensor]) -> bool:
    """Return True where a file holds more than a backbone."""
    return (
        is_mask_transformer(tensors)
        or is_mmsegmentation(tensors)
        or any(key.startswith((*_CONTEXTS, *_ONE_BRANCH, *_THREE_BRANCHES)) for key in tensors)
    )


def import_segmenter(
    content: TorchFile, out: Path, *, like: str | None, data_root: Path | None, overrides: Sequence[str]
) -> str:
    """
    Write a checkpoint.

    Parameters and errors are those of `ddcat_train.weight_import.import_checkpoint`.
    """
    path = content.path
    if is_mask_transformer(content.tensors):
        found = find_mask_transformer(content.tensors, path)
    elif is_mmsegmentation(content.tensors):
        found = find_mmsegmentation(content.tensors, path)
    else:
        found = _find_semseg(content)
    source = like or _likely(path, found)
    config = _configuration(source, overrides, found, data_root)
    model = config.model
    branches = METHODS[config.method.name].branches
    if len(branches) != len(found.branches):
        raise CheckpointError(
            f"{path} has the branches {', '.join(found.branches)}, but {config.method.name} of {source} trains "
            f"{', '.join(branches)}: use --config for its own configuration"
        )
    classes, val = _data(config, data_root)
    if len(classes) != found.classes:
        raise CheckpointError(
            f"{path} has {found.classes} classes, {config.data.name} has {len(classes)}: name its configuration with --config, "
            "and its data set with --data-root"
        )
    with nullcontext() if model.whole else torch.device("meta"):  # a whole model is tried when it is cut
        network = build_network(config, len(classes))
    own = {f"normalise.{key}": value for key, value in _normalise(model).state_dict().items()}
    network_weights = {key: value for key, value in network.state_dict().items() if key not in own}
    theirs = {ours: theirs for theirs, ours in found.names.items()}
    faults = state_dict_mismatches(found.tensors, renamed(network_weights, theirs))
    if faults:
        raise CheckpointError(
            f"{path} does not fit a {model.architecture} of the method {config.method.name}: {summarise(faults)}"
        )
    counters = {key: torch.zeros_like(value, device="cpu") for key, value in network_weights.items() if value.ndim == 0}
    network.load_state_dict(counters | renamed(found.tensors, found.names) | own, assign=True)
    imported = Imported(file=path.name, sha256=content.sha256, epoch=content.epoch, like=source)
    save_checkpoint(
        out,
        Description(
            config=config, classes=classes, train=None, val=val, step=None, steps=None, scores={}, best=None, git_commit=None,
            versions={}, imported=imported,
        ),
        network,
    )  # fmt: skip
    parameters = sum(parameter.numel() for parameter in network.parameters())
    remarks = f"left out: {', '.join(found.left_out)}\n" if found.left_out else ""
    remarks += "".join(
        f"model.{key} is taken to be {getattr(model, key)}: the file does not say it; --set sets another\n"
        for key in found.unsaid
    )
    return (
        f"{out}: {model.architecture}, {len(classes)} classes, branches {', '.join(network.heads)}, "
        f"{parameters / 1e6:.2f} M parameters\n{remarks}"
        f"from {source}, as the file does not say it: trained by {config.method.name} on {config.data.name}\n"
        f"next: ddcat attack {out} --data-root DIR\n"
        f"      ddcat export {out} --engine ort\n"
        f"      ddcat train PRESET {_begun_with(model, path, out)}"
    )


def _normalise(model: ModelConfig) -> Normalise:
    if model.normalise == "none":
        return Normalise(*UNCHANGED)
    return Normalise() if model.mean is None or model.std is None else Normalise(model.mean, model.std)


def _begun_with(model: ModelConfig, path: Path, out: Path) -> str:
    """Return the options by which a training begins with the weights of a file."""
    if model.whole is None:
        return f"--set model.backbone={model.backbone} --set model.pretrained={out}"
    return f"--set model.whole={model.whole} --set 'model.settings={json.dumps(model.settings)}' --set model.weights={path}"


def _find_semseg(content: TorchFile) -> Found:
    path, tensors = content.path, content.tensors
    heads = _THREE_BRANCHES if _any(tensors, *_THREE_BRANCHES) else _ONE_BRANCH
    start = next((start for start in _CONTEXTS if _any(tensors, start)), None)
    if start is None:
        raise CheckpointError(f"{path} has heads, but no context, expected keys of ppm (PSPNet) or aspp (DeepLabv3)")
    model = find_resnet(tensors, path).model_copy(update={"context": _CONTEXTS[start]})
    last = tensors.get(f"{next(iter(heads))}4.bias")
    if last is None or last.ndim != 1:
        raise CheckpointError(f"{path} has no {next(iter(heads))}4.bias, which would tell the number of classes")
    return Found(
        model,
        tensors,
        _BACKBONE | {start: "context."} | heads,
        len(last),
        tuple(start.rstrip(".") for start in heads if start not in _DEEP),
        deep=_any(tensors, *_DEEP),
        like=None,
    )


def _any(tensors: Mapping[str, Tensor], *starts: str) -> bool:
    return any(key.startswith(starts) for key in tensors)


def _likely(path: Path, found: Found) -> str:
    data = {len(VOC): "voc", len(CITYSCAPES): "cityscapes"}.get(found.classes)
    if data is None:
        raise ConfigError(
            f"{path} does not say which {found.classes} classes it has: name a preset or configuration with --config"
        )
    if found.like is not None:
        return found.like
    network = {"pyramid": "pspnet50", "aspp": "deeplabv3_50"}[found.model.context]
    if len(found.branches) == 1:
        raise ConfigError(
            f"{path} does not say how it was trained: use --config {data}-{network}-undefended or {data}-{network}-sat"
        )
    return f"{data}-{network}-ddcat"


def _configuration(source: str, overrides: Sequence[str], found: Found, data_root: Path | None) -> Config:
    model, others = found.model.model_dump(), []
    for override in overrides:
        key, _, value = override.partition("=")
        if key.removeprefix("model.") in found.unsaid:
            model[key.removeprefix("model.")] = parse_yaml(value)
        elif override.startswith("model"):
            raise ConfigError(f"--set {override}: the file itself says what the network is")
        else:
            others.append(override)
    root = [] if data_root is None else [f"data.root={json.dumps(str(data_root))}"]
    config = load_config(source, [*others, *root])
    method = config.method.model_dump()
    if found.deep != bool(config.method.deep_weight):
        method["deep_weight"] = MethodConfig.model_fields["deep_weight"].default if found.deep else 0.0
    return parse_config(config.model_dump() | {"model": model, "method": method}, source)


def _data(config: Config, data_root: Path | None) -> tuple[Classes, SplitEntry | None]:
    data = config.data
    if data_root is not None:
        dataset = list_dataset(data.name, data_root, data.val_split)
        return dataset.classes, SplitEntry.of(dataset)
    if data.name not in _CLASSES:
        raise ConfigError(f"the classes of {data.name} are in a file of the data set: name its folder with --data-root")
    return _CLASSES[data.name], None
