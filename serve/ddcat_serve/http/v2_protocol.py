"""Checks of requests in the Open Inference Protocol, version 2, shared by HTTP and gRPC."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ddcat.bands import MOST_BANDS
from ddcat.image_pixels import table_of_16_bits
from ddcat.manifest import TensorEntry
from ddcat_serve.errors import RequestError, quoted
from ddcat_serve.inference.served_model import ServedModel
from ddcat_serve.settings import Settings

__all__ = [
    "DATATYPES",
    "IMAGE_TYPES",
    "MAX_ENVELOPE_BYTES",
    "RequestedOutput",
    "check_flag",
    "check_image",
    "check_input_parameters",
    "check_unload_options",
    "prepared",
    "read_load_options",
    "read_timeout",
    "requested_outputs",
    "tensor_of",
]

DATATYPES = {"uint8": "UINT8", "float32": "FP32"}
IMAGE_TYPES = {"UINT8": "<u1", "UINT16": "<u2"}  # of the input, as bytes
MAX_ENVELOPE_BYTES = 2**16  # of a request without the data of its tensor
_SHARED = "shared_memory"  # prefix of its parameters

Parameters = Mapping[str, Any]


class RequestedOutput(NamedTuple):
    """An output that a client requests, with its parameters."""

    name: str
    parameters: Parameters


def check_image(datatype: str, shape: list[int], max_pixels: int) -> None:
    """Refuse a tensor that is not a batch of images: RequestError (400), or 413 for too many pixels."""
    if datatype not in IMAGE_TYPES:
        raise RequestError(400, f"image has datatype {quoted(datatype)}; a model takes UINT8, or UINT16 if it is of 16 bits")
    if len(shape) != 4 or not 1 <= shape[3] <= MOST_BANDS or min(shape) < 1:
        raise RequestError(400, f"image has shape {quoted(shape)}; the model takes [N, H, W, 3]")
    if math.prod(shape[:3]) > max_pixels:
        raise RequestError(413, f"image of shape {quoted(shape)} has more than {max_pixels} pixels")


def tensor_of(content: bytes | memoryview, datatype: str, shape: list[int]) -> npt.NDArray[np.uint8 | np.uint16]:
    """Return the tensor of little-endian bytes; RequestError (400) where their number is not that of the shape."""
    dtype = np.dtype(IMAGE_TYPES[datatype])
    count, rest = divmod(len(content), dtype.itemsize)
    if rest or count != math.prod(shape):
        found = f"{len(content)} bytes" if rest else f"{count} values"
        raise RequestError(400, f"the data of image has {found}; {quoted(shape)} takes {math.prod(shape)}")
    return np.frombuffer(content, dtype).reshape(shape)


def prepared(images: npt.NDArray[np.uint8 | np.uint16], model: ServedModel) -> npt.NDArray[np.uint8]:
    """
    Return images, (N, H, W, C), as the graph of a model takes them: 16 bits become 8 as in the files of its bundle.

    RequestError (400) for other channels than the model takes, and for 16 bits where its bundle is of 8.
    """
    rule = model.bundle.manifest.preprocessing
    if images.shape[3] != rule.channels:
        raise RequestError(400, f"image has shape {quoted(list(images.shape))}; the model takes [N, H, W, {rule.channels}]")
    if images.dtype == np.uint8:
        return images.view(np.uint8)
    if rule.values is None:
        raise RequestError(400, "image has datatype 'UINT16'; the model takes UINT8: its bundle is of 8 bits")
    return table_of_16_bits(rule.values)[images]


def check_input_parameters(parameters: Parameters) -> None:
    """Refuse (400) an input whose data is in shared memory."""
    for name in parameters:
        if name.startswith(_SHARED):
            raise RequestError(400, f"image has the parameter {quoted(name)}: no shared memory is read; send its data")


def check_flag(name: str, value: Any) -> bool:
    """Return a boolean parameter; raise RequestError (400) for anything else."""
    if not isinstance(value, bool):
        raise RequestError(400, f"{name} is {quoted(value)}; expected true or false")
    return value


def requested_outputs(model: ServedModel, outputs: Sequence[RequestedOutput]) -> list[TensorEntry]:
    """Return the requested outputs, by default all; RequestError (400) for unknown ones, and parameters that change them."""
    entries = {entry.name: entry for entry in model.engine.outputs}
    for output in outputs:
        if output.name not in entries:
            raise RequestError(400, f"the model has no output {quoted(output.name)}; it has {', '.join(entries)}")
        for name, value in output.parameters.items():
            _check_output_parameter(output.name, name, value)
    names = [output.name for output in outputs]
    if len(set(names)) < len(names):
        raise RequestError(400, "an output is requested twice: request each once")
    return [entries[name] for name in names or entries]


def read_timeout(parameters: Parameters, settings: Settings) -> float:
    """
    Return the request's timeout in seconds; clients give it in microseconds, and 0 means the default.

    RequestError (400) if it is not such a number, or above the maximum.
    """
    value, most = parameters.get("timeout", 0), 1e6 * settings.max_timeout
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise RequestError(400, f"timeout is {quoted(value)}; expected microseconds, at most {most:.0f}")
    return value / 1e6 if value else settings.timeout


def read_load_options(parameters: Parameters) -> tuple[str | None, bool]:
    """
    Return the version that a request to load a model names, None: the newest; and whether it asks for a roll-back instead.

    RequestError (400) for files, for a configuration of anything but the version, and for unknown parameters.
    """
    version, roll_back = None, False
    for name, value in parameters.items():
        if name == "config":
            version = _read_version(value)
        elif name == "rollback":
            roll_back = check_flag(name, value)
        elif name.startswith("file:"):
            raise RequestError(400, "no file is taken from a request: put the bundle into the server's repository")
        else:
            raise RequestError(400, f"the server does not know the parameter {quoted(name)} of a load; leave it out")
    if roll_back and version is not None:
        raise RequestError(400, "rollback goes to the version that answered before: leave config out")
    return version, roll_back


def check_unload_options(parameters: Parameters) -> None:
    """Refuse (400) unknown parameters of a request to unload a model; models have no dependents here."""
    for name, value in parameters.items():
        if name != "unload_dependents":
            raise RequestError(400, f"the server does not know the parameter {quoted(name)} of an unload; leave it out")
        check_flag(name, value)


def _read_version(text: Any) -> str | None:
    """Return the version in a configuration in Triton's form; None for the newest."""
    hint = 'use {"version_policy": {"specific": {"versions": [2]}}}'
    try:
        config = json.loads(text)
    except (TypeError, ValueError, RecursionError) as cause:
        raise RequestError(400, f"config is not a text of JSON: {hint}") from cause
    if not isinstance(config, dict):
        raise RequestError(400, f"config is not a JSON object: {hint}")
    if unknown := sorted(set(config) - {"version_policy"}):
        raise RequestError(400, f"config has {quoted(unknown[0])}, but a load chooses only the version: {hint}")
    policy = config.get("version_policy", {})
    if policy in ({}, {"latest": {}}, {"latest": {"num_versions": 1}}):
        return None
    try:
        [version] = policy["specific"]["versions"]
        if len(policy) != 1 or isinstance(version, bool) or not isinstance(version, int | str):
            raise ValueError
    except (TypeError, KeyError, ValueError) as cause:
        raise RequestError(400, f"config names neither the newest version nor a single one: {hint}") from cause
    return str(version)


def _check_output_parameter(output: str, name: str, value: Any) -> None:
    if name == "binary_data":
        check_flag(name, value)
    elif name.startswith(_SHARED):
        raise RequestError(400, f"output {output} has the parameter {quoted(name)}: no shared memory is written; leave it out")
    elif name == "classification":
        if value != 0:  # 0 classes asks for the tensor itself
            raise RequestError(400, f"output {output} has the parameter {name!r} (class_count): leave it out for the tensor")
    else:
        raise RequestError(
            400, f"output {output} has the parameter {quoted(name)}, which this server does not know; leave it out"
        )
