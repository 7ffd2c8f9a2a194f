"""The Open Inference Protocol, version 2: requests and answers with tensors as JSON or, by its binary extension, as bytes."""

import itertools
import json
import math
import re
from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ddcat import __version__
from ddcat.faults import first_fault
from ddcat.manifest import TensorEntry
from ddcat_serve.engines import Outputs
from ddcat_serve.errors import EngineError, RequestError
from ddcat_serve.models import Models, ServedModel
from ddcat_serve.settings import Settings

__all__ = [
    "DATATYPES",
    "LENGTH",
    "Answer",
    "InferRequest",
    "check_image",
    "infer_answer",
    "model_metadata",
    "parse_infer",
    "server_metadata",
    "timeout_of",
    "wanted_outputs",
]

LENGTH = "Inference-Header-Content-Length"
DATATYPES = {"uint8": "UINT8", "float32": "FP32"}
_EXTENSIONS = ["binary_tensor_data"]

Parameters = dict[str, Any]
Size = Annotated[int, Field(ge=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class InputTensor(_Strict):
    """An input of a request; its data follows the JSON where a parameter says how many bytes it has."""

    name: str
    shape: list[Size]
    datatype: str
    parameters: Parameters = {}
    data: list[Any] | None = None


class RequestedOutput(_Strict):
    """An output that the client wants."""

    name: str
    parameters: Parameters = {}


class InferRequest(_Strict):
    """Body of an inference request."""

    id: str | None = None
    parameters: Parameters = {}
    inputs: list[InputTensor]
    outputs: list[RequestedOutput] = []


class Answer(NamedTuple):
    """Body of an answer, and the length of the JSON at its beginning; None: it is JSON alone."""

    body: bytes
    header_length: int | None


def parse_infer(body: bytes, *, header_length: str | None, max_pixels: int) -> tuple[InferRequest, npt.NDArray[np.uint8]]:
    """
    Read an inference request.

    Parameters
    ----------
    body : bytes
    header_length : str or None
        What the header Inference-Header-Content-Length says: bytes of JSON, behind which tensors follow.
    max_pixels : int

    Returns
    -------
    request : InferRequest
    images : (N, H, W, 3) uint8

    Raises
    ------
    RequestError
        400 with what is wrong, 413 for too many pixels.
    """
    text, rest = _divide(body, header_length)
    try:
        request = InferRequest.model_validate_json(text)
    except ValidationError as cause:
        raise RequestError(400, first_fault(cause)) from cause
    if [tensor.name for tensor in request.inputs] != ["image"]:
        raise RequestError(400, f"inputs are {[tensor.name for tensor in request.inputs]}; the model has one, image")
    return request, _image_tensor(request.inputs[0], rest, max_pixels)


def check_image(datatype: str, shape: list[int], max_pixels: int) -> None:
    """
    Refuse what cannot be a batch of images.

    Raises
    ------
    RequestError
        400, or 413 for too many pixels.
    """
    if datatype != "UINT8":
        raise RequestError(400, f"image has datatype {datatype!r}; the model takes UINT8")
    if len(shape) != 4 or shape[3] != 3 or min(shape) < 1:
        raise RequestError(400, f"image has shape {shape}; the model takes [N, H, W, 3]")
    if math.prod(shape[:3]) > max_pixels:
        raise RequestError(413, f"image of shape {shape} has more than {max_pixels} pixels")


def infer_answer(model: ServedModel, request: InferRequest, wanted: list[TensorEntry], outputs: Outputs) -> Answer:
    """Write the wanted outputs, each as JSON, flat and row-major, or as bytes, as the request asks."""
    every = request.parameters.get("binary_data_output") is True
    asked = {output.name: output.parameters.get("binary_data", every) is True for output in request.outputs}
    answer: dict[str, Any] = {"model_name": model.name, "model_version": model.version}
    if request.id is not None:
        answer["id"] = request.id
    entries, tail = [], []
    for entry in wanted:
        values: npt.NDArray[Any] = getattr(outputs, entry.name)
        described: dict[str, Any] = {"name": entry.name, "datatype": DATATYPES[entry.dtype], "shape": list(values.shape)}
        if asked.get(entry.name, every):
            content = np.ascontiguousarray(values).tobytes()
            described["parameters"] = {"binary_data_size": len(content)}
            tail.append(content)
        else:
            described["data"] = values.ravel().tolist()
        entries.append(described)
    answer["outputs"] = entries
    try:
        text = json.dumps(answer, allow_nan=False, separators=(",", ":")).encode()
    except ValueError as cause:
        raise EngineError(f"{model.name} gave logits that are not finite") from cause
    return Answer(b"".join([text, *tail]), len(text) if tail else None)


def wanted_outputs(model: ServedModel, names: list[str]) -> list[TensorEntry]:
    """Outputs of these names, or all where there are none; 400 where the model has none of that name."""
    entries = {entry.name: entry for entry in model.engine.outputs}
    for name in names:
        if name not in entries:
            raise RequestError(400, f"the model has no output {name!r}; it has {', '.join(entries)}")
    if len(set(names)) < len(names):
        raise RequestError(400, "an output is asked for twice")
    return [entries[name] for name in names or entries]


def timeout_of(parameters: Parameters, settings: Settings) -> float:
    """
    Read the seconds in which an answer is wanted, which the protocol's clients give in microseconds.

    Raises
    ------
    RequestError
        400 where it is no positive number, or more than may be asked for.
    """
    if "timeout" not in parameters:
        return settings.timeout
    value = parameters["timeout"]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1e6 * settings.max_timeout:
        raise RequestError(400, f"timeout is {value!r}; microseconds, at most {1e6 * settings.max_timeout:.0f}, would be right")
    return value / 1e6


def server_metadata(settings: Settings) -> dict[str, Any]:
    """Answer of GET /v2."""
    return {
        "name": "ddcat",
        "version": __version__,
        "extensions": _EXTENSIONS,
        "parameters": {"settings": settings.shown()},
    }


def model_metadata(models: Models, model: ServedModel) -> dict[str, Any]:
    """
    Answer of GET /v2/models/NAME.

    Beside the protocol's part, `parameters` holds what the manifest says about the model, and its passport.
    """
    manifest = model.bundle.manifest
    return {
        "name": model.name,
        "versions": list(models[model.name]),
        "platform": f"ddcat_{manifest.engine.name}",
        "inputs": [_tensor_metadata(entry) for entry in model.engine.inputs],
        "outputs": [_tensor_metadata(entry) for entry in model.engine.outputs],
        "parameters": {
            **model.about(),
            "preprocessing": {
                **manifest.preprocessing.model_dump(mode="json"),
                "by": "the graph itself: (image / 255 - mean) / std; send the pixels as they are",
            },
            "shapes": manifest.shapes.model_dump(mode="json"),
            "engine": dict(model.engine.description),
        },
    }


def _divide(body: bytes, header_length: str | None) -> tuple[bytes, bytes]:
    if header_length is None:
        return body, b""
    if not re.fullmatch(r"[0-9]{1,12}", header_length) or not 0 < int(header_length) <= len(body):
        raise RequestError(400, f"{LENGTH} is {header_length!r}; bytes of JSON, at most {len(body)}, would be right")
    return body[: int(header_length)], body[int(header_length) :]


def _image_tensor(tensor: InputTensor, rest: bytes, max_pixels: int) -> npt.NDArray[np.uint8]:
    check_image(tensor.datatype, tensor.shape, max_pixels)
    size = tensor.parameters.get("binary_data_size")
    if size is None:
        if rest:
            raise RequestError(400, f"{len(rest)} bytes follow the JSON, and no input says that they are its own")
        if tensor.data is None:
            raise RequestError(400, "inputs.0.data: image has neither data nor a binary_data_size")
        content = _listed(tensor.data, tensor.shape)
    else:
        if tensor.data is not None:
            raise RequestError(400, "image has both data and a binary_data_size")
        if isinstance(size, bool) or size != len(rest):
            raise RequestError(400, f"image has a binary_data_size of {size!r}, and {len(rest)} bytes follow the JSON")
        content = rest
    if len(content) != math.prod(tensor.shape):
        raise RequestError(400, f"the data of image has {len(content)} values; {tensor.shape} takes {math.prod(tensor.shape)}")
    return np.frombuffer(content, np.uint8).reshape(tensor.shape)


def _listed(data: list[Any], shape: list[int]) -> bytes:
    values = _flat(data, shape)
    if len(values) != math.prod(shape):
        raise RequestError(400, f"the data of image has {len(values)} values; {shape} takes {math.prod(shape)}")
    kinds = set(map(type, values))
    if kinds != {int}:  # NaN is a float, and True would pass for 1
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise RequestError(400, f"the data of image holds {names}; UINT8 takes integers in 0..255")
    try:
        return bytes(values)
    except (ValueError, OverflowError) as cause:
        raise RequestError(400, f"the data of image lies in {min(values)}..{max(values)}; UINT8 takes 0..255") from cause


def _flat(data: list[Any], shape: list[int]) -> list[Any]:
    """
    Undo the nesting, if there is any.

    In Python, and not by `numpy.asarray`: that makes every element as wide as the longest string among them.
    """
    if not data or not isinstance(data[0], list):
        return data
    level = [data]
    for size in shape:
        if not all(isinstance(item, list) and len(item) == size for item in level):
            raise RequestError(400, f"the data of image is neither flat nor nested as its shape {shape}")
        level = list(itertools.chain.from_iterable(level))
    return level


def _tensor_metadata(entry: TensorEntry) -> dict[str, Any]:
    shape = [size if isinstance(size, int) else -1 for size in entry.shape]
    return {"name": entry.name, "datatype": DATATYPES[entry.dtype], "shape": shape}
