"""Which modules a model calls on an image, in which order, and what they are given and give."""

from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from ddcat_train.networks.eval_mode import eval_mode

__all__ = ["Call", "are_probabilities", "logits_of", "observe"]

_OF_ONE = 1e-3  # by which the sum of a pixel's probabilities may differ from 1, in half precision, too


@dataclass(eq=False)
class Call:
    """
    One call of a module.

    Attributes
    ----------
    path : str
        Of the module.
    given : tuple
        Its positional arguments.
    began, ended : int
        Its place among all beginnings and endings.
    """

    path: str
    given: tuple[Any, ...]
    began: int
    ended: int = 0
    result: Any = None


def observe(model: nn.Module, images: Tensor) -> tuple[list[Call], Any]:
    """
    Run a model in eval() mode, without gradients.

    Parameters
    ----------
    images : (N, 3, H, W) float
        Normalised.

    Returns
    -------
    calls : list of Call
        Of all modules but the model itself, in the order in which they began.
    output : object
        What the model gives.
    """
    calls: list[Call] = []
    pending: list[Call] = []
    clock = count()

    def before(path: str) -> Any:
        def note(module: nn.Module, given: tuple[Any, ...]) -> None:
            call = Call(path, given, next(clock))
            calls.append(call)
            pending.append(call)

        return note

    def after(module: nn.Module, given: tuple[Any, ...], result: Any) -> None:
        call = pending.pop()
        call.result, call.ended = result, next(clock)

    handles = []
    for path, module in model.named_modules():
        if path:
            handles += [module.register_forward_pre_hook(before(path)), module.register_forward_hook(after)]
    try:
        with torch.no_grad(), eval_mode(model):
            output = model(images.clone())  # which it may change in place
    finally:
        for handle in handles:
            handle.remove()
    return calls, output


def logits_of(output: Any) -> Tensor | None:
    """Return the logits (N, K, h, w) of what a model gives: a tensor, or the entry `logits` or `out`, or the first; or None."""
    for name in ("logits", "out"):
        if not isinstance(output, Tensor) and hasattr(output, "get") and isinstance(output.get(name), Tensor):
            output = output[name]
    if isinstance(output, list | tuple) and output:
        output = output[0]
    return output if isinstance(output, Tensor) and output.ndim == 4 else None


def are_probabilities(maps: Tensor) -> bool:
    """Return True for what a softmax over the classes gives, (N, K, h, w), which is no logits."""
    values = maps.detach().float()
    return maps.shape[1] > 1 and bool(values.min() >= 0) and bool((values.sum(1) - 1).abs().max() < _OF_ONE)
