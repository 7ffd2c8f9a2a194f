"""
Inference requests and responses as JSON, with binary tensors behind it if the protocol's binary extension is used.

A request is bounded before objects are made of it: the tensor's data stays text, and everything else is small.
"""

import json
import re
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ddcat.engines import Outputs
from ddcat.engines.errors import EngineError
from ddcat.error_text import first_validation_error
from ddcat.manifest import TensorEntry
from ddcat_serve.errors import RequestError, quoted
from ddcat_serve.http.json_tensors import read_bytes, write_values
from ddcat_serve.http.v2_protocol import (
    DATATYPES,
    MAX_ENVELOPE_BYTES,
    RequestedOutput,
    check_flag,
    check_image,
    check_input_parameters,
    tensor_of,
)
from ddcat_serve.inference.served_model import ServedModel

__all__ = ["LENGTH", "Answer", "InferRequest", "infer_answer", "parse_infer"]

LENGTH = "Inference-Header-Content-Length"
_TEXT = {"uint8": 4, "float32": 22}  # most bytes of a value in JSON, with its comma
_MIN_LIMIT = 2**27  # bytes: a response in JSON may always be as long


def _without_nulls(value: Any) -> Any:
    """Drop members that are null: serialisers write members that nobody set."""
    if isinstance(value, dict):
        return {name: entry for name, entry in value.items() if entry is not None}
    return {} if value is None else value


Size = Annotated[int, Field(ge=1)]
Parameters = Annotated[dict[str, Any], BeforeValidator(_without_nulls)]


class _Message(BaseModel):
    """A message whose unknown members are ignored, as the protocol allows."""

    model_config = ConfigDict(extra="ignore", strict=True)


class InputTensor(_Message):
    """An input tensor of a request, without its data."""

    name: str
    shape: Annotated[list[Size], Field(max_length=32)]
    datatype: str
    parameters: Parameters = {}


class _Output(_Message):
    name: str
    parameters: Parameters = {}


class InferRequest(_Message):
    """Body of an inference request, without the data of its input."""

    id: str | None = None
    parameters: Parameters = {}
    inputs: list[InputTensor]
    outputs: Annotated[list[_Output], BeforeValidator(lambda value: [] if value is None else value)] = []

    @property
    def binary(self) -> Any:
        """Whether outputs are returned as bytes unless they ask otherwise."""
        return self.parameters.get("binary_data_output", False)

    @property
    def requested(self) -> list[RequestedOutput]:
        """The outputs that the client requests by name."""
        return [RequestedOutput(output.name, output.parameters) for output in self.outputs]


class Answer(NamedTuple):
    """Body of a response, and the length of the JSON at its beginning; None: all of it is JSON."""

    body: bytes
    header_length: int | None


class _TensorText(msgspec.Struct):
    name: msgspec.Raw = msgspec.Raw()
    shape: msgspec.Raw = msgspec.Raw()
    datatype: msgspec.Raw = msgspec.Raw()
    parameters: msgspec.Raw = msgspec.Raw()
    data: msgspec.Raw = msgspec.Raw()


class _RequestText(msgspec.Struct):
    inputs: tuple[_TensorText]
    id: msgspec.Raw = msgspec.Raw()
    parameters: msgspec.Raw = msgspec.Raw()
    outputs: msgspec.Raw = msgspec.Raw()


_TEXTS = msgspec.json.Decoder(_RequestText)


def parse_infer(
    body: bytes, *, header_length: str | None, max_pixels: int
) -> tuple[InferRequest, npt.NDArray[np.uint8 | np.uint16]]:
    """
    Parse an inference request of at most `max_pixels` pixels; return it and its images, (N, H, W, C) uint8 or uint16.

    `header_length` is the value of the header Inference-Header-Content-Length, or None: bytes of JSON, after which tensors
    follow. RequestError: 400 for a malformed request, 413 for too many pixels.
    """
    text, rest = _divide(memoryview(body), header_length)
    request, data = _read(text)
    [tensor] = request.inputs
    if tensor.name != "image":
        raise RequestError(400, f"the input is {quoted(tensor.name)}; the model has one, image")
    check_image(tensor.datatype, tensor.shape, max_pixels)
    check_input_parameters(tensor.parameters)
    check_flag("binary_data_output", request.binary)
    return request, _image(tensor, data, rest)


def infer_answer(
    model: ServedModel, request: InferRequest, entries: list[TensorEntry], outputs: Outputs, *, max_pixels: int
) -> Answer:
    """
    Encode the requested outputs, each as flat row-major JSON or as bytes, as the request asks.

    EngineError for logits that are not finite: JSON cannot hold them. RequestError (400) for an output whose JSON would be
    longer than that of the labels of `max_pixels`, and than 128 MiB.
    """
    binary_outputs = {output.name: output.parameters.get("binary_data", request.binary) for output in request.outputs}
    head: dict[str, Any] = {"model_name": model.name, "model_version": model.version}
    if request.id is not None:
        head["id"] = request.id
    text, tail = bytearray(json.dumps(head, separators=(",", ":")).encode()[:-1] + b',"outputs":['), []
    for place, entry in enumerate(entries):
        values: npt.NDArray[Any] = getattr(outputs, entry.name)
        description: dict[str, Any] = {"name": entry.name, "datatype": DATATYPES[entry.dtype], "shape": list(values.shape)}
        binary = binary_outputs.get(entry.name, request.binary)
        if binary:
            tail.append(np.ascontiguousarray(values).tobytes())
            description["parameters"] = {"binary_data_size": len(tail[-1])}
        elif values.size * _TEXT[entry.dtype] > max(_MIN_LIMIT, _TEXT["uint8"] * max_pixels):
            raise RequestError(400, f"{entry.name} has {values.size} values, too many for JSON: ask for it with binary_data")
        text += (b"," if place else b"") + json.dumps(description, separators=(",", ":")).encode()[:-1]
        try:
            for piece in () if binary else (b',"data":', *write_values(values)):
                text += piece
        except ValueError as cause:
            raise EngineError(f"{model.name} returned logits that are not finite") from cause
        text += b"}"
    text += b"]}"
    return Answer(b"".join([text, *tail]), len(text) if tail else None)


def _divide(body: memoryview, header_length: str | None) -> tuple[memoryview, memoryview]:
    if header_length is None:
        return body, body[:0]
    if not re.fullmatch(r"[0-9]{1,12}", header_length) or not 0 < int(header_length) <= len(body):
        raise RequestError(400, f"{LENGTH} is {quoted(header_length)}; expected bytes of JSON, at most {len(body)}")
    return body[: int(header_length)], body[int(header_length) :]


def _read(text: memoryview) -> tuple[InferRequest, memoryview]:
    """Return the request without its data, and the text of the data; empty if there is none."""
    try:
        message = _TEXTS.decode(text)
    except RecursionError as cause:
        raise RequestError(400, "the JSON is nested too deeply") from cause
    except msgspec.ValidationError as cause:
        expected = str(cause).replace("`", "").replace(" - at $.", " at ")
        raise RequestError(400, f"{expected}; the model has one input, image") from cause
    except (msgspec.DecodeError, UnicodeDecodeError) as cause:
        raise _malformed(text, cause) from cause
    [tensor] = message.inputs
    data = memoryview(tensor.data)
    small = _object(message, inputs=b"[%b]" % _object(tensor, data=b""))
    if len(small) > MAX_ENVELOPE_BYTES:
        raise RequestError(413, f"the request has more than {MAX_ENVELOPE_BYTES} bytes beside the data of its tensor")
    try:
        request = InferRequest.model_validate_json(small.decode())
    except UnicodeDecodeError as cause:
        raise _malformed(text, cause) from cause
    except ValidationError as cause:
        raise RequestError(400, first_validation_error(cause)) from cause
    first = bytes(data[:1])
    if first not in (b"", b"[", b"n"):
        raise RequestError(400, "inputs.0.data: expected an array")
    return request, data[:0] if first == b"n" else data  # null counts as absent


def _malformed(text: memoryview, cause: Exception) -> RequestError:
    """Return the error for malformed JSON; the parser's own message on bytes that are not UTF-8 misleads."""
    try:
        str(text, "utf-8")
    except UnicodeDecodeError as fault:
        return RequestError(400, f"byte {fault.start} of the JSON is not UTF-8; send UTF-8")
    reason = str(cause).removeprefix("JSON is malformed: ")
    return RequestError(400, f"the body is not JSON: {reason}")


def _object(message: msgspec.Struct, **instead: bytes) -> bytes:
    """Put the parts of a message that are present together again."""
    parts = {name: instead[name] if name in instead else bytes(getattr(message, name)) for name in message.__struct_fields__}
    return b"{%b}" % b",".join(b'"%b":%b' % (name.encode(), part) for name, part in parts.items() if part)


def _image(tensor: InputTensor, data: memoryview, rest: memoryview) -> npt.NDArray[np.uint8 | np.uint16]:
    size, content = tensor.parameters.get("binary_data_size"), rest
    if size is None:
        if rest:
            raise RequestError(400, f"{len(rest)} bytes follow the JSON, but no input has a binary_data_size")
        if not data:
            raise RequestError(400, "inputs.0.data: image has neither data nor a binary_data_size")
        content = memoryview(read_bytes(data, tensor.shape, tensor.datatype))
    elif data:
        raise RequestError(400, "image has both data and a binary_data_size")
    elif isinstance(size, bool) or size != len(rest):
        raise RequestError(400, f"image has a binary_data_size of {quoted(size)}, and {len(rest)} bytes follow the JSON")
    return tensor_of(content, tensor.datatype, tensor.shape)
