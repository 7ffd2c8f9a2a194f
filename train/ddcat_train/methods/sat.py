"""Standard adversarial training (Alg. 1): half of every batch is adversarial."""

import torch

from ddcat_train.attacks import bim
from ddcat_train.data.loader import Batch
from ddcat_train.methods.base import AttackSettings, Update
from ddcat_train.methods.supervised import supervised
from ddcat_train.networks import Segmenter

__all__ = ["sat"]


def sat(segmenter: Segmenter, batch: Batch, *, attack: AttackSettings, paper_literal: bool = False) -> list[Update]:
    """
    Train on the first floor(m/2) images as they are and on the others attacked; see `Step`.

    Only the images that are used are attacked: 2.5 forwards and 2.5 backwards of the batch for n = 3.
    """
    half = len(batch.images) // 2
    adversarial = bim(
        segmenter, batch.images[half:], batch.labels[half:], seeds=batch.seeds[half:], **attack.keywords(paper_literal)
    )
    images = torch.cat([batch.images[:half], adversarial])
    return supervised(segmenter, images, batch.labels, paper_literal=paper_literal)
