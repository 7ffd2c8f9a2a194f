"""DAG (Xie et al., 2017): a small perturbation that makes nearly every pixel wrong, whatever its norm."""

import torch
from torch import Tensor

from ddcat.classes import IGNORE_INDEX
from ddcat_train.attacks.gradient import Model
from ddcat_train.attacks.norms import each
from ddcat_train.networks.eval_mode import eval_mode

__all__ = ["dag"]


def dag(
    model: Model, images: Tensor, labels: Tensor, *, steps: int = 200, size: float = 0.5 / 255, share: float = 0.99
) -> Tensor:
    """
    Add the gradient of the margins of the pixels that are still right, scaled to a largest value of `size`, until few are left.

    The perturbation is not bounded: its norm is the answer. Other attacks look for the most damage in a ball; this one looks
    for the distance to nearly total damage.

    Parameters
    ----------
    model : callable
        Maps images to logits (N, K, H, W); a module is put into eval() while it is called, and put back.
    images : (N, 3, H, W) float
        In [0, 1].
    labels : (N, H, W) int64
        255 = ignored.
    size : float
        Largest change of a value in a step, in [0, 1] units.
    share : float
        Share of an image's labelled pixels that are to be wrong.

    Returns
    -------
    (N, 3, H, W) float
        In [0, 1]. An image for which no such perturbation was found comes back as it was.
    """
    counted = labels != IGNORE_INDEX
    truth = labels.masked_fill(~counted, 0)[:, None]  # (N, 1, H, W)
    perturbation, found = torch.zeros_like(images), images.clone()
    left = torch.arange(len(images), device=images.device)
    for _ in range(steps):
        if not len(left):
            break
        delta = perturbation[left].requires_grad_()
        with torch.enable_grad(), eval_mode(model):
            attacked = (images[left] + delta).clamp(0, 1)
            logits = model(attacked)
            own = logits.gather(1, truth[left])
            other = logits.scatter(1, truth[left], -torch.inf).amax(1, keepdim=True)
            margin = (own - other)[:, 0]  # (N, H, W), below 0 where the pixel is wrong
            wrong = ((margin < 0) & counted[left]).flatten(1).sum(1)
            done = wrong >= share * counted[left].flatten(1).sum(1)
            # at a margin of exactly 0 a pixel must still be moved
            (gradient,) = torch.autograd.grad((margin * ((margin >= 0) & counted[left])).sum(), delta)
        found[left[done]] = attacked.detach()[done]
        largest = gradient.abs().flatten(1).amax(1).clamp(min=1e-8)
        perturbation[left] -= size * gradient / each(largest)
        left = left[~done]
    return found
