"""Where labels differ, counted by hand and by a slow definition."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddcat.classes import IGNORE_INDEX
from ddcat_bench.gate.disagreement import BAND, MARGINS, Disagreement, boundary_band, count_disagreement


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.floats(0, 0.5))
def test_the_band_is_what_its_words_say(seed: int, ignored: float) -> None:
    random = np.random.default_rng(seed)
    truth = np.kron(random.integers(0, 3, (2, 3)), np.ones((7, 6), np.int64))
    truth[random.random(truth.shape) < ignored] = IGNORE_INDEX
    found = boundary_band(torch.from_numpy(truth)[None])[0].numpy()
    for (y, x), label in np.ndenumerate(truth):
        square = truth[max(0, y - BAND) : y + BAND + 1, max(0, x - BAND) : x + BAND + 1]
        assert found[y, x] == (label != IGNORE_INDEX and len(set(square.ravel()) - {IGNORE_INDEX}) > 1)


def test_flips_are_counted_where_they_are() -> None:
    truth = torch.zeros(1, 8, 16, dtype=torch.int64)
    truth[:, :, 8:] = 1  # the band: columns 5..10
    ahead = torch.full((1, 8, 16), 0.5)
    ahead[:, 0] = 20.0
    logits = torch.stack([ahead, torch.zeros_like(ahead), torch.full_like(ahead, -1.0)], 1)  # all of class 0
    engine, twin = torch.zeros(2, 1, 8, 16, dtype=torch.int64)
    engine[0, 0, 0] = 2  # sure, in the interior
    engine[0, 3, 7] = engine[0, 4, 15] = 1  # not sure: in the band, and not
    twin[0, 3, 7] = 1
    found = count_disagreement(truth, logits, engine, twin)
    assert (found.pixels, found.differing, found.apart, found.band, found.band_differing) == (128, 3, 2, 48, 1)
    assert found.margins[0].tolist() == [0, 0, 0, 112, 0, 0, 16]
    assert found.margins_differing[0].tolist() == [0, 0, 0, 2, 0, 0, 1]
    assert found.agreement == 1 - 3 / 128
    assert found.twin_agreement == 1 - 2 / 128
    assert (found.band_agreement, found.interior_agreement) == (1 - 1 / 48, 1 - 2 / 80)


def test_they_survive_a_file() -> None:
    numbers = np.arange(2 * (5 + 2 * len(MARGINS))).reshape(2, -1)
    np.testing.assert_array_equal(Disagreement.from_array(np.pad(numbers, ((0, 0), (0, 2)))).to_array(), numbers)


@pytest.mark.parametrize("truth", [torch.zeros(1, 9, 9, dtype=torch.int64), torch.full((1, 9, 9), IGNORE_INDEX)])
def test_where_there_is_no_boundary_there_is_no_band(truth: torch.Tensor) -> None:
    logits = torch.zeros(1, 2, 9, 9)
    same = torch.zeros(1, 9, 9, dtype=torch.int64)
    found = count_disagreement(truth, logits, same, same)
    assert found.band_agreement is None
    assert found.interior_agreement == 1
