"""A network in eval() mode for a while."""

import contextlib
from collections.abc import Iterator

from torch import nn

__all__ = ["eval_mode"]


@contextlib.contextmanager
def eval_mode(model: object) -> Iterator[None]:
    """
    Put a module and all of its parts into eval() mode, and afterwards each back into the mode it was in.

    In eval() mode batch norm uses its running statistics and leaves them alone, and dropout is off. A callable that is no
    module has no mode.
    """
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
