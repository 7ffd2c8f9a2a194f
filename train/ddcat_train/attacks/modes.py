"""Attacks see the network as inference does."""

import contextlib
from collections.abc import Iterator

from torch import nn

__all__ = ["evaluating"]


@contextlib.contextmanager
def evaluating(model: object) -> Iterator[None]:
    """
    Put a module and all of its parts into eval() mode, and afterwards each back into the mode it was in.

    In eval() batch norm uses its running statistics and leaves them alone, and dropout is off. A callable that is no module
    has no mode.
    """
    training = [module for module in model.modules() if module.training] if isinstance(model, nn.Module) else []
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
