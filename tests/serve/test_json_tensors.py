"""Tensors as JSON are what json makes of them, and never more objects than a piece has."""

import json
import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from ddcat_serve.errors import RequestError
from ddcat_serve.http import json_tensors
from ddcat_serve.http.json_tensors import read_bytes, write_values

SHAPES = array_shapes(min_dims=4, max_dims=4, max_side=5)


@pytest.fixture(params=[7, 2**16], autouse=True, scope="module")
def piece(request: pytest.FixtureRequest) -> Any:
    """Pieces that end anywhere, and those of the server."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_tensors, "_PIECE", request.param)
        yield


@given(
    arrays(np.uint8, SHAPES) | arrays(np.uint16, SHAPES),
    st.booleans(),
    st.sampled_from([None, 0, 1, 4]),
    st.sampled_from([",", ", ", " ,\t"]),
)
def test_reading(images: np.ndarray, nested: bool, indent: int | None, comma: str) -> None:
    values = images.tolist() if nested else images.ravel().tolist()
    text = json.dumps(values, indent=indent, separators=(comma, ": ")).encode()
    read = read_bytes(memoryview(text), list(images.shape), images.dtype.name.upper())
    assert read == images.astype(images.dtype.newbyteorder("<")).tobytes()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-300, 300) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=12,
)


@given(st.lists(JSON, max_size=13), st.sampled_from([[1, 1, 4, 3], [1, 2, 2, 3], [2, 1, 1, 1]]))
def test_malformed_data_is_refused(values: list[Any], shape: list[int]) -> None:
    image = None
    try:
        array = np.array(values)
        if array.dtype == np.int64 and array.shape in (tuple(shape), (math.prod(shape),)) and not set("te") & set(str(values)):
            image = array.astype(np.uint8).tobytes() if array.min() >= 0 and array.max() <= 255 else None
    except ValueError:  # ragged
        pass
    text = memoryview(json.dumps(values).encode())
    if image is None:
        with pytest.raises(RequestError) as caught:
            read_bytes(text, shape)
        assert len(str(caught.value)) < 250
    else:
        assert read_bytes(text, shape) == image


@pytest.mark.parametrize("values", ["[],", "{},", '{"":0},', '"x",', "[1],", "1.5,", f"{'9' * 3000},"])
def test_data_that_is_no_image_is_refused_at_once(values: str) -> None:
    text = memoryview(f"[{values * (10**7 // len(values))}1]".encode())
    tracemalloc.start()
    with pytest.raises(RequestError):
        read_bytes(text, [1, 33, 33, 3])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_a_huge_shape_takes_no_memory() -> None:
    tracemalloc.start()
    with pytest.raises(RequestError, match="has 2 values"):
        read_bytes(memoryview(b"[1,2]"), [1, 5000, 5000, 3])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


@given(
    arrays(np.uint8, SHAPES) | arrays(np.float32, SHAPES, elements=st.floats(width=32, allow_nan=False, allow_infinity=False))
)
def test_writing(values: np.ndarray) -> None:
    assert json.loads(b"".join(write_values(values))) == values.ravel().tolist()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(wrong: float) -> None:
    values = np.zeros((2, 5), np.float32)
    values[1, 3] = wrong
    with pytest.raises(ValueError, match="not finite"):
        list(write_values(values))
