"""A network in eval() mode for a while, with constant weights."""

import contextlib
from collections.abc import Iterator

from torch import nn

from ddcat_train.networks.convolution import Conv2d

__all__ = ["eval_mode"]


@contextlib.contextmanager
def eval_mode(model: object) -> Iterator[None]:
    """
    Put a module and all of its parts into eval() mode, and afterwards each back into the mode it was in.

    In eval() mode batch norm uses its running statistics and leaves them alone, and dropout is off. A callable that is no
    module has no mode. Within the context the weights must not change, and gradients are of images alone: convolutions keep
    what they compute of their weights.
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
