"""SGD as in the paper, or AdamW: rates for backbone and heads, a linear warm-up, then the poly rule at every step."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ddcat_train.config import OptimConfig
from ddcat_train.methods import OptimizerStep
from ddcat_train.networks import Backbone, Segmenter
from ddcat_train.networks.backbone import in_order

__all__ = [
    "Gradients",
    "add_gradients",
    "apply_gradients",
    "build_optimizer",
    "learning_rate",
    "load_optimizer_state",
    "optimizer_state",
    "set_learning_rate",
]

Gradients = list[Tensor | None]  # of the parameters of one update
# What an optimiser keeps of each parameter, by the name that it has in a checkpoint
_STATE = {"momentum": "momentum_buffer", "average": "exp_avg", "square": "exp_avg_sq", "updates": "step"}


def build_optimizer(segmenter: Segmenter, config: OptimConfig) -> torch.optim.Optimizer:
    """
    Build the optimiser, with a group of parameters for each rate.

    The backbone's last layer has the rate of the schedule, each layer before it `layer_decay` times that of the next, and
    everything else `head_lr_factor` times the rate of the schedule. AdamW leaves norms and biases without weight decay.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for factor, parameter in _factors(segmenter, config):
        groups.setdefault((factor, config.name == "sgd" or parameter.ndim > 1), []).append(parameter)
    parameters = [
        {"params": of_group, "factor": factor, "weight_decay": config.weight_decay if decays else 0.0}
        for (factor, decays), of_group in groups.items()
    ]
    if config.name == "adamw":
        return torch.optim.AdamW(parameters, lr=config.lr, betas=config.betas)
    return torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum)


def _factors(segmenter: Segmenter, config: OptimConfig) -> Iterator[tuple[float, nn.Parameter]]:
    backbone = segmenter.backbone
    layers = backbone.layers() if isinstance(backbone, Backbone) else in_order(backbone)
    depth = {id(parameter): index for index, layer in enumerate(layers) for parameter in layer.parameters()}
    of_backbone = list(backbone.parameters())
    for parameter in of_backbone:
        yield config.layer_decay ** (len(layers) - 1 - depth.get(id(parameter), 0)), parameter
    known = {id(parameter) for parameter in of_backbone}
    for parameter in segmenter.parameters():
        if id(parameter) not in known:
            yield config.head_lr_factor, parameter


def learning_rate(config: OptimConfig, *, step: int, steps: int) -> float:
    """Return the backbone's rate for the update with index `step` of `steps`: a linear warm-up, then the poly rule."""
    warmup = round(config.warmup * steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    rate: float = config.lr * (1 - (step - warmup + config.poly_from) / (steps - warmup)) ** config.power
    return rate


def set_learning_rate(optimizer: torch.optim.Optimizer, config: OptimConfig, *, step: int, steps: int) -> float:
    """Set all rates for the update with index `step`, and return that of the backbone's last layer."""
    rate = learning_rate(config, step=step, steps=steps)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]
    return rate


def add_gradients(updates: Sequence[OptimizerStep], before: Sequence[Gradients] = ()) -> list[Gradients]:
    """
    Compute the gradients of all updates of a micro-batch at the present weights.

    Parameters
    ----------
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


def apply_gradients(
    optimizer: torch.optim.Optimizer,
    updates: Sequence[OptimizerStep],
    gradients: Sequence[Gradients],
    *,
    clip_norm: float | None = None,
) -> None:
    """Take one step for each update; gradients whose norm over all parameters of an update exceeds `clip_norm` get it."""
    for update, values in zip(updates, gradients, strict=True):
        optimizer.zero_grad()  # a parameter that has no gradient is skipped
        for parameter, value in zip(update.parameters, values, strict=True):
            parameter.grad = value
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(update.parameters, clip_norm)
        optimizer.step()


def optimizer_state(segmenter: Segmenter, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return what the optimiser keeps, by kind and parameter, such as `momentum.NAME`; absent before its first update."""
    states = [(name, optimizer.state.get(parameter, {})) for name, parameter in segmenter.named_parameters()]
    return {
        f"{kind}.{name}": state[key] for kind, key in _STATE.items() for name, state in states if state.get(key) is not None
    }


def load_optimizer_state(segmenter: Segmenter, optimizer: torch.optim.Optimizer, saved: dict[str, Tensor]) -> None:
    """Restore what `optimizer_state` returned, in the memory layout that it had."""
    for name, parameter in segmenter.named_parameters():
        for kind, key in _STATE.items():
            value = saved.get(f"{kind}.{name}")
            if value is not None:
                # A number of updates stays on the host, as torch has it.
                kept = value.clone() if kind == "updates" else torch.empty_like(parameter, requires_grad=False).copy_(value)
                optimizer.state[parameter][key] = kept
