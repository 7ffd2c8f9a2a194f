"""Images between engines and PyTorch: what comes back is what was there, and an engine's form is what it takes."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ddcat_train.pixels import nearest_8_bit, to_pixels, to_planes

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
