"""The loss that training with and without adversarial images share, when there is one branch."""

from collections.abc import Mapping

from torch import Tensor

from ddcat_train.losses import mean_over_valid, pixel_cross_entropy
from ddcat_train.methods.base import Update
from ddcat_train.names import Head
from ddcat_train.networks import Segmenter

__all__ = ["deep_supervision", "supervised"]

WEIGHT = 0.4  # of semseg's loss on the third stage


def supervised(segmenter: Segmenter, images: Tensor, labels: Tensor, *, paper_literal: bool) -> list[Update]:
    """One update of all parameters by the cross-entropy of the main branch, and deep supervision where it is used."""
    outputs = segmenter(images, ("main",) if paper_literal else ("main", "deep"))
    main = mean_over_valid(pixel_cross_entropy(outputs["main"], labels), labels)
    deep, log = deep_supervision(outputs, labels)
    return [Update(main + deep, tuple(segmenter.parameters()), {"main": main.detach(), **log})]


def deep_supervision(outputs: Mapping[Head, Tensor], labels: Tensor) -> tuple[Tensor | float, dict[str, Tensor]]:
    """Weighted loss of the deep supervision head and its line in the log; nothing where the head was not asked for."""
    if "deep" not in outputs:
        return 0.0, {}
    loss = mean_over_valid(pixel_cross_entropy(outputs["deep"], labels), labels)
    return WEIGHT * loss, {"deep": loss.detach()}
