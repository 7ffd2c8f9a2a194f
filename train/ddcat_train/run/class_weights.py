"""Class weights of the losses: as the configuration lists them, or balanced by the training labels."""

import numpy as np
import numpy.typing as npt

from ddcat_train.config import TrainConfig
from ddcat_train.data import Dataset
from ddcat_train.data.survey import survey
from ddcat_train.distributed.ranks import Ranks
from ddcat_train.errors import ConfigError, DataError

__all__ = ["balanced", "class_weights"]


def class_weights(config: TrainConfig, dataset: Dataset, ranks: Ranks) -> tuple[float, ...] | None:
    """
    Return the class weights of a run; all ranks call it.

    Parameters
    ----------
    dataset : Dataset
        The training split; its labels are counted for balanced weights.

    Raises
    ------
    ConfigError
        Where there is not one for each class.
    DataError
        Where no pixel has a label.
    """
    if config.class_weights is None:
        return None
    if config.class_weights == "balanced":
        counts, *_ = ranks.gather(None if ranks.rank else survey(dataset).pixels[: len(dataset.classes)])
        assert counts is not None  # of the first rank
        return balanced(counts)
    names = dataset.classes.names
    if len(config.class_weights) != len(names):
        raise ConfigError(
            f"train.class_weights has {len(config.class_weights)} numbers, and there are {len(names)} classes: give one for "
            f"each of {', '.join(names)}"
        )
    return config.class_weights


def balanced(counts: npt.NDArray[np.int64]) -> tuple[float, ...]:
    """
    Weigh each class by the inverse of its share of the pixels: all pixels / (classes * pixels of the class).

    The weights of all pixels average to 1. A class without a pixel has 1, which nothing uses.

    Parameters
    ----------
    counts : (K,) int64

    Raises
    ------
    DataError
        Where there is no pixel at all.
    """
    present = counts > 0
    if not present.any():
        raise DataError("no pixel of the training split has a label: train.class_weights cannot be balanced")
    weights = np.ones(len(counts))
    weights[present] = counts.sum() / (present.sum() * counts[present])
    return tuple(float(weight) for weight in weights)
