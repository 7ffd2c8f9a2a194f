"""Seeds that follow from others."""

import numpy as np

__all__ = ["seed_from"]


def seed_from(seed: int, *key: int) -> int:
    """
    Hash a seed, and what tells its uses apart, numbers of 0 or more, to a seed of 32 bits.

    A generator on the CPU looks at no more of its seed: two that differ in higher bits alone draw the same.
    """
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1)[0])
