"""Initial weights of a backbone from a file, strictly."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ddcat_train.errors import CheckpointError
from ddcat_train.networks.backbone import Backbone
from ddcat_train.networks.resnet import ResNet, stem_of

__all__ = ["load_backbone", "state_dict_mismatches", "summarise", "unreadable_error"]

_COUNTER = ".num_batches_tracked"  # absent from older files, and of no effect
_OURS = "model.backbone."  # what the keys of a checkpoint of ours begin with
_MOST_SHOWN = 6  # the first and the last half: what is missing, and what is there instead


def load_backbone(backbone: Backbone, path: Path) -> None:
    """
    Load pretrained weights into a backbone.

    Parameters
    ----------
    path : Path
        A safetensors file with the backbone's keys (those of a classifier are ignored), or a checkpoint of ddcat, of any
        method.

    Raises
    ------
    CheckpointError
        Naming what is missing or surplus and which shapes differ.
    """
    try:
        weights = load_file(path)
    except FileNotFoundError as cause:
        raise CheckpointError(f"no such file of pretrained weights: {path}; name yours by model.pretrained") from cause
    except (OSError, SafetensorError) as cause:
        raise unreadable_error(path, f"is not a readable safetensors file: {cause}") from cause
    ours = {key.removeprefix(_OURS): value for key, value in weights.items() if key.startswith(_OURS)}
    weights = ours or backbone.own(weights)
    if isinstance(backbone, ResNet) and (stem := stem_of(weights)) not in (None, backbone.stem):
        raise CheckpointError(f"{path} is for the {stem} stem, not for the {backbone.stem} one: use model.stem={stem}")
    own = backbone.state_dict()
    faults = state_dict_mismatches(weights, own)
    if faults:
        raise CheckpointError(
            f"{path} does not fit a {type(backbone).__name__} of this form (model.backbone and what goes with it say which): "
            f"{summarise(faults)}"
        )
    backbone.load_state_dict(own | weights)


def unreadable_error(path: Path, reason: str) -> CheckpointError:
    """Return the error for a file that is not safetensors; for a `torch.save` file it names the import command."""
    if path.suffix in (".pth", ".pt"):
        out = path.with_suffix(".safetensors")
        return CheckpointError(f"{path} is a file of torch.save: first 'ddcat data import-checkpoint {path} {out}'")
    return CheckpointError(f"{path} {reason}")


def state_dict_mismatches(weights: Mapping[str, Tensor], network: Mapping[str, Tensor]) -> list[str]:
    """List every key that is missing or surplus and every shape that differs."""
    faults = [f"{key} is missing" for key in network if key not in weights and not key.endswith(_COUNTER)]
    faults += [f"{key} is not a key of the network" for key in weights if key not in network]
    faults += [
        f"{key} has shape {tuple(weights[key].shape)} instead of {tuple(network[key].shape)}"
        for key in network
        if key in weights and weights[key].shape != network[key].shape
    ]
    return faults


def summarise(faults: Sequence[str]) -> str:
    """Join faults to one short line: a file of another network has one for each of hundreds of keys."""
    if len(faults) <= _MOST_SHOWN:
        return "; ".join(faults)
    half = _MOST_SHOWN // 2
    return "; ".join((*faults[:half], f"{len(faults) - _MOST_SHOWN} more", *faults[-half:]))
