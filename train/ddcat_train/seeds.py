"""Seeds that are derived from others."""

import numpy as np

__all__ = ["derive_seed"]


def derive_seed(seed: int, *key: int) -> int:
    """
    Hash a seed and the numbers of its use, each 0 or more, to a seed of 32 bits.

    A generator on the CPU reads 32 bits of its seed: two seeds that differ in higher bits alone draw the same numbers.
    """
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1)[0])
