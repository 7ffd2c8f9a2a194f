"""How a batch is dealt out to ranks and portions."""

from collections.abc import Sequence

from ddcat_train.config import Config
from ddcat_train.errors import ConfigError

__all__ = ["check_shares", "clean_images", "share_of"]


def check_shares(config: Config, ranks: int) -> None:
    """
    Refuse a batch that its ranks and portions do not divide.

    Raises
    ------
    ConfigError
    """
    size, portions = config.train.batch_size, ranks * config.train.accumulate
    if size % portions:
        fitting = [count for count in (size // portions * portions, -(-size // portions) * portions) if count]
        raise ConfigError(
            f"train.batch_size {size} does not divide into {ranks} devices x {config.train.accumulate} portions: "
            f"use {' or '.join(map(str, fitting))}"
        )
    method, count = config.method, size // portions
    if method.name == "ddcat" and method.split == "rank" and not method.clean_images(count):
        raise ConfigError(
            f"method.adversarial_share {method.adversarial_share} leaves none of a portion's {count} images clean, and ddcat "
            "marks pixels of clean ones alone: use method.split global, or a larger train.batch_size"
        )


def share_of(rank: int, ranks: int, config: Config) -> list[int]:
    """
    Say which places of a batch are a rank's, ascending; every k-th of them from j on is its portion j of k.

    Dealt out like cards, k at a time: every portion of every rank has its part of the clean images at the start of the batch
    and of the others, and portion j of all ranks together is the same for any number of ranks: all places with p % k = j.

    Raises
    ------
    ConfigError
        Where the ranks and portions do not divide the batch.
    """
    check_shares(config, ranks)
    return [place for place in range(config.train.batch_size) if place // config.train.accumulate % ranks == rank]


def clean_images(places: Sequence[int], config: Config) -> int:
    """
    Say how many images of a portion stay clean: its first ones.

    They are the first floor(m * (1 - share)) of the portion, or those of them that it has of the whole batch's (method.split).

    Parameters
    ----------
    places : sequence of int
        Of its images in the whole batch, ascending.
    config : Config
    """
    method = config.method
    count = len(places) if method.split == "rank" else config.train.batch_size
    clean = method.clean_images(count)
    return clean if method.split == "rank" else sum(place < clean for place in places)
