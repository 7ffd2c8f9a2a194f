"""Batches, settings and networks for the training methods: small, in double precision, and the same in every test."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ddcat_train.choices import ContextName, MethodName
from ddcat_train.config import AttackConfig, MethodConfig, ModelConfig, load_config, parse_config
from ddcat_train.losses import valid_pixels
from ddcat_train.methods import METHODS, MicroBatch
from ddcat_train.networks import Segmenter, build_segmenter

CLASSES = 5
BASE = load_config("scenes-undefended").model_dump(mode="json")


def batch_of(count: int, size: tuple[int, int] = (33, 37), ignored: Sequence[float] = (), seed: int = 0) -> MicroBatch:
    """Smooth images with labels in blocks; `ignored` is the share of ignored pixels of the first images; half stay clean."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 9, 9, dtype=torch.float64, generator=generator)
    images = nn.functional.interpolate(coarse, size, mode="bilinear", align_corners=True)
    images = images + 0.1 * torch.rand(images.shape, dtype=torch.float64, generator=generator)
    blocks = torch.randint(CLASSES, (count, 5, 5), generator=generator).double()[:, None]
    labels = nn.functional.interpolate(blocks, size, mode="nearest")[:, 0].long()
    for i, share in enumerate(ignored):
        labels[i][torch.rand(size, generator=generator) < share] = 255
    seeds = 7 + torch.arange(count)
    valid = valid_pixels(labels).clamp(min=1)
    return MicroBatch(images.clamp(0, 1), labels, seeds, count // 2, valid, labels.numel())


def settings_of(method: MethodName, chosen: dict[str, Any]) -> tuple[MethodConfig, AttackConfig]:
    """Split what departs from a method's defaults into options and attack, as a configuration resolves them."""
    attack = {key: value for key, value in chosen.items() if key in AttackConfig.model_fields}
    options = {key: value for key, value in chosen.items() if key not in attack}
    config = parse_config(BASE | {"method": {"name": method, **options}, "attack": attack}, "test")
    return config.method, config.attack


def network_for(
    options: MethodConfig,
    batch: MicroBatch,
    *,
    context: ContextName = "pyramid",
    dropout: float = 0.0,
    mask_bias: float | None = None,
) -> Segmenter:
    """
    Build a tiny network in train mode, in double precision, with lived-in batch-norm statistics.

    Every branch is balanced on the batch, so that it predicts several classes and an attack changes some; the mask branch can
    be forced by its bias instead.
    """
    torch.manual_seed(1)
    heads = METHODS[options.name].heads(options)
    model = ModelConfig(backbone="resnet10", context=context, width=8)
    network = build_segmenter(model, classes=CLASSES, heads=heads).double()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.3, 0.3)
                module.momentum = 0.5
            if isinstance(module, nn.Dropout2d):
                module.p = dropout
        for seed in range(3):
            network(batch_of(4, seed=10 + seed).images, heads=heads)
        for head, logits in network.eval()(batch.images, heads=heads).items():
            network.heads[head][-1].bias -= logits.mean((0, 2, 3))
        if mask_bias is not None:
            network.heads["mask"][-1].bias[1] = mask_bias
    return network.train()
