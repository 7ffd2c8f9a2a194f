"""
Messages of the protocol's inference over gRPC.

A message of a few MB can hold millions of empty parts, and be gigabytes once it is parsed. So the tensor is taken out of its
bytes, and the rest must be short.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError, Message
from tritonclient.grpc import service_pb2 as pb

from ddcat.engines import Outputs
from ddcat.manifest import TensorEntry
from ddcat_serve.errors import RequestError, quoted
from ddcat_serve.http import v2_protocol
from ddcat_serve.inference.model_registry import ServedModel

__all__ = ["infer_response", "parameters_of", "parse", "parse_infer"]

_INPUTS, _RAW, _CONTENTS, _NUMBERS = 5, 7, 5, 4  # fields that lead to tensors
_RAW_OUTPUT, _IN_STREAM = 6, 2  # of ModelInferResponse, and of ModelStreamInferResponse
_FIXED = {1: 8, 5: 4}  # bytes of fields, by wire type


class _Parts(NamedTuple):
    rest: bytearray  # of the request, without inputs
    inputs: list[bytearray]  # each without contents
    raw: list[memoryview]
    numbers: list[memoryview]  # of all inputs
    others: list[memoryview]  # contents of other types


def parse(kind: type[Message], message: bytes | bytearray) -> Any:
    """Read a message; 400 where it is none."""
    try:
        return kind.FromString(bytes(message))
    except DecodeError as cause:
        raise _no_message(kind.DESCRIPTOR.name) from cause


def parse_infer(message: bytes, max_pixels: int) -> tuple[Any, npt.NDArray[np.uint8]]:
    """
    Read an inference request.

    Parameters
    ----------
    message : bytes
    max_pixels : int

    Returns
    -------
    request : ModelInferRequest
        Without the raw contents.
    images : (N, H, W, 3) uint8

    Raises
    ------
    RequestError
        400 with what is wrong, 413 for too many pixels, or where more than the tensor is large.
    """
    parts = _divide(memoryview(message))
    request = parse(pb.ModelInferRequest, parts.rest)
    tensors = [parse(pb.ModelInferRequest.InferInputTensor, each) for each in parts.inputs]
    names = [tensor.name for tensor in tensors]
    if names != ["image"]:
        raise RequestError(400, f"inputs are {quoted(names)}; the model has one, image")
    shape = list(tensors[0].shape)
    v2_protocol.check_image(tensors[0].datatype, shape, max_pixels)
    v2_protocol.check_input_parameters(tensors[0].parameters)
    if parts.raw and (parts.numbers or parts.others):
        raise RequestError(400, "image has both raw contents and numbers")
    if len(parts.raw) > 1:
        raise RequestError(400, f"{len(parts.raw)} raw contents follow, for one input")
    if parts.others:
        raise RequestError(400, "image has contents of another type; UINT8 takes uint_contents, or raw contents")
    values = np.frombuffer(parts.raw[0], np.uint8) if parts.raw else _numbers(b"".join(parts.numbers))
    if values.size != math.prod(shape):
        raise RequestError(400, f"the data of image has {values.size} values; {quoted(shape)} takes {math.prod(shape)}")
    return request, values.reshape(shape)


def parameters_of(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return those that have a value."""
    chosen = {name: (value, value.WhichOneof("parameter_choice")) for name, value in parameters.items()}
    return {name: getattr(value, kind) for name, (value, kind) in chosen.items() if kind is not None}


def infer_response(
    model: ServedModel, request: Any, wanted: list[TensorEntry], outputs: Outputs, *, in_stream: bool = False
) -> bytes:
    """
    Write a ModelInferResponse with the wanted outputs as raw contents, or the ModelStreamInferResponse that holds it.

    Encoded here, so that a large output is copied once: protobuf copies it three times, and lets nobody else run meanwhile.
    """
    about = pb.ModelInferResponse(model_name=model.name, model_version=model.version, id=request.id)
    contents = []
    for entry in wanted:
        values: npt.NDArray[Any] = getattr(outputs, entry.name)
        about.outputs.add(name=entry.name, datatype=v2_protocol.DATATYPES[entry.dtype], shape=values.shape)
        contents += [_head(_RAW_OUTPUT, values.nbytes), np.ascontiguousarray(values).data.cast("B")]
    parts = [about.SerializeToString(), *contents]
    if in_stream:
        parts.insert(0, _head(_IN_STREAM, sum(map(len, parts))))
    return b"".join(parts)


def _head(number: int, size: int) -> bytes:
    """Encode what stands before the bytes of a field."""
    head = bytearray([number << 3 | 2])
    while size > 127:
        head.append(size & 127 | 128)
        size >>= 7
    return bytes([*head, size])


def _numbers(encoded: bytes) -> npt.NDArray[np.uint8]:
    """Decode varints: a number below 256 has one byte, or two with a mark in the first."""
    found = np.frombuffer(encoded, np.uint8)
    last = found < 128
    if not last[-1:].all():
        raise _no_message("ModelInferRequest")
    first = np.append(True, last[:-1])[: found.size]
    following = np.append(found[1:], np.uint8(0))[: found.size]
    wide = first & ~last
    if not (first | last).all() or (following[wide] > 1).any():
        raise RequestError(400, "the data of image has values above 255; UINT8 takes 0..255")
    values: npt.NDArray[np.uint8] = ((found & 127) | np.where(wide, following << 7, 0).astype(np.uint8))[first]
    return values


def _divide(message: memoryview) -> _Parts:
    """Take the tensor out of a ModelInferRequest, and refuse it where the rest is large."""
    parts, small = _Parts(bytearray(), [], [], [], []), 0
    for size in _place(message, parts):
        small += 2 + size
        if small > v2_protocol.ROOM:
            raise RequestError(413, f"the request has more than {v2_protocol.ROOM} bytes beside its tensor")
    return parts


def _place(message: memoryview, parts: _Parts) -> Iterator[int]:
    """Put each field where it belongs, and give its bytes; none for what is of the tensor."""
    for number, field, content in _fields(message):
        if number == _RAW:
            parts.raw.append(content)
            yield 0
        elif number == _INPUTS:
            parts.inputs.append(bytearray())
            yield 0
            for inner, part, contents in _fields(content):
                if inner == _CONTENTS:
                    yield 0
                    for kind, _, numbers in _fields(contents):
                        (parts.numbers if kind == _NUMBERS else parts.others).append(numbers)
                        yield 0 if kind == _NUMBERS else len(numbers)
                else:
                    parts.inputs[-1].extend(part)
                    yield len(contents)
        else:
            parts.rest.extend(field)
            yield len(content)


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
    """Give the number, the bytes and the content of each field of a message, as protobuf encodes it."""
    at = 0
    while at < len(message):
        begin = at
        tag, at = _varint(message, at)
        kind, inner = tag & 7, at
        if kind == 0:
            _, at = _varint(message, at)
        elif kind == 2:
            length, inner = _varint(message, at)
            at = inner + length
        elif kind in _FIXED:
            at += _FIXED[kind]
        else:
            raise _no_message("ModelInferRequest")
        if at > len(message):
            raise _no_message("ModelInferRequest")
        yield tag >> 3, message[begin:at], message[inner:at]


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for place, byte in enumerate(message[at : at + 10]):
        value |= (byte & 127) << 7 * place
        if byte < 128:
            return value, at + place + 1
    raise _no_message("ModelInferRequest")


def _no_message(name: str) -> RequestError:
    return RequestError(400, f"the message is not a {name}")
