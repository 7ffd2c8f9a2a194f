"""The loss that training with and without adversarial images share, when there is one branch."""

from collections.abc import Mapping

from torch import Tensor

from ddcat_train.config import MethodConfig
from ddcat_train.losses import pixel_cross_entropy
from ddcat_train.methods.base import Portion, Update
from ddcat_train.names import Head
from ddcat_train.networks import Segmenter

__all__ = ["deep_supervision", "supervised"]


def supervised(segmenter: Segmenter, portion: Portion, images: Tensor, options: MethodConfig) -> list[Update]:
    """One update of all parameters by the cross-entropy of the main branch, and deep supervision where it is used."""
    outputs = segmenter(images, ("main", "deep") if options.deep_weight else ("main",))
    main = pixel_cross_entropy(outputs["main"], portion.labels, portion.weights).sum() / portion.valid
    deep, log = deep_supervision(outputs, portion, options)
    return [Update(main + deep, tuple(segmenter.parameters()), {"main": main.detach(), **log})]


def deep_supervision(
    outputs: Mapping[Head, Tensor], portion: Portion, options: MethodConfig
) -> tuple[Tensor | float, dict[str, Tensor]]:
    """Weighted loss of the deep supervision head and its line in the log; nothing where it is not used."""
    if not options.deep_weight:
        return 0.0, {}
    loss = pixel_cross_entropy(outputs["deep"], portion.labels, portion.weights).sum() / portion.valid
    return options.deep_weight * loss, {"deep": loss.detach()}
