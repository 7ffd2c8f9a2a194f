"""Where an attack begins."""

from collections.abc import Callable

import torch
from torch import Tensor

from ddcat_train.names import Start

__all__ = ["ATTACK_STARTS"]


def _clean(images: Tensor, epsilon: float, seeds: Tensor | None) -> Tensor:
    return images


def _lower(images: Tensor, epsilon: float, seeds: Tensor | None) -> Tensor:
    return (images - epsilon).clamp(0, 1)


def _random(images: Tensor, epsilon: float, seeds: Tensor | None) -> Tensor:
    if seeds is None or len(seeds) != len(images):
        raise ValueError("a random start needs one seed for each image")
    # Drawn on the CPU and in float32, so that it is the same on every device and in every precision.
    draws = [
        torch.rand(images.shape[1:], generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
        for seed in seeds.tolist()
    ]
    drawn = torch.stack(draws)
    if images.is_cuda:
        drawn = drawn.pin_memory()  # from other memory, the host would wait for the device
    noise = drawn.to(images.device, images.dtype, non_blocking=True) * 2 - 1
    return (images + epsilon * noise).clamp(0, 1)


# images in [0, 1], epsilon, one seed for each image where there is chance -> images in the ball and in [0, 1]
ATTACK_STARTS: dict[Start, Callable[[Tensor, float, Tensor | None], Tensor]] = {
    "clean": _clean,
    "random": _random,
    "lower": _lower,
}
