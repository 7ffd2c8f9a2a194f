"""
Messages of the protocol's inference over gRPC.

A message of a few MB can hold millions of empty parts, and take gigabytes once parsed. So the tensor is cut out of its bytes
first, and the rest must be short.
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
from ddcat_serve.http.json_tensors import MOST
from ddcat_serve.inference.served_model import ServedModel

__all__ = ["infer_response", "parameters_of", "parse", "parse_infer"]

_INPUTS, _RAW, _CONTENTS, _NUMBERS = 5, 7, 5, 4  # fields that lead to tensors
_RAW_OUTPUT, _IN_STREAM = 6, 2  # of ModelInferResponse, and of ModelStreamInferResponse
_PIECE, _LONGEST = 2**18, 3  # octets that are decoded at once, and of a number of 16 bits
_FIXED = {1: 8, 5: 4}  # bytes of fields, by wire type


class _Parts(NamedTuple):
    rest: bytearray  # of the request, without inputs
    inputs: list[bytearray]  # each without contents
    raw: list[memoryview]
    numbers: list[memoryview]  # of all inputs
    others: list[memoryview]  # contents of other types


def parse(kind: type[Message], message: bytes | bytearray) -> Any:
    """Parse a message; raise RequestError (400) if it is malformed."""
    try:
        return kind.FromString(bytes(message))
    except DecodeError as cause:
        raise _malformed(kind.DESCRIPTOR.name) from cause


def parse_infer(message: bytes, max_pixels: int) -> tuple[Any, npt.NDArray[np.uint8 | np.uint16]]:
    """
    Parse an inference request: a ModelInferRequest without the raw contents, and images, (N, H, W, C) uint8 or uint16.

    RequestError: 400 for a malformed request, 413 for too many pixels, or too many bytes beside the tensor.
    """
    parts = _divide(memoryview(message))
    request = parse(pb.ModelInferRequest, parts.rest)
    tensors = [parse(pb.ModelInferRequest.InferInputTensor, each) for each in parts.inputs]
    names = [tensor.name for tensor in tensors]
    if names != ["image"]:
        raise RequestError(400, f"inputs are {quoted(names)}; the model has one, image")
    shape, datatype = list(tensors[0].shape), tensors[0].datatype
    v2_protocol.check_image(datatype, shape, max_pixels)
    v2_protocol.check_input_parameters(tensors[0].parameters)
    if parts.raw and (parts.numbers or parts.others):
        raise RequestError(400, "image has both raw contents and numbers")
    if len(parts.raw) > 1:
        raise RequestError(400, f"{len(parts.raw)} raw contents follow, for one input")
    if parts.others:
        raise RequestError(400, f"image has contents of another type; {datatype} takes uint_contents, or raw contents")
    if parts.raw:
        return request, v2_protocol.tensor_of(parts.raw[0], datatype, shape)
    values = _numbers(b"".join(parts.numbers), datatype)
    if values.size != math.prod(shape):
        raise RequestError(400, f"the data of image has {values.size} values; {quoted(shape)} takes {math.prod(shape)}")
    return request, values.reshape(shape)


def parameters_of(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters that have a value."""
    chosen = {name: (value, value.WhichOneof("parameter_choice")) for name, value in parameters.items()}
    return {name: getattr(value, kind) for name, (value, kind) in chosen.items() if kind is not None}


def infer_response(
    model: ServedModel, request: Any, entries: list[TensorEntry], outputs: Outputs, *, in_stream: bool = False
) -> bytes:
    """
    Encode a ModelInferResponse with the requested outputs as raw contents, or the ModelStreamInferResponse around it.

    Encoded by hand, so that a large output is copied once: protobuf copies it three times, and blocks other threads meanwhile.
    """
    response = pb.ModelInferResponse(model_name=model.name, model_version=model.version, id=request.id)
    contents = []
    for entry in entries:
        values: npt.NDArray[Any] = getattr(outputs, entry.name)
        response.outputs.add(name=entry.name, datatype=v2_protocol.DATATYPES[entry.dtype], shape=values.shape)
        contents += [_head(_RAW_OUTPUT, values.nbytes), np.ascontiguousarray(values).data.cast("B")]
    parts = [response.SerializeToString(), *contents]
    if in_stream:
        parts.insert(0, _head(_IN_STREAM, sum(map(len, parts))))
    return b"".join(parts)


def _head(number: int, size: int) -> bytes:
    """Encode tag and length of a field of bytes."""
    head = bytearray([number << 3 | 2])
    while size > 127:
        head.append(size & 127 | 128)
        size >>= 7
    return bytes([*head, size])


def _numbers(encoded: bytes, datatype: str) -> npt.NDArray[np.uint8 | np.uint16]:
    """Decode varints, piece by piece: a wide form of all of them would take many times the memory of the image."""
    pieces, at = [np.empty(0, v2_protocol.IMAGE_TYPES[datatype])], 0
    while at < len(encoded):
        end = min(at + _PIECE, len(encoded))
        while end < len(encoded) and encoded[end - 1] >= 128 and end < at + _PIECE + _LONGEST:
            end += 1
        pieces.append(_piece(np.frombuffer(encoded, np.uint8, end - at, at), datatype))
        at = end
    values: npt.NDArray[np.uint8 | np.uint16] = np.concatenate(pieces)
    return values


def _piece(octets: npt.NDArray[np.uint8], datatype: str) -> npt.NDArray[np.uint8 | np.uint16]:
    """Decode whole varints: each octet but the last of a number has its high bit set."""
    last = octets < 128
    starts = np.flatnonzero(np.append(True, last[:-1]))
    lengths = np.diff(starts, append=octets.size)
    too_large = RequestError(400, f"the data of image has values above {MOST[datatype]}; {datatype} takes 0..{MOST[datatype]}")
    if (lengths > _LONGEST).any():
        raise too_large
    if not last[-1]:
        raise _malformed("ModelInferRequest")
    values = (octets[starts] & 127).astype(np.uint32)
    for place in range(1, _LONGEST):
        longer = np.flatnonzero(lengths > place)
        values[longer] |= (octets[starts[longer] + place] & 127).astype(np.uint32) << 7 * place
    if (values > MOST[datatype]).any():
        raise too_large
    return values.astype(v2_protocol.IMAGE_TYPES[datatype])


def _divide(message: memoryview) -> _Parts:
    """Cut the tensor out of a ModelInferRequest; refuse the request if the rest is large."""
    parts, small = _Parts(bytearray(), [], [], [], []), 0
    for size in _place(message, parts):
        small += 2 + size
        if small > v2_protocol.MAX_ENVELOPE_BYTES:
            raise RequestError(413, f"the request has more than {v2_protocol.MAX_ENVELOPE_BYTES} bytes beside its tensor")
    return parts


def _place(message: memoryview, parts: _Parts) -> Iterator[int]:
    """Sort each field into the parts, and yield its bytes; 0 for those of the tensor."""
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
    """Yield number, bytes and content of each field of an encoded message."""
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
            raise _malformed("ModelInferRequest")
        if at > len(message):
            raise _malformed("ModelInferRequest")
        yield tag >> 3, message[begin:at], message[inner:at]


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for place, byte in enumerate(message[at : at + 10]):
        value |= (byte & 127) << 7 * place
        if byte < 128:
            return value, at + place + 1
    raise _malformed("ModelInferRequest")


def _malformed(name: str) -> RequestError:
    return RequestError(400, f"the message is not a {name}")
