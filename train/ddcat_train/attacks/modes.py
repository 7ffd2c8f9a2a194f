"""Attacks see the network as inference does."""

import contextlib
from collections.abc import Iterator

from torch import nn

from ddcat_train.networks.convolution import Conv2d

__all__ = ["evaluating"]


@contextlib.contextmanager
def evaluating(model: object) -> Iterator[None]:
    """
    Put a module and all of its parts into eval() mode, and afterwards each back into the mode it was in.

    In eval() batch norm uses its running statistics and leaves them alone, and dropout is off. A callable that is no module
    has no mode. Until then its weights must stay as they are, and gradients are of images alone: convolutions keep what they
    make of their weights.
    """
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    training = [module for module in modules if module.training]
    convolutions = [module for module in modules if isinstance(module, Conv2d) and module.kept is None]
    for module in training:
        module.training = False
    for convolution in convolutions:
        convolution.kept = {}
    try:
        yield
    finally:
        for module in training:
            module.training = True
        for convolution in convolutions:
            convolution.kept = None
