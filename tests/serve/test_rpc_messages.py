"""Requests as bytes: what is large beside the tensor is refused before it becomes objects."""

import re
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tritonclient.grpc import service_pb2 as pb

from ddcat_serve.errors import RequestError
from ddcat_serve.rpc import messages
from ddcat_serve.rpc.messages import parse_infer

IMAGE = np.random.default_rng(1).integers(0, 256, (1, 8, 9, 3)).astype(np.uint8)


def message(*, raw: bytes | None = None, numbers: Any = (), datatype: str = "UINT8", **contents: Any) -> bytes:
    made = pb.ModelInferRequest(model_name="small", id="7", raw_input_contents=[] if raw is None else [raw])
    made.outputs.add(name="labels")
    tensor = made.inputs.add(name="image", datatype=datatype, shape=IMAGE.shape)
    if raw is None:
        tensor.contents.CopyFrom(pb.InferTensorContents(uint_contents=numbers, **contents))
    content: bytes = made.SerializeToString()
    return content


def test_bytes_and_numbers_are_the_same_image() -> None:
    for content in (message(raw=IMAGE.tobytes()), message(numbers=IMAGE.ravel().tolist())):
        request, images = parse_infer(content, 1000)
        np.testing.assert_array_equal(images, IMAGE)
        assert (request.model_name, request.id, request.outputs[0].name) == ("small", "7", "labels")


@pytest.mark.parametrize("piece", [5, 2**18])
@given(
    arrays(np.uint32, IMAGE.size, elements=st.integers(0, 255) | st.integers(0, 300)),
    arrays(np.uint32, IMAGE.size, elements=st.integers(0, 255) | st.integers(0, 65535) | st.integers(65500, 65536)),
)
def test_numbers_are_read_as_protobuf_reads_them(piece: int, eight: np.ndarray, sixteen: np.ndarray) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(messages, "_PIECE", piece)
        for datatype, most, numbers in (("UINT8", 255, eight), ("UINT16", 65535, sixteen)):
            content = message(numbers=numbers.tolist(), datatype=datatype)
            if numbers.max() > most:
                with pytest.raises(RequestError, match=f"above {most}; {datatype}"):
                    parse_infer(content, 1000)
            else:
                np.testing.assert_array_equal(parse_infer(content, 1000)[1].ravel(), numbers)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"\x2a\x00" * 500_000, "beside its tensor"),  # inputs
        (b"\x3a\x00" * 500_000, "beside its tensor"),  # raw contents
        (b"\x32\x00" * 500_000, "beside its tensor"),  # outputs
        (b"\x2a\x80\x89\x7a\x2a\xfc\x88\x7a" + b"\x42\x00" * 999_998, "beside its tensor"),  # contents of bytes
        (message(numbers=[1] * 216, int_contents=[2] * 100_000), "beside its tensor"),
        (message(numbers=[], int_contents=[2] * 216), "another type; UINT8 takes uint_contents"),
        (message(raw=b"", fp32_contents=[]), "0 values"),
        (message(raw=IMAGE.tobytes())[:-1], "not a ModelInferRequest"),
        (b"\x0b\x0c", "not a ModelInferRequest"),  # a group
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "not a ModelInferRequest"),
        (message(raw=IMAGE.tobytes()) + b"\x2a\x04\x2a\x02\x22\x00", "inputs are ['image', '']; the model has one, image"),
        (pb.ModelInferRequest(model_name="small").SerializeToString(), "inputs are []; the model has one, image"),
        (message(numbers=[1] * IMAGE.size) + b"\x3a\x01\x07", "image has both raw contents and numbers"),
        (message(raw=IMAGE.tobytes()) + b"\x3a\x00", "2 raw contents follow, for one input"),
        (message(raw=IMAGE.tobytes()[1:]), f"has {IMAGE.size - 1} values; {list(IMAGE.shape)} takes {IMAGE.size}"),
        (message(numbers=[1] * (IMAGE.size + 1)), f"has {IMAGE.size + 1} values; {list(IMAGE.shape)} takes {IMAGE.size}"),
        (message(numbers=[0] * (IMAGE.size - 1) + [256]), "has values above 255; UINT8 takes 0..255"),
        (b"\x09" + bytes(8), "inputs are []"),  # a number of eight bytes, which no field is
        (b"\x08" + b"\x80" * 10, "not a ModelInferRequest"),
        (message(numbers=[7])[:-1] + b"\x87", "not a ModelInferRequest"),
    ],
)
def test_what_is_no_request_is_refused_before_it_is_parsed(content: bytes, text: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(RequestError, match=re.escape(text)):
            parse_infer(content, 1000)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
