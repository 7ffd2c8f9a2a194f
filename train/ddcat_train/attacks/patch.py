"""
Adversarial patches: a picture that is put somewhere into the scene, and harms the labels around it (Nesti et al., 2022).

The patch is learnt over random places, scales and brightnesses (expectation over transformations, Athalye et al., 2018). Only
pixels outside of it count, in the loss and in the figures: what it covers is lost anyway.
"""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ddcat.classes import IGNORE_INDEX
from ddcat_train.attacks.gradient import Model
from ddcat_train.errors import AttackError
from ddcat_train.losses import pixel_cross_entropy
from ddcat_train.networks.eval_mode import eval_mode

__all__ = ["Placed", "learn_patch", "patch_side", "place_patch"]

_SCALES = (0.8, 1.2)
_BRIGHTNESSES = (0.8, 1.2)
_RATE = 0.05  # of Adam, in [0, 1] units


class Placed(NamedTuple):
    """
    Images with a patch in them.

    Attributes
    ----------
    images : (N, 3, H, W) float
    outside : (N, H, W) bool
        Pixels that the patch does not cover.
    """

    images: Tensor
    outside: Tensor


def patch_side(height: int, width: int, share: float) -> int:
    """
    Return the side of a square patch that covers a share of an image.

    Raises
    ------
    AttackError
        Where the patch, at its largest scale, does not fit into the image.
    """
    side = round(math.sqrt(share * height * width)) if 0 < share < 1 else 0
    if not 1 <= side * _SCALES[1] <= min(height, width):
        raise AttackError(
            f"a patch of {share:g} of an image of {height}x{width} does not fit into it: use a share above 0 and below "
            f"{(min(height, width) / _SCALES[1]) ** 2 / (height * width):.2g}"
        )
    return side


def place_patch(images: Tensor, patch: Tensor, generator: torch.Generator, *, vary: bool = True) -> Placed:
    """
    Put a patch at a random place of each image.

    Parameters
    ----------
    images : (N, 3, H, W) float
        In [0, 1].
    patch : (C, s, s) float
        In [0, 1]; the result is differentiable in it.
    generator : torch.Generator
        On the CPU.
    vary : bool
        Also vary its scale and its brightness, by up to a fifth.

    Raises
    ------
    AttackError
        Where the patch does not fit into the images.
    """
    height, width = images.shape[2:]
    changed, outside = [], []
    for image in images:
        scale, light = (
            low + (high - low) * float(torch.rand((), generator=generator)) if vary else 1.0
            for low, high in (_SCALES, _BRIGHTNESSES)
        )
        side = max(round(patch.shape[-1] * scale), 1)
        if side > min(height, width):
            raise AttackError(
                f"a patch of {side} pixels a side does not fit into an image of {height}x{width}: use a smaller one"
            )
        shown = (
            F.interpolate(patch[None], (side, side), mode="bilinear", antialias=True)[0] if side != patch.shape[-1] else patch
        )
        top, left = (int(torch.randint(room - side + 1, (), generator=generator)) for room in (height, width))
        around = (left, width - left - side, top, height - top - side)
        mask = F.pad(torch.ones((side, side), dtype=torch.bool, device=images.device), around)
        changed.append(torch.where(mask, F.pad((shown * light).clamp(0, 1), around), image))
        outside.append(~mask)
    return Placed(torch.stack(changed), torch.stack(outside))


def learn_patch(
    model: Model,
    batches: Callable[[], Iterable[tuple[Tensor, Tensor]]],
    *,
    side: int,
    epochs: int = 10,
    seed: int = 0,
) -> Tensor:
    """
    Learn a patch on some images, to be tried on others.

    It raises the cross-entropy of the pixels outside of it that are still right.

    Parameters
    ----------
    model : callable
        Maps images to logits (N, K, H, W); a module is put into eval() while it is called, and put back.
    batches : callable
        Gives the batches of an epoch: images (N, 3, H, W) in [0, 1] and labels (N, H, W).
    side : int
        Of the patch, in pixels.
    seed : int
        Of the first patch, and of all places.

    Returns
    -------
    (C, side, side) float
        In [0, 1].
    """
    generator = torch.Generator().manual_seed(seed)
    channels = next((images.shape[1] for images, _ in batches()), 3)
    patch = torch.rand((channels, side, side), generator=generator).requires_grad_()
    optimizer = torch.optim.Adam([patch], lr=_RATE)
    for _ in range(epochs):
        for images, labels in batches():
            placed = place_patch(images, patch.to(images.device, images.dtype), generator)
            with torch.enable_grad(), eval_mode(model):
                logits = model(placed.images)
            truth = labels.masked_fill(~placed.outside | (logits.detach().argmax(1) != labels), IGNORE_INDEX)
            loss = pixel_cross_entropy(logits, truth).sum() / max(int((truth != IGNORE_INDEX).sum()), 1)
            (patch.grad,) = torch.autograd.grad(-loss, patch)
            optimizer.step()
            with torch.no_grad():
                patch.clamp_(0, 1)
    return patch.detach()
