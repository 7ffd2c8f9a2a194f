"""Seeds that follow from others are told apart by the bits that a generator looks at."""

from itertools import product

from ddcat_train.seeds import derive_seed


def test_seeds_that_follow_from_others_differ_in_their_32_bits() -> None:
    keys = list(product([0, 1, 2**12, 2**20, 2**32, 2**44], range(200)))
    seeds = [derive_seed(*key) for key in keys]
    assert max(seeds) < 2**32
    assert len(set(seeds)) == len(keys)
    assert seeds == [derive_seed(*key) for key in keys]
