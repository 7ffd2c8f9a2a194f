"""SGD as in the paper: two learning rates, decayed by the poly rule at every step."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ddcat_train.config import OptimConfig
from ddcat_train.methods import OptimizerStep
from ddcat_train.networks import Segmenter

__all__ = [
    "Gradients",
    "add_gradients",
    "apply_gradients",
    "build_optimizer",
    "learning_rate",
    "load_momentum",
    "momentum_buffers",
    "set_learning_rate",
]

Gradients = list[Tensor | None]  # of the parameters of one update


def build_optimizer(segmenter: Segmenter, config: OptimConfig) -> torch.optim.SGD:
    """Build SGD with one group for the backbone and one, `head_lr_factor` times faster, for all else."""
    backbone = list(segmenter.backbone.parameters())
    known = {id(parameter) for parameter in backbone}
    others = [parameter for parameter in segmenter.parameters() if id(parameter) not in known]
    return torch.optim.SGD(
        [{"params": backbone, "factor": 1.0}, {"params": others, "factor": config.head_lr_factor}],
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )


def learning_rate(config: OptimConfig, *, step: int, steps: int) -> float:
    """Return the backbone's rate for the update with index `step` of `steps`, by the poly rule."""
    rate: float = config.lr * (1 - (step + config.poly_from) / steps) ** config.power
    return rate


def set_learning_rate(optimizer: torch.optim.SGD, config: OptimConfig, *, step: int, steps: int) -> float:
    """Set both rates for the update with index `step`, and return that of the backbone."""
    rate = learning_rate(config, step=step, steps=steps)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]
    return rate


def add_gradients(updates: Sequence[OptimizerStep], before: Sequence[Gradients] = ()) -> list[Gradients]:
    """
    Compute the gradients of all updates of a micro-batch at the present weights.

    Parameters
    ----------
    updates : sequence of OptimizerStep
    before : sequence of Gradients
        Those of the micro-batches before it, summed in place; none for the first.

    Returns
    -------
    list of Gradients
        One for each update, in the order of its parameters; None where its loss does not depend on one.
    """
    gradients: list[Gradients] = []
    for index, update in enumerate(updates):
        for place, parameter in enumerate(update.parameters):
            parameter.grad = before[index][place] if before else None
        update.loss.backward(inputs=update.parameters, retain_graph=index + 1 < len(updates))  # type: ignore[no-untyped-call]
        gradients.append([parameter.grad for parameter in update.parameters])
    return gradients


def apply_gradients(optimizer: torch.optim.SGD, updates: Sequence[OptimizerStep], gradients: Sequence[Gradients]) -> None:
    """Take one step for each update."""
    for update, values in zip(updates, gradients, strict=True):
        optimizer.zero_grad()  # SGD skips a parameter that has no gradient
        for parameter, value in zip(update.parameters, values, strict=True):
            parameter.grad = value
        optimizer.step()


def momentum_buffers(segmenter: Segmenter, optimizer: torch.optim.SGD) -> dict[str, Tensor]:
    """Return the momentum of each parameter by its name; absent before its first update."""
    states = ((name, optimizer.state.get(parameter, {})) for name, parameter in segmenter.named_parameters())
    return {name: state["momentum_buffer"] for name, state in states if state.get("momentum_buffer") is not None}


def load_momentum(segmenter: Segmenter, optimizer: torch.optim.SGD, buffers: dict[str, Tensor]) -> None:
    """Restore what `momentum_buffers` returned."""
    for name, parameter in segmenter.named_parameters():
        if name in buffers:
            optimizer.state[parameter]["momentum_buffer"] = buffers[name].to(parameter.device)
