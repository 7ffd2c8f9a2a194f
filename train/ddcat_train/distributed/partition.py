"""The partition of a batch among ranks and micro-batches."""

from collections.abc import Sequence

from ddcat_train.config import Config
from ddcat_train.errors import ConfigError

__all__ = ["check_partition", "clean_images", "rank_slice"]


def check_partition(config: Config, ranks: int) -> None:
    """Refuse a batch that its ranks and micro-batches do not divide: raise a `ConfigError`."""
    size, parts = config.train.batch_size, ranks * config.train.accumulate
    if size % parts:
        fitting = [count for count in (size // parts * parts, -(-size // parts) * parts) if count]
        raise ConfigError(
            f"train.batch_size {size} does not divide into {ranks} devices x {config.train.accumulate} micro-batches: "
            f"use {' or '.join(map(str, fitting))}"
        )
    method, count = config.method, size // parts
    if method.name == "ddcat" and method.split == "rank" and not method.clean_images(count):
        raise ConfigError(
            f"method.adversarial_share {method.adversarial_share} leaves none of a micro-batch's {count} images clean, and "
            "ddcat marks pixels of clean ones alone: use method.split global, or a larger train.batch_size"
        )


def rank_slice(rank: int, ranks: int, config: Config) -> list[int]:
    """
    Return the indices of a rank's images in the whole batch, ascending; every k-th of them from j on is its micro-batch j of k.

    They are dealt out like cards, k at a time. So every micro-batch of every rank has its part of the clean images, which come
    first in the batch, and of the others. Micro-batch j of all ranks together is the same for any number of ranks: all indices
    i with i % k = j.

    Raises
    ------
    ConfigError
        Where the ranks and micro-batches do not divide the batch.
    """
    check_partition(config, ranks)
    return [index for index in range(config.train.batch_size) if index // config.train.accumulate % ranks == rank]


def clean_images(indices: Sequence[int], config: Config) -> int:
    """
    Return how many images of a micro-batch, its first ones, stay clean.

    They are its first floor(m * (1 - share)), or those of the whole batch's first ones that it holds (method.split).

    Parameters
    ----------
    indices : sequence of int
        Of its images in the whole batch, ascending.
    """
    method = config.method
    count = len(indices) if method.split == "rank" else config.train.batch_size
    clean = method.clean_images(count)
    return clean if method.split == "rank" else sum(index < clean for index in indices)
