"""Training without defence."""

from ddcat_train.data.loader import Batch
from ddcat_train.methods.base import AttackSettings, Update
from ddcat_train.methods.supervised import supervised
from ddcat_train.networks import Segmenter

__all__ = ["clean"]


def clean(segmenter: Segmenter, batch: Batch, *, attack: AttackSettings, paper_literal: bool = False) -> list[Update]:
    """Train on the batch as it is; see `Step`."""
    return supervised(segmenter, batch.images, batch.labels, paper_literal=paper_literal)
