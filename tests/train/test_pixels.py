"""Images between engines and PyTorch: what comes back is what was there, and an engine's form is what it takes."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ddcat_train.pixels import nearest_8_bit, to_8_bit, to_pixels, to_planes

shapes = st.tuples(st.integers(1, 2), st.integers(1, 5), st.integers(1, 5), st.just(3))


@given(arrays(np.uint8, shapes))
def test_all_8_bit_images_come_back(pixels: np.ndarray) -> None:
    planes = to_planes(pixels)
    assert planes.shape == (pixels.shape[0], 3, *pixels.shape[1:3])
    assert planes.dtype == torch.float32
    back = to_pixels(nearest_8_bit(planes))
    np.testing.assert_array_equal(back, pixels)
    assert back.flags.c_contiguous


def test_a_channel_stays_a_channel_and_white_is_one() -> None:
    pixels = np.zeros((1, 2, 3, 3), np.uint8)
    pixels[0, 1, 2, 0] = 255
    planes = to_planes(pixels)
    assert planes.sum() == planes[0, 0, 1, 2] == 1


def test_rounding_is_to_the_nearest_grey_level() -> None:
    values = torch.tensor([0.49, 0.51, 254.51]).reshape(1, 3, 1, 1) / 255
    assert nearest_8_bit(values).flatten().tolist() == [0, 1, 255]


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
