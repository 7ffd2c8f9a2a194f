"""Training on noise, which gives randomised smoothing something to certify (Cohen et al., 2019)."""

import dataclasses

import torch
from torch import Tensor

from ddcat_train.config import AttackConfig, MethodConfig
from ddcat_train.methods.adversarial import ADVERSARIAL
from ddcat_train.methods.base import MicroBatch, OptimizerStep
from ddcat_train.networks import Segmenter

__all__ = ["gaussian"]


def gaussian(segmenter: Segmenter, batch: MicroBatch, *, attack: AttackConfig, options: MethodConfig) -> list[OptimizerStep]:
    """
    Do the step of `undefended` on images with Gaussian noise of deviation `options.sigma`, cut to [0, 1] as for an engine.

    1 forward and 1 backward; each image's noise follows from its seed.
    """
    noisy = (batch.images + options.sigma * _noise(batch.images, batch.seeds)).clamp(0, 1)
    step = ADVERSARIAL["undefended"].step
    return step(segmenter, dataclasses.replace(batch, images=noisy), attack=attack, options=options)


def _noise(images: Tensor, seeds: Tensor) -> Tensor:
    # drawn on the CPU, so that every device has the same
    drawn = [torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds.tolist()]
    return torch.stack(drawn).to(images.device, images.dtype, non_blocking=True)
