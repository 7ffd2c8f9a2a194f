"""The methods of one branch and one cross-entropy: they differ in the images that are attacked, and in the attack."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ddcat_train.attacks import bim, segpgd
from ddcat_train.choices import MethodName
from ddcat_train.config import AttackConfig, MethodConfig
from ddcat_train.losses import pixel_cross_entropy
from ddcat_train.methods.base import Method, MicroBatch, OptimizerStep, deep_supervision
from ddcat_train.networks import Segmenter

__all__ = ["ADVERSARIAL"]


@dataclass(frozen=True)
class _OneBranch:
    """
    A `TrainingStep` by the cross-entropy of the main branch, with deep supervision where it is used.

    Attributes
    ----------
    attack : callable, or None
        None: no image is attacked.
    keeps_clean : bool
        True where the first images of a batch stay clean. They are not attacked either, which saves their forwards.
    """

    attack: Callable[..., Tensor] | None = None
    keeps_clean: bool = False

    def __call__(
        self, segmenter: Segmenter, batch: MicroBatch, *, attack: AttackConfig, options: MethodConfig
    ) -> list[OptimizerStep]:
        images, first = batch.images, batch.clean if self.keeps_clean else 0
        if self.attack is not None and first < len(images):
            settings = attack.for_method(options).model_dump()
            attacked = self.attack(segmenter, images[first:], batch.labels[first:], seeds=batch.seeds[first:], **settings)
            images = torch.cat([images[:first], attacked]) if first else attacked
        outputs = segmenter(images, ("main", "deep") if options.deep_weight else ("main",))
        main = pixel_cross_entropy(outputs["main"], batch.labels, batch.weights).sum() / batch.valid
        deep, deep_log = deep_supervision(outputs, batch, options)
        return [OptimizerStep(main + deep, tuple(segmenter.parameters()), {"main": main.detach(), **deep_log})]


# With the cost of a batch, for n steps of the attack
ADVERSARIAL: dict[MethodName, Method] = {
    # Images as they are. 1 forward and 1 backward.
    "undefended": Method(_OneBranch(), branches=("main",), attacks=False),
    # First images as they are, the others attacked (Alg. 1). 2.5 forwards and 2.5 backwards for n = 3 and a share of a half.
    "sat": Method(_OneBranch(bim, keeps_clean=True), branches=("main",), attacks=True),
    # All images under PGD (Madry et al., 2018). n + 1 forwards and n + 1 backwards.
    "pgd-at": Method(_OneBranch(bim), branches=("main",), attacks=True),
    # All images under SegPGD (Gu et al., 2022). n + 1 forwards and n + 1 backwards.
    "segpgd-at": Method(_OneBranch(segpgd), branches=("main",), attacks=True),
}
