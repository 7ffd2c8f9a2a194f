"""The PyTorch models that an engine is timed beside, and how they label images."""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ddcat_bench.inputs import main_branch
from ddcat_bench.timing.reference_networks import plain_network
from ddcat_train.attacks import Model
from ddcat_train.checkpoints import Checkpoint
from ddcat_train.pixels import to_planes

__all__ = ["EAGER", "Images", "torch_labels"]

Images = npt.NDArray[np.uint8]

_CPU = torch.device("cpu")


def _original(checkpoint: Checkpoint, device: torch.device) -> Model:
    network = plain_network(checkpoint, device).requires_grad_(False)

    def logits(images: Tensor) -> Tensor:
        output: Tensor = network(images.contiguous(), ("main",))["main"]
        return output

    return logits


def _compiled(checkpoint: Checkpoint, device: torch.device) -> Model:
    model: Model = torch.compile(main_branch(checkpoint, device))
    return model


EAGER: Mapping[str, Callable[[Checkpoint, torch.device], Model]] = {
    "original": _original,
    "main branch": main_branch,
    "compiled": _compiled,
}


def torch_labels(model: Model, images: Images, device: torch.device = _CPU) -> Images:
    """
    Label images with PyTorch at the boundary of an engine.

    Parameters
    ----------
    model : callable
    images : (N, H, W, 3) uint8
    device : torch.device
        Device of the model.

    Returns
    -------
    (N, H, W) uint8
    """
    with torch.inference_mode():
        labels: Images = model(to_planes(images, device)).argmax(1).to(torch.uint8).cpu().numpy()
        return labels
