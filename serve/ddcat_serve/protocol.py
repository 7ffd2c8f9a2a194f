"""The Open Inference Protocol, version 2, with tensors as JSON."""

import itertools
import json
import math
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ddcat import __version__
from ddcat.manifest import TensorEntry
from ddcat_serve.engines import Outputs
from ddcat_serve.errors import EngineError, RequestError
from ddcat_serve.models import ServedModel

__all__ = ["VERSION", "InferRequest", "infer_response", "model_metadata", "parse_infer", "server_metadata", "wanted_outputs"]

VERSION = "1"  # a bundle never changes, so that a server knows one version of each
_DATATYPES = {"uint8": "UINT8", "float32": "FP32"}

Parameters = dict[str, Any]
Size = Annotated[int, Field(ge=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class InputTensor(_Strict):
    """An input of a request."""

    name: str
    shape: list[Size]
    datatype: str
    parameters: Parameters = {}
    data: list[Any]


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


def parse_infer(body: bytes, *, max_pixels: int) -> tuple[InferRequest, npt.NDArray[np.uint8]]:
    """
    Read an inference request.

    Returns
    -------
    request : InferRequest
    images : (N, H, W, 3) uint8

    Raises
    ------
    RequestError
        400 with what is wrong, 413 for too many pixels.
    """
    try:
        request = InferRequest.model_validate_json(body)
    except ValidationError as cause:
        first = cause.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RequestError(400, f"{where}: {first['msg']}" if where else first["msg"]) from cause
    if [tensor.name for tensor in request.inputs] != ["image"]:
        raise RequestError(400, f"inputs are {[tensor.name for tensor in request.inputs]}; the model has one, image")
    return request, _image_tensor(request.inputs[0], max_pixels)


def infer_response(model: ServedModel, request: InferRequest, wanted: list[TensorEntry], outputs: Outputs) -> bytes:
    """Write the wanted outputs as JSON, their data flat and row-major."""
    answer: dict[str, Any] = {"model_name": model.name, "model_version": VERSION}
    if request.id is not None:
        answer["id"] = request.id
    answer["outputs"] = [_output(entry, outputs) for entry in wanted]
    try:
        return json.dumps(answer, allow_nan=False, separators=(",", ":")).encode()
    except ValueError as cause:
        raise EngineError(f"{model.name} gave logits that are not finite") from cause


def wanted_outputs(model: ServedModel, request: InferRequest) -> list[TensorEntry]:
    """Outputs that a request names, or all where it names none; 400 where the model has none of that name."""
    entries = {entry.name: entry for entry in model.engine.outputs}
    names = [output.name for output in request.outputs] or list(entries)
    for name in names:
        if name not in entries:
            raise RequestError(400, f"the model has no output {name!r}; it has {', '.join(entries)}")
    if len(set(names)) < len(names):
        raise RequestError(400, "an output is asked for twice")
    return [entries[name] for name in names]


def server_metadata() -> dict[str, Any]:
    """Answer of GET /v2."""
    return {"name": "ddcat", "version": __version__, "extensions": []}


def model_metadata(model: ServedModel) -> dict[str, Any]:
    """Answer of GET /v2/models/NAME: the protocol's part, and under `parameters` what the manifest says about the model."""
    manifest = model.bundle.manifest
    return {
        "name": model.name,
        "versions": [VERSION],
        "platform": "onnx",
        "inputs": [_tensor_metadata(entry) for entry in model.engine.inputs],
        "outputs": [_tensor_metadata(entry) for entry in model.engine.outputs],
        "parameters": {
            "bundle": model.bundle.digest,
            "integrity": "hashes only: the bundle is not signed",
            "method": manifest.source.method,
            "architecture": manifest.source.architecture,
            "classes": [entry.model_dump(mode="json") for entry in manifest.classes],
            "preprocessing": {
                **manifest.preprocessing.model_dump(mode="json"),
                "by": "the graph itself: (image / 255 - mean) / std; send the pixels as they are",
            },
            "shapes": manifest.shapes.model_dump(mode="json"),
            "engine": dict(model.engine.description),
        },
    }


def _image_tensor(tensor: InputTensor, max_pixels: int) -> npt.NDArray[np.uint8]:
    if tensor.datatype != "UINT8":
        raise RequestError(400, f"image has datatype {tensor.datatype!r}; the model takes UINT8")
    if len(tensor.shape) != 4 or tensor.shape[3] != 3:
        raise RequestError(400, f"image has shape {tensor.shape}; the model takes [N, H, W, 3]")
    if math.prod(tensor.shape[:3]) > max_pixels:
        raise RequestError(413, f"image of shape {tensor.shape} has more than {max_pixels} pixels")
    values = _flat(tensor.data, tensor.shape)
    if len(values) != math.prod(tensor.shape):
        raise RequestError(400, f"the data of image has {len(values)} values; {tensor.shape} takes {math.prod(tensor.shape)}")
    kinds = set(map(type, values))
    if kinds != {int}:  # NaN is a float, and True would pass for 1
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise RequestError(400, f"the data of image holds {names}; UINT8 takes integers in 0..255")
    try:
        content = bytes(values)
    except (ValueError, OverflowError) as cause:
        raise RequestError(400, f"the data of image lies in {min(values)}..{max(values)}; UINT8 takes 0..255") from cause
    return np.frombuffer(content, np.uint8).reshape(tensor.shape)


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


def _output(entry: TensorEntry, outputs: Outputs) -> dict[str, Any]:
    values: npt.NDArray[Any] = getattr(outputs, entry.name)
    return {"name": entry.name, "datatype": _DATATYPES[entry.dtype], "shape": values.shape, "data": values.ravel().tolist()}


def _tensor_metadata(entry: TensorEntry) -> dict[str, Any]:
    shape = [size if isinstance(size, int) else -1 for size in entry.shape]
    return {"name": entry.name, "datatype": _DATATYPES[entry.dtype], "shape": shape}
