"""Training without defence."""

from ddcat_train.config import AttackConfig, MethodConfig
from ddcat_train.methods.base import Portion, Update
from ddcat_train.methods.supervised import supervised
from ddcat_train.networks import Segmenter

__all__ = ["clean"]


def clean(segmenter: Segmenter, portion: Portion, *, attack: AttackConfig, options: MethodConfig) -> list[Update]:
    """Train on the images as they are; see `Step`. 1 forward and 1 backward."""
    return supervised(segmenter, portion, portion.images, options)
