"""Label Studio's file of tasks with predictions: a brush for each class, which keeps holes and loses no pixel."""

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ddcat.classes import Classes
from ddcat.predict.records import Answer, Record

__all__ = ["brush_results", "brush_run_lengths", "write_tasks"]

_LENGTH_BITS = (3, 4, 8, 16)  # a run states which of them its length has
_CHANNELS = 4  # of Label Studio's masks: red, green, blue, alpha


def brush_results(answer: Answer) -> list[dict[str, Any]]:
    """Return the results of an image, for a labelling interface with the tags `image` and `label`."""
    height, width = answer.labels.shape
    return [
        {
            "id": f"{label}",
            "type": "brushlabels",
            "from_name": "label",
            "to_name": "image",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {
                "format": "rle",
                "rle": brush_run_lengths(answer.labels == label).tolist(),
                "brushlabels": [answer.classes.names[label]],
            },
        }
        for label in answer.present()
    ]


def brush_run_lengths(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """
    Encode a mask in Label Studio's run lengths: bits of the size, then of each run, packed into bytes.

    Parameters
    ----------
    mask : (H, W) bool

    Returns
    -------
    (B,) uint8
    """
    flat = mask.ravel()
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
    lengths = np.diff(starts, append=flat.size) * _CHANNELS
    values = np.where(flat[starts], 255, 0)
    longest = 1 << _LENGTH_BITS[-1]
    pieces = -(-lengths // longest)
    values = np.repeat(values, pieces)
    whole = np.full(values.size, longest)
    whole[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * longest  # the last piece of a run is what is left
    kinds = np.searchsorted([1 << bits for bits in _LENGTH_BITS], whole)
    bits = np.array(_LENGTH_BITS)[kinds]
    # a run: 1, two bits that say how long its length is, the length - 1, eight bits of its value
    codes = (((0b100 | kinds).astype(np.uint64) << bits.astype(np.uint64) | (whole - 1).astype(np.uint64)) << np.uint64(8)) | (
        values.astype(np.uint64)
    )
    sizes = 3 + bits + 8
    table = np.unpackbits(codes.astype(">u4").view(np.uint8).reshape(-1, 4), axis=1)
    packed = table[np.arange(32) >= 32 - sizes[:, None]]
    head = f"{flat.size * _CHANNELS:032b}{8 - 1:05b}" + "".join(f"{size - 1:04b}" for size in _LENGTH_BITS)
    return np.packbits(np.concatenate([np.frombuffer(head.encode(), np.uint8) - ord("0"), packed]))


def write_tasks(form: str) -> Callable[[Classes, Callable[[], Iterable[Record]]], Iterator[bytes]]:
    """Return a function that writes the list of tasks, one at a time."""

    def write(classes: Classes, records: Callable[[], Iterable[Record]]) -> Iterator[bytes]:
        del classes  # each result names its own
        for number, record in enumerate(records(), 1):
            results = record.parts[form]
            task = {
                "id": number,
                "data": {"image": record.name},
                "predictions": [{"model_version": "ddcat", "result": results}],
            }
            yield (",\n" if number > 1 else "[\n").encode() + json.dumps(task).encode()
        yield b"\n]\n"

    return write
