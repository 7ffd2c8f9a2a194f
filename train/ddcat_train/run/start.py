"""What a process begins a run with: its first weights and random states, which every rank must have."""

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ddcat.classes import Classes
from ddcat_train.checkpoints import find_checkpoint, load_checkpoint
from ddcat_train.config import Config
from ddcat_train.distributed.ranks import Ranks
from ddcat_train.errors import ConfigError
from ddcat_train.networks import ComposedSegmenter, Segmenter, build_whole, load_backbone

__all__ = ["check_same_start", "load_first_weights", "random_states", "restore_random_states"]

_PAPERS = ("voc", "cityscapes")  # the data sets of the paper


def load_first_weights(network: Segmenter, config: Config, classes: Classes) -> list[str]:
    """Load the weights that a new run begins with, if any, and return the note that says which are random."""
    model = config.model
    if model.start_from is not None:
        absent = load_checkpoint(model.start_from).start(network, classes)
        rest = f", which has no branch {', '.join(absent)}: random weights there" if absent else ", all branches included"
        return [f"starts from {model.start_from}{rest}"]
    if model.weights is not None:
        notes: list[str] = []
        begun = build_whole(model, classes=len(classes), heads=[*network.heads], weights=model.weights, notes=notes)
        network.load_state_dict(begun.state_dict())
        return notes
    if model.pretrained is not None:
        assert isinstance(network, ComposedSegmenter)  # the configuration says so
        load_backbone(network.backbone, find_checkpoint(model.pretrained))
        return []
    if config.data.name in _PAPERS:
        return [
            "starts from random weights, where the paper's released code loads those of ImageNet: --set model.pretrained=FILE"
        ]
    return ["starts from random weights (model.pretrained, model.start_from)"]


def random_states(device: torch.device) -> dict[str, Tensor]:
    """Return the states of this process's random generators: `cpu`, and `cuda` of a GPU."""
    states = {"cpu": torch.get_rng_state()}
    return states | {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else states


def restore_random_states(states: Mapping[str, Tensor], device: torch.device, *, rank: int, ranks: int) -> int:
    """Restore a rank's states from those of all, unless they are of another number of ranks; return that number."""
    rows = {kind: states[kind].view(-1, len(own)) for kind, own in random_states(device).items() if kind in states}
    if (saved := len(rows["cpu"])) == ranks:
        torch.set_rng_state(rows["cpu"][rank].clone())  # torch misreads the state of a view
        if "cuda" in rows:
            torch.cuda.set_rng_state(rows["cuda"][rank].clone(), device)
    return saved


def check_same_start(ranks: Ranks, described: str, tensors: Iterable[Tensor]) -> None:
    """Refuse ranks that begin with different descriptions or tensors; all of them call it."""
    if ranks.size == 1:
        return
    digest = hashlib.sha256(described.encode())
    for tensor in tensors:
        digest.update(tensor.cpu().contiguous().numpy().data)
    digests = ranks.gather(digest.hexdigest())
    other = next((rank for rank, its in enumerate(digests) if its != digests[0]), None)
    if other is not None:
        raise ConfigError(
            f"ranks 0 and {other} begin with different weights, steps or lists of images: every machine must see the same "
            "data set, pretrained weights and run folder"
        )
