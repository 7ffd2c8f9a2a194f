"""Adversarial images of 8 bits."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddcat_train.attacks import to_8_bit

STARTS = ("clean", "random", "lower")


@given(seed=st.integers(0, 2**31), levels=st.integers(0, 20), part=st.floats(0.0, 0.9))
@settings(max_examples=30, deadline=None)
def test_8_bit_images_stay_in_the_ball_and_use_all_of_its_levels(seed: int, levels: int, part: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randint(256, (2, 3, 5, 5), generator=generator)
    side = torch.randint(0, 2, clean.shape, generator=generator) * 2 - 1
    images = clean.float() / 255
    adversarial = (images + side * (levels + part) / 255).clamp(0, 1)
    expected = (clean + side * levels).clamp(0, 255)
    assert torch.equal(to_8_bit(adversarial, images).long(), expected)
