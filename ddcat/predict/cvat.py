"""CVAT's annotations.xml, version 1.1, for images: a mask for each class, which keeps holes and loses no pixel."""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import numpy as np
import numpy.typing as npt

from ddcat.classes import Classes
from ddcat.predict.records import Answer, Record

__all__ = ["cvat_masks", "write_annotations"]

_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def cvat_masks(answer: Answer) -> list[dict[str, Any]]:
    """Return the masks of an image: run lengths within the box around each class, row by row, the first of what is outside."""
    masks = []
    for label in answer.present():
        found = answer.labels == label
        rows, columns = np.flatnonzero(found.any(1)).tolist(), np.flatnonzero(found.any(0)).tolist()
        inner = found[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        masks.append(
            {
                "label": label,
                "left": columns[0],
                "top": rows[0],
                "width": inner.shape[1],
                "height": inner.shape[0],
                "rle": ", ".join(map(str, _lengths(inner.ravel()))),
            }
        )
    return masks


def _xml_text(text: str) -> str:
    """Replace the characters that no XML file can hold."""
    return _NOT_IN_XML.sub("\ufffd", text)


def _lengths(flat: npt.NDArray[np.bool_]) -> list[int]:
    changes = np.flatnonzero(np.concatenate([[flat[0]], flat[1:] != flat[:-1]]))  # a run of 0 pixels stands first if need be
    lengths: list[int] = np.diff(changes, prepend=0, append=flat.size).tolist()
    return lengths


def write_annotations(form: str) -> Callable[[Classes, Callable[[], Iterable[Record]]], Iterator[bytes]]:
    """Return a function that writes the file, an image at a time."""

    def write(classes: Classes, records: Callable[[], Iterable[Record]]) -> Iterator[bytes]:
        yield b'<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n<meta><task><labels>\n'
        for name, colour in zip(classes.names, classes.palette, strict=True):
            shade = "".join(f"{level:02x}" for level in colour)
            yield (
                f"<label><name>{escape(_xml_text(name))}</name><color>#{shade}</color><type>mask</type><attributes></attributes></label>\n"
            ).encode()
        yield b"</labels></task></meta>\n"
        for number, record in enumerate(records()):
            size = f'width="{record.width}" height="{record.height}"'
            yield f'<image id="{number}" name={quoteattr(_xml_text(record.name))} {size}>\n'.encode()
            for part in record.parts[form]:
                box = " ".join(f'{side}="{part[side]}"' for side in ("left", "top", "width", "height"))
                label = quoteattr(_xml_text(classes.names[part["label"]]))
                yield f'<mask label={label} source="auto" occluded="0" rle="{part["rle"]}" {box} z_order="0"></mask>\n'.encode()
            yield b"</image>\n"
        yield b"</annotations>\n"

    return write
