"""Initial weights of a backbone from a file, strictly."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ddcat_train.errors import CheckpointError
from ddcat_train.networks.backbone import Backbone
from ddcat_train.networks.resnet import ResNet, stem_of

__all__ = ["load_backbone", "misfits", "told", "unreadable"]

_COUNTER = ".num_batches_tracked"  # absent from older files, and of no effect
_OURS = "model.backbone."  # what the keys of a checkpoint of ours begin with
_MOST_TOLD = 6  # the first and the last half: what is missing, and what is there instead


def load_backbone(backbone: Backbone, path: Path) -> None:
    """
    Load pretrained weights into a backbone.

    Parameters
    ----------
    path : Path
        A safetensors file with the backbone's own keys, those of its classifier being passed over; or a checkpoint of ours,
        of whatever method.

    Raises
    ------
    CheckpointError
        Naming what is missing or surplus and which shapes differ.
    """
    try:
        found = load_file(path)
    except FileNotFoundError as cause:
        raise CheckpointError(f"no such file of pretrained weights: {path}") from cause
    except (OSError, SafetensorError) as cause:
        raise unreadable(path, f"is not a readable safetensors file: {cause}") from cause
    ours = {key.removeprefix(_OURS): value for key, value in found.items() if key.startswith(_OURS)}
    found = ours or backbone.own(found)
    if isinstance(backbone, ResNet) and (stem := stem_of(found)) not in (None, backbone.stem):
        raise CheckpointError(f"{path} is for the {stem} stem, not for the {backbone.stem} one: use model.stem={stem}")
    wanted = backbone.state_dict()
    faults = misfits(found, wanted)
    if faults:
        raise CheckpointError(
            f"{path} does not fit a {type(backbone).__name__} of this form (model.backbone and what goes with it say which): "
            f"{told(faults)}"
        )
    backbone.load_state_dict(wanted | found)


def unreadable(path: Path, reason: str) -> CheckpointError:
    """Say what is wrong with a file of weights that is no safetensors file; of one of torch.save, how it is imported."""
    if path.suffix in (".pth", ".pt"):
        out = path.with_suffix(".safetensors")
        return CheckpointError(f"{path} is a file of torch.save: first 'ddcat data import-checkpoint {path} {out}'")
    return CheckpointError(f"{path} {reason}")


def misfits(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """Name every key that is missing or surplus and every shape that differs."""
    faults = [f"{key} is missing" for key in wanted if key not in found and not key.endswith(_COUNTER)]
    faults += [f"{key} is not a key of the network" for key in found if key not in wanted]
    faults += [
        f"{key} has shape {tuple(found[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in wanted
        if key in found and found[key].shape != wanted[key].shape
    ]
    return faults


def told(faults: Sequence[str]) -> str:
    """Join them to a line that can be read: a file of another network has a fault for each of hundreds of keys."""
    if len(faults) <= _MOST_TOLD:
        return "; ".join(faults)
    half = _MOST_TOLD // 2
    return "; ".join((*faults[:half], f"{len(faults) - _MOST_TOLD} more", *faults[-half:]))
