"""A model of another library as a segmenter of one branch, where it cannot be cut."""

import torch
from torch import Tensor, nn

from ddcat_train.choices import Head
from ddcat_train.networks.eval_mode import eval_mode
from ddcat_train.networks.normalise import Normalise
from ddcat_train.networks.segmenter import Segmenter
from ddcat_train.networks.whole.calls import logits_of
from ddcat_train.networks.whole.cut import checked_logits
from ddcat_train.networks.whole.segmenter import (
    Blueprint,
    CutFeatures,
    check_gradient,
    check_same,
    enlarged,
    forget,
    noise_of,
    padded_planes,
    sample_size,
)

__all__ = ["UncutSegmenter"]


class UncutSegmenter(Segmenter):
    """
    A model that gives maps of logits, and has no layers that branches could have of their own.

    Raises
    ------
    ConfigError
        Where it gives other things than logits.
    """

    def __init__(self, blueprint: Blueprint, *, classes: int) -> None:
        super().__init__()
        self.classes, self._blueprint = classes, blueprint._replace(build=forget)
        self.normalise = Normalise(blueprint.mean, blueprint.std)
        self.traced, self.largest = sample_size(blueprint, self.traced), blueprint.largest
        self.backbone = model = blueprint.build(classes)
        self.heads = nn.ModuleDict({"main": nn.Identity()})
        noise = noise_of(blueprint).requires_grad_()
        with torch.enable_grad(), eval_mode(model):
            logits, again = (checked_logits(type(model).__name__, model(noise * 1), classes) for _ in range(2))
        check_same(logits, again)
        check_gradient(logits, noise)
        self._resizes = logits.shape[2:] != noise.shape[2:]

    def features(self, images: Tensor) -> CutFeatures:
        """Run the model; images (N, 3, H, W) in [0, 1], RGB."""
        logits = logits_of(self.backbone(padded_planes(images, self.normalise, self._blueprint)))
        return CutFeatures((logits,), {}, (images.shape[-2], images.shape[-1]))

    def low_resolution_logits(self, head: Head, features: CutFeatures) -> Tensor:
        """Return the logits (N, K, h, w) as the model gives them."""
        logits: Tensor = self.heads[head](*features.given)
        return logits

    def enlarge(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Resize logits to the padded image, bilinear without aligned corners, and cut the padding."""
        return enlarged(logits, size, self._blueprint, resizes=self._resizes)

    def shared(self) -> tuple[nn.Parameter, ...]:
        """Return all parameters of the model."""
        return tuple(self.backbone.parameters())
