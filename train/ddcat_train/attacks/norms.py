"""The two norms that bound a perturbation: how a step follows a gradient, where it may end, and where it may begin."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ddcat_train.choices import NormName

__all__ = ["NORMS", "Norm", "each"]

_SMALLEST = 1e-10  # of a norm that is divided by


class Norm(NamedTuple):
    """
    A norm over all values of an image.

    Attributes
    ----------
    direction : callable
        Of a gradient (N, 3, H, W): the step of size 1 that raises a linear function most.
    project : callable
        Of images, clean images and a radius: the images in the ball and in [0, 1].
    draw : callable
        Of clean images, a radius and one generator for each image: points in the ball, not cut to [0, 1].
    """

    direction: Callable[[Tensor], Tensor]
    project: Callable[[Tensor, Tensor, float], Tensor]
    draw: Callable[[Tensor, float, list[torch.Generator]], Tensor]


def each(values: Tensor) -> Tensor:
    """Shape one value for each image to broadcast over it."""
    return values[:, None, None, None]


def _cut(images: Tensor, clean: Tensor, radius: float) -> Tensor:
    return torch.clamp(images, (clean - radius).clamp(min=0), (clean + radius).clamp(max=1))


def _uniform(images: Tensor, radius: float, generators: list[torch.Generator]) -> Tensor:
    draws = [torch.rand(images.shape[1:], generator=generator, dtype=torch.float32) for generator in generators]
    return images + radius * (_moved(draws, images) * 2 - 1)


def _unit(gradient: Tensor) -> Tensor:
    return gradient / each(gradient.flatten(1).norm(dim=1).clamp(min=_SMALLEST))


def _shortened(images: Tensor, clean: Tensor, radius: float) -> Tensor:
    # cutting to [0, 1] afterwards brings each value nearer to the clean one, and so leaves the ball as it is
    delta = images - clean
    length = delta.flatten(1).norm(dim=1)
    return (clean + delta * each((radius / length.clamp(min=_SMALLEST)).clamp(max=1))).clamp(0, 1)


def _on_spheres(images: Tensor, radius: float, generators: list[torch.Generator]) -> Tensor:
    """A normal direction, and a length that is uniform up to the radius."""
    draws, lengths = [], []
    for generator in generators:
        direction = torch.randn(images.shape[1:], generator=generator, dtype=torch.float32)
        draws.append(direction / direction.norm())
        lengths.append(torch.rand((), generator=generator, dtype=torch.float32))
    return images + radius * each(_moved(lengths, images)) * _moved(draws, images)


def _moved(draws: list[Tensor], images: Tensor) -> Tensor:
    # drawn on the CPU and in float32, so that they are the same on every device and in every precision
    drawn = torch.stack(draws)
    if images.is_cuda:
        drawn = drawn.pin_memory()  # from other memory, the host would wait for the device
    return drawn.to(images.device, images.dtype, non_blocking=True)


NORMS: dict[NormName, Norm] = {
    "linf": Norm(torch.sign, _cut, _uniform),
    "l2": Norm(_unit, _shortened, _on_spheres),
}
